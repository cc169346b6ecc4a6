"""Learned growth: it starts as the small model, is linear in it, and only its maps are trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from brickwork.errors import GrowthError
from brickwork.grow.growth import GrownWeights
from brickwork.grow.learned import learn_growth
from brickwork.grow.learned_maps import GrowthMaps, Owner, Start
from brickwork.grow.recipe import GrowthRecipe, RecipeStep, grow_by_recipe
from brickwork.model.fit import FitRecipe, response_loss, training_batches
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.parts import CausalModel
from brickwork.model.sizes import model_of
from brickwork.model.train import Encoded, pack
from brickwork.model.weights import ModelWeights
from tests.tiny import FAMILIES, tiny_model

IDS = torch.tensor([[5, 40, 70, 99, 12, 30, 8], [9, 9, 17, 2, 60, 61, 62]])
RECIPE = FitRecipe(rate=1e-2, steps=12, tokens_per_batch=120, warm_up=2)
SHORT = replace(RECIPE, steps=2)


def recipe(*steps: tuple[str, str, dict[str, Any]], seed: int = 0) -> GrowthRecipe:
    every = [RecipeStep(part=part, by=by, options=options) for part, by, options in steps]
    return GrowthRecipe(steps=tuple(every), seed=seed)


WIDER = ("width", "split", {"times": 1.5})
DUPLICATED = recipe(
    ("hidden", "duplicate", {"times": 2}), WIDER, ("depth", "blocks", {"blocks": 1})
)
EXTENDED = recipe(
    ("width", "zero", {"times": 2}),
    ("hidden", "zero-extend", {"size": 48}),
    ("heads", "groups", {"kv_heads": 3}),
    ("depth", "identity", {"after": [0, 0]}),
)
LOUD = recipe(  # no layer of it is silent
    ("hidden", "zero-extend", {"size": 48}), ("heads", "groups", {"kv_heads": 3}), WIDER,
    ("depth", "stack", {"overlap": 1}),
)  # fmt: skip


def planned(model: CausalModel, growths: GrowthRecipe) -> GrownWeights:
    weights = grow_by_recipe(ModelWeights(model), growths).weights
    assert isinstance(weights, GrownWeights)
    return weights


@torch.no_grad()
def logits(model: CausalModel) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits.float()
    return found


@torch.no_grad()
def at_start(model: CausalModel, growths: GrowthRecipe, start: Start = "exact") -> CausalModel:
    grown = planned(model, growths)
    made = GrowthMaps(grown, start)()
    return model_of(grown.outline.config, made, wrap_model(model)).model


def moved(maps: GrowthMaps, seed: int = 0) -> GrowthMaps:
    """Maps as they might be after training: none of their numbers is what it was."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in maps.parameters():
            p.add_(torch.randn(p.shape, generator=chance), alpha=0.3)
    return maps


def copying(count: int = 24) -> list[Encoded]:
    chance = torch.Generator().manual_seed(0)
    words = torch.randint(4, 44, (count, 3), generator=chance).tolist()
    return [Encoded([*w, 3, *w], 4) for w in words]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_maps_start_as_the_small_model(family: str) -> None:
    small = tiny_model(family)
    large = at_start(small, DUPLICATED)
    # Logits of about 3, whose sums have twice as many addends in another order.
    torch.testing.assert_close(logits(large), logits(small), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in large.parameters()) > 2 * sum(
        p.numel() for p in small.parameters()
    )


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "mixtral"])
def test_zeros_behind_the_stream_start_as_the_small_model_too(family: str) -> None:
    small = tiny_model(family)
    large = at_start(small, EXTENDED)
    torch.testing.assert_close(logits(large), logits(small), rtol=0, atol=1e-5)  # as above


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "mixtral"])
def test_every_map_learns_where_no_layer_is_silent(family: str) -> None:
    small = tiny_model(family)
    growths = recipe(("hidden", "duplicate", {"times": 2}), WIDER) if family == "gpt2" else LOUD
    grown = planned(small, growths)
    maps = GrowthMaps(grown)
    large = model_of(grown.outline.config, _detached(maps), wrap_model(small)).model
    torch.func.functional_call(large, maps(), (), {"input_ids": IDS, "labels": IDS}).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in maps.parameters())


def _detached(maps: GrowthMaps) -> dict[str, Tensor]:
    return {path: tensor.detach() for path, tensor in maps().items()}


def test_a_query_matrix_is_the_sum_of_layers_between_its_maps() -> None:
    small = tiny_model("llama")
    maps = moved(GrowthMaps(planned(small, EXTENDED)))
    made = maps()
    heads = maps.width[maps.owners[Owner("heads", "writes", 2)]].detach().double()
    hidden = maps.width[maps.owners[Owner("hidden", "reads")]].detach().double()
    path = "model.layers.2.self_attn.q_proj.weight"
    shares = maps.depth[list(made).index(path)].detach().double()
    olds = [small.get_parameter(f"model.layers.{n}.self_attn.q_proj.weight") for n in (0, 1)]
    summed = sum(s * w.detach().double() for s, w in zip(shares.numpy(), olds, strict=True))
    head_dim = 8
    expected = np.kron(heads.numpy(), np.eye(head_dim)) @ np.asarray(summed) @ hidden.numpy().T
    found = made[path].detach().double().numpy()
    assert found.shape == (6 * head_dim, 48)
    # Sums of 32 and of 4 products of numbers up to 3, in float32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "mixtral"])
def test_parameters_are_linear_in_the_small_ones(family: str) -> None:
    one, other = tiny_model(family, seed=1), tiny_model(family, seed=2)
    both = tiny_model(family)
    with torch.no_grad():
        for a, b, c in zip(both.parameters(), one.parameters(), other.parameters(), strict=True):
            a.copy_(b + c)
    made = [_detached(moved(GrowthMaps(planned(m, DUPLICATED)))) for m in (one, other, both)]
    for path, tensor in made[2].items():
        # Rounding of sums of up to 96 products in float32, whose results reach 20.
        torch.testing.assert_close(tensor, made[0][path] + made[1][path], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2", "mixtral"])
def test_only_the_maps_are_trained(family: str, tmp_path: Path) -> None:
    small = tiny_model(family)
    small.get_parameter(next(n for n, _ in small.named_parameters())).requires_grad_(False)
    asked = [p.requires_grad for p in small.parameters()]
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    learned = learn_growth(wrap_model(small), DUPLICATED, copying(), RECIPE)
    assert all(torch.equal(before[name], t) for name, t in small.state_dict().items())
    assert [p.requires_grad for p in small.parameters()] == asked
    assert all(p.grad is None for p in small.parameters())
    losses, large = learned.record.losses, learned.loaded.model
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    large.save_pretrained(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(logits(again), logits(large))


def test_the_first_loss_is_that_of_the_small_model() -> None:
    small = tiny_model("qwen2")
    learned = learn_growth(wrap_model(small), DUPLICATED, copying(), SHORT)
    first = next(training_batches(copying(), SHORT))
    expected = response_loss(small, pack(first, pad=0, prompt_weight=0.0)).item()
    assert learned.record.losses[0] == pytest.approx(expected, abs=1e-5)  # float32, as the logits
    assert learned.record.steps[1].options == {"times": 1.5}
    assert learned.record.parameters == sum(p.numel() for p in learned.loaded.model.parameters())


def test_the_large_model_has_the_number_format_of_the_small_one() -> None:
    small = tiny_model("qwen2").to(torch.bfloat16)
    large = learn_growth(wrap_model(small), DUPLICATED, copying(), SHORT).loaded.model
    assert {p.dtype for p in large.parameters()} == {torch.bfloat16}
    assert large.get_output_embeddings().weight is large.get_input_embeddings().weight


def test_equal_seeds_learn_the_same() -> None:
    def learned(seed: int) -> Tensor:
        growths = DUPLICATED.model_copy(update={"seed": seed})
        small: LoadedModel = wrap_model(tiny_model("llama"))
        return logits(learn_growth(small, growths, copying(), SHORT).loaded.model)

    assert torch.equal(learned(1), learned(1))
    assert not torch.equal(learned(1), learned(2))


def test_selected_units_are_whole_copies_and_change_what_is_said() -> None:
    small = tiny_model("llama")
    maps = GrowthMaps(planned(small, recipe(WIDER)), "selection")
    for units in maps.width:
        assert ((units == 0) | (units == 1)).all()
        assert (units.sum(1) == 1).all()
        assert torch.equal(units[:48], torch.eye(48))
    difference = logits(at_start(small, recipe(WIDER), "selection")) - logits(small)
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize(
    "step", [("experts", "upcycle", {"experts": 4}), ("context", "extend", {"tokens": 128})]
)
def test_refuses_what_is_not_more_units_or_layers(step: tuple[str, str, dict[str, Any]]) -> None:
    small = wrap_model(tiny_model("llama"))
    with pytest.raises(GrowthError, match=r"not only more neurons, heads, hidden numbers or lay"):
        learn_growth(small, recipe(step, WIDER), copying(), SHORT)
