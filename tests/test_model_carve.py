"""Carving: the smaller model computes what the full one does with the other units silent."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from brickwork.errors import ModelError
from brickwork.measure.ablation import silencing_heads, skipping, zeroing
from brickwork.model.carve import (
    Kept,
    carve_model,
    carved_outline,
    possible_kv_heads,
)
from brickwork.model.cost import token_flops
from brickwork.model.export import RECORD, write_checkpoint
from brickwork.model.heads import heads_of
from brickwork.model.load import load_model, outline_model, wrap_model
from brickwork.model.parts import ffn_row_of, layers_of
from brickwork.model.taps import tapped
from brickwork.model.units import unit_counts
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 17, 40, 99, 3, 28, 61, 7], [8, 8, 100, 2, 33, 70, 41, 9]])
# The same numbers are added in another order, and the logits of the tiny models are below 10.
ROUNDING = {"atol": 2e-4, "rtol": 1e-4}
EXPERTS = [f for f in FAMILIES if f in {"mixtral", "qwen3_moe"}]
# Their configurations derive a head's width from the number of heads.
NO_HEADS = {"gpt2": "stay", "gpt_neox": "stay", "opt": "stay", "olmo2": "one norm over all heads"}


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


def reloaded(model: PreTrainedModel, kept: Kept, folder: Path) -> PreTrainedModel:
    """The smaller model as plain transformers loads it."""
    write_checkpoint(carve_model(wrap_model(model), kept), folder / "carved")
    plain: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder / "carved")
    return plain


def kept_neurons(
    model: PreTrainedModel, share: float, *, uneven: bool = False
) -> dict[int, Tensor]:
    """Random neurons of each layer, as many in every expert; or fewer in later layers."""
    chance = torch.Generator().manual_seed(3)
    kept = {}
    for layer in range(layers_of(model)):
        counts = unit_counts(model, layer)
        experts = counts.get("mlp.experts", 1)
        width = counts["mlp.neurons"] // experts
        size = int(width * share) - 3 * layer * uneven
        own = [torch.randperm(width, generator=chance)[:size] + e * width for e in range(experts)]
        kept[layer] = torch.cat(own).sort().values
    return kept


def others(kept: dict[int, Tensor], model: PreTrainedModel, word: str) -> dict[int, Tensor]:
    everything = {n: torch.arange(unit_counts(model, n)[word]) for n in kept}
    return {n: units[~torch.isin(units, kept[n])] for n, units in everything.items()}


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_neurons_it_is_the_masked_model(family: str, uneven: bool, tmp_path: Path) -> None:
    model = tiny_model(family)
    kept = kept_neurons(model, 0.5, uneven=uneven)
    with tapped(model, neurons=zeroing(others(kept, model, "mlp.neurons"))):
        expected = logits(model)
    carved = reloaded(model, Kept(neurons=kept), tmp_path)
    torch.testing.assert_close(logits(carved), expected, **ROUNDING)
    assert all(unit_counts(carved, n)["mlp.neurons"] >= len(kept[n]) for n in kept)
    assert carved.num_parameters() < model.num_parameters()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in NO_HEADS])
def test_without_heads_it_is_the_masked_model(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    heads = heads_of(model.config, 0)
    kept = {0: torch.tensor([1]), 1: torch.tensor([0])}
    silent = {
        n: torch.tensor([h for h in range(heads.heads) if h // heads.group not in units])
        for n, units in kept.items()
    }
    with tapped(model, heads=silencing_heads(silent)):
        expected = logits(model)
    carved = reloaded(model, Kept(kv_heads=kept), tmp_path)
    torch.testing.assert_close(logits(carved), expected, **ROUNDING)
    assert heads_of(carved.config, 1).kv_heads == 1
    assert possible_kv_heads(wrap_model(model)) == [1, 2]


@pytest.mark.parametrize("family", NO_HEADS)
def test_heads_are_refused_where_the_rest_would_change(family: str) -> None:
    loaded = wrap_model(tiny_model(family))
    kept = Kept(kv_heads={n: torch.tensor([0, 1]) for n in range(2)})
    whole = heads_of(loaded.model.config, 0).kv_heads
    if whole == 2:
        kept = Kept(kv_heads={n: torch.tensor([0]) for n in range(2)})
    with pytest.raises(ModelError, match=NO_HEADS[family]):
        carve_model(loaded, kept)
    assert possible_kv_heads(loaded) == [whole]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_layer_it_is_the_model_that_skips_it(
    family: str, layer: int, tmp_path: Path
) -> None:
    model = tiny_model(family)
    with tapped(model, blocks=skipping([layer])):
        expected = logits(model)
    carved = reloaded(model, Kept(layers=(1 - layer,)), tmp_path)
    torch.testing.assert_close(logits(carved), expected, **ROUNDING)
    assert layers_of(carved) == 1
    assert ffn_row_of(carved, 0).form == ffn_row_of(model, 1 - layer).form


@pytest.mark.parametrize("family", EXPERTS)
def test_without_experts_the_router_picks_among_the_others(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    moe = [n for n in range(2) if ffn_row_of(model, n).form == "moe_gated"]
    kept = torch.tensor([0, 2, 3])

    def without_expert(
        module: torch.nn.Module, args: tuple[Tensor, ...], _output: object
    ) -> object:
        """What the router says if expert 1 is impossible."""
        scores = args[0].reshape(-1, module.weight.shape[1]) @ module.weight.T
        scores[:, 1] = -torch.inf
        chances, picked = scores.softmax(-1).topk(2)
        return scores, chances / chances.sum(-1, keepdim=True), picked

    hooks = [model.model.layers[n].mlp.gate.register_forward_hook(without_expert) for n in moe]
    expected = logits(model)
    for hook in hooks:
        hook.remove()
    carved = reloaded(model, Kept(experts=dict.fromkeys(moe, kept)), tmp_path)
    torch.testing.assert_close(logits(carved), expected, **ROUNDING)
    assert [unit_counts(carved, n)["mlp.experts"] for n in moe] == [3] * len(moe)


@pytest.mark.parametrize("family", EXPERTS)
def test_fewer_and_narrower_experts_at_once(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    moe = [n for n in range(2) if ffn_row_of(model, n).form == "moe_gated"]
    experts = dict.fromkeys(moe, torch.tensor([1, 2, 3]))
    neurons = {n: units for n, units in kept_neurons(model, 0.5).items() if n in moe}
    fewer = carve_model(wrap_model(model), Kept(experts=experts))
    width = {n: unit_counts(model, n)["mlp.neurons"] // 4 for n in moe}
    renumbered = {n: units[units >= width[n]] - width[n] for n, units in neurons.items()}
    with tapped(fewer, neurons=zeroing(others(renumbered, fewer, "mlp.neurons"))):
        expected = logits(fewer)
    carved = reloaded(model, Kept(neurons=neurons, experts=experts), tmp_path)
    torch.testing.assert_close(logits(carved), expected, **ROUNDING)


def test_everything_at_once_is_every_change_at_once(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    kept = Kept(neurons={1: torch.arange(0, 48, 2)}, kv_heads={1: torch.tensor([1])}, layers=(1,))
    with tapped(
        model,
        neurons=zeroing({1: torch.arange(1, 48, 2)}),
        heads=silencing_heads({1: torch.tensor([0, 1])}),
        blocks=skipping([0]),
    ):
        expected = logits(model)
    torch.testing.assert_close(logits(reloaded(model, kept, tmp_path)), expected, **ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_units_kept_is_the_model_itself(family: str) -> None:
    model = tiny_model(family)
    before = logits(model)
    everything = {n: torch.arange(unit_counts(model, n)["mlp.neurons"]) for n in range(2)}
    carved = carve_model(wrap_model(model), Kept(neurons=everything, layers=(0, 1)))
    assert torch.equal(logits(carved), before)
    pointers = {p.data_ptr() for p in model.parameters()}
    assert not pointers & {p.data_ptr() for p in carved.parameters()}


def test_an_outline_says_what_it_will_be(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "whole")
    outline = outline_model(str(tmp_path / "whole"))
    kept = Kept(neurons=kept_neurons(model, 0.25))
    planned, made = carved_outline(outline, kept), carve_model(wrap_model(model), kept)
    assert planned.device.type == "meta"
    assert planned.num_parameters() == made.num_parameters()
    assert token_flops(planned) == token_flops(made)
    # gate, up and down of both layers lose 36 of 48 neurons, each 2 * 32 a map.
    assert token_flops(model) - token_flops(made) == 2 * 2 * 3 * 36 * 32


def test_only_the_picked_experts_count() -> None:
    model = tiny_model("mixtral")
    attention = 2 * (32 * 32 + 32 * 32 + 2 * 32 * 16)
    experts, router = 2 * 2 * 3 * 32 * 48, 2 * 4 * 32
    assert token_flops(model) == 2 * (attention + experts + router + 112 * 32)


def test_what_is_written_is_whole_and_says_how_it_came_to_be(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.generation_config.max_new_tokens = 7
    loaded = wrap_model(model, tiny_tokenizer())
    carved = carve_model(loaded, Kept(neurons=kept_neurons(model, 0.5)))
    write_checkpoint(
        carved, tmp_path / "out", tokenizer=loaded.tokenizer, record={"method": "by hand"}
    )
    again = load_model(str(tmp_path / "out"), device="cpu")
    assert torch.equal(logits(again.model), logits(carved))
    assert again.tokenizer is not None
    assert again.tokenizer("the").input_ids == tiny_tokenizer()("the").input_ids
    assert again.model.generation_config.max_new_tokens == 7
    assert '"method": "by hand"' in (tmp_path / "out" / RECORD).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_tokenizer_with_several_chat_templates_is_written_with_all_of_them(
    tmp_path: Path,
) -> None:
    words, templates = tiny_tokenizer(), {"default": "{{ messages }}", "tools": "{{ tools }}"}
    words.chat_template = templates
    write_checkpoint(tiny_model("llama"), tmp_path / "out", tokenizer=words)
    again = load_model(str(tmp_path / "out"), device="cpu")
    assert again.tokenizer is not None
    assert again.tokenizer.chat_template == templates


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="is there already; name a folder"):
        write_checkpoint(tiny_model("llama"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_left_of_a_write_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_checkpoint(tiny_model("llama"), tmp_path / "out", record={"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (Kept(layers=()), "keep at least one of 0 to 1"),
        (Kept(layers=(1, 2)), "keep at least one of 0 to 1"),
        (Kept(neurons={0: torch.tensor([48])}), "of which it has 0 to 47"),
        (Kept(neurons={0: torch.tensor([], dtype=torch.int64)}), "keep at least one"),
    ],
)
def test_what_is_not_there_cannot_be_kept(kept: Kept, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        carve_model(wrap_model(tiny_model("llama")), kept)


def test_a_router_needs_as_many_experts_as_it_picks() -> None:
    kept = Kept(experts=dict.fromkeys(range(2), torch.tensor([0])))
    with pytest.raises(ModelError, match="the router picks 2 for each token"):
        carve_model(wrap_model(tiny_model("mixtral")), kept)
