"""Dense models as one mixture: equal experts, routers from prompts, checkpoints that load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from brickwork.combine.mixture import plan_mixture, write_mixture
from brickwork.combine.mixture_recipe import MixtureRecipe, parse_mixture
from brickwork.combine.mixture_router import ExpertPrompts, prompted_rows, random_rows
from brickwork.combine.plan import ModelRef
from brickwork.errors import MergeError, UnknownNameError
from brickwork.model.shards import Shards
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = (["the man", "a"], ["banana and the rest", "c"], ["x"])
IDS = torch.tensor([[5, 40, 70, 99, 12, 30, 8]])
# Family of the dense models, shared experts, and the family that is written.
CASES = (
    ("llama", 0, "mixtral"),
    ("mistral", 0, "mixtral"),
    ("qwen3", 0, "qwen3_moe"),
    ("qwen2", 0, "qwen2_moe"),
    ("qwen2", 1, "qwen2_moe"),
    ("llama", 1, "qwen2_moe"),
    ("mistral", 1, "qwen2_moe"),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    def save(family: str, seed: int) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"{family}-{seed}"
        if not folder.exists():
            tiny_model(family, seed).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
        return folder

    return save


Saved = Callable[[str, int], Path]


def recipe(
    folders: list[Path],
    shared: int = 0,
    changes: tuple[dict[str, Any], ...] = ({}, {}, {}),
    **more: Any,
) -> MixtureRecipe:
    experts = [
        {"source_model": str(folder), "positive_prompts": prompts} | change
        for folder, prompts, change in zip(folders, PROMPTS, changes, strict=False)
    ]
    extra = [experts[0] | {"positive_prompts": ["q"]}] if shared else None
    return parse_mixture(
        {"base_model": str(folders[0]), "experts": experts, "shared_experts": extra} | more
    )


def fetch(ref: ModelRef) -> Path:
    return Path(ref.model)


def written(made: MixtureRecipe, folder: Path) -> PreTrainedModel:
    """The mixture, loaded by transformers without a tensor missing or left over."""
    write_mixture(made, folder, fetch=fetch, device="cpu")
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    loaded: PreTrainedModel = model.eval()
    return loaded


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize(("family", "shared", "target"), CASES)
def test_copies_of_one_model_say_what_it_says(
    saved: Saved, family: str, shared: int, target: str, tmp_path: Path
) -> None:
    folder = saved(family, 0)
    model = written(recipe([folder, folder, folder], shared), tmp_path / "out")
    assert model.config.model_type == target
    dense = tiny_model(family, 0)
    if shared:  # its gate adds a share of the FFN, taken away here
        for layer in model.model.layers:
            layer.mlp.shared_expert.down_proj.weight.data.zero_()
    # The weights of two experts are rounded, and their outputs are added, in float32.
    torch.testing.assert_close(logits(model), logits(dense), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_one_expert_alone_is_that_model_s_ffn_in_the_base(
    saved: Saved, family: str, tmp_path: Path
) -> None:
    folders = [saved(family, seed) for seed in (0, 1, 2)]
    model = written(recipe(folders, experts_per_token=1), tmp_path / "out")

    def second(gate: Any, inputs: Any, _found: Any) -> Any:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1])
        ones = torch.ones(len(rows), 1)
        return rows.new_zeros(len(rows), gate.num_experts), ones, ones.long()

    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(second)
    dense, other = tiny_model(family, 0), tiny_model(family, 1)
    for mine, theirs in zip(dense.model.layers, other.model.layers, strict=True):
        mine.mlp.load_state_dict(theirs.mlp.state_dict())
    # The same products, of another grouping of rows, in float32.
    torch.testing.assert_close(logits(model), logits(dense), atol=1e-5, rtol=1e-5)


def test_weights_are_the_models_own_under_published_names(saved: Saved, tmp_path: Path) -> None:
    folders = [saved("llama", seed) for seed in (0, 1)]
    written(recipe(folders), tmp_path / "out")
    out, base, other = (Shards(folder) for folder in (tmp_path / "out", *folders))
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for short, part in names.items():
        found = out.tensor(f"model.layers.1.block_sparse_moe.experts.1.{short}.weight")
        assert torch.equal(found, other.tensor(f"model.layers.1.mlp.{part}.weight"))
    for name in base.tensors:
        if ".mlp." not in name:
            assert torch.equal(out.tensor(name), base.tensor(name))


def test_dtype_noise_and_scale_are_those_of_the_recipe(saved: Saved, tmp_path: Path) -> None:
    folders = [saved("llama", seed) for seed in (0, 1)]
    changes = ({}, {"noise_scale": 0.5, "residual_scale": 2.0})
    made = recipe(folders, changes=changes, dtype="bfloat16")
    model = written(made, tmp_path / "out")
    assert model.dtype == torch.bfloat16
    out, other = Shards(tmp_path / "out"), Shards(folders[1])
    place = "model.layers.0.block_sparse_moe.experts"
    plain = Shards(folders[0]).tensor("model.layers.0.mlp.gate_proj.weight")
    assert torch.equal(out.tensor(f"{place}.0.w1.weight"), plain.bfloat16())
    for short, part, scale in (("w1", "gate_proj", 1.0), ("w2", "down_proj", 2.0)):
        found = out.tensor(f"{place}.1.{short}.weight").float() / scale
        noise = found - other.tensor(f"model.layers.0.mlp.{part}.weight")
        # 1536 draws: five standard errors of a deviation are 9 %, of a mean 0.064.
        assert noise.std().item() == pytest.approx(0.5, rel=0.09)
        assert abs(noise.mean().item()) < 0.064
    written(made, tmp_path / "again")
    for name in out.tensors:
        assert torch.equal(out.tensor(name), Shards(tmp_path / "again").tensor(name))


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg", "cheap_embed"])
def test_router_rows_are_states_of_prompts_without_padding(saved: Saved, mode: str) -> None:
    folder = saved("llama", 0)
    experts = [ExpertPrompts(PROMPTS[0], PROMPTS[2]), ExpertPrompts(PROMPTS[1])]
    rows = prompted_rows(experts, mode, folder, device="cpu")
    dense, tokenizer = tiny_model("llama", 0), tiny_tokenizer()

    @torch.no_grad()
    def said(prompts: list[str]) -> Tensor:
        found = []
        for prompt in prompts:
            ids = torch.tensor([tokenizer(prompt).input_ids])
            states = dense(ids, output_hidden_states=True).hidden_states[:-1]
            if mode == "cheap_embed":
                found.append(dense.get_input_embeddings()(ids)[0].sum(0).expand(2, -1))
            else:
                ends = [s[0, -1] if mode == "hidden" else s[0].mean(0) for s in states]
                found.append(torch.stack(ends))
        total = torch.stack(found).mean(0)
        return total / total.norm(dim=-1, keepdim=True) if mode == "cheap_embed" else total

    first = said(PROMPTS[0]) - said(PROMPTS[2])
    expected = torch.stack([first, said(PROMPTS[1])], dim=1)
    expected = expected / expected.norm(dim=-1, keepdim=True)
    # Sums of a few float32 numbers in another order.
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-5)
    alone = prompted_rows(experts[1:], mode, folder, device="cpu")
    assert torch.equal(rows[:, 1:], alone)


def test_random_routers_are_those_of_the_seed(saved: Saved) -> None:
    folders = [saved("qwen3", seed) for seed in (0, 1)]
    gate = "model.layers.1.mlp.gate.weight"
    found = [
        plan_mixture(recipe(folders, gate_mode="random", seed=seed), fetch).tensors[gate]
        for seed in (3, 3, 4)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    rows = random_rows(3, 4, 64, uniform=True, generator=torch.Generator().manual_seed(0))
    assert 0.12 < rows.max() <= 0.125  # 1 / sqrt(64)
    assert -0.125 <= rows.min() < -0.12


def test_prompts_that_are_much_alike_are_noted(saved: Saved) -> None:
    folders = [saved("llama", seed) for seed in (0, 1)]
    alike = ["the man and a banana"]
    changes = ({"positive_prompts": alike}, {"positive_prompts": [*alike, "the men and a banana"]})
    made = recipe(folders, changes=changes)
    (note,) = plan_mixture(made, fetch, device="cpu").plan.notes
    assert "much alike in 2 of 2 layers (0, 1)" in note


def test_refuses_experts_of_another_shape_or_family(saved: Saved, tmp_path: Path) -> None:
    small = tiny_model("llama", 1)
    small.config.num_hidden_layers = 1
    small.model.layers = small.model.layers[:1]
    small.save_pretrained(tmp_path / "small")
    folders = [saved("llama", 0), tmp_path / "small", saved("qwen2", 0)]
    with pytest.raises(MergeError, match="unless their FFNs are like the base's") as error:
        plan_mixture(recipe(folders), fetch)
    assert "has 1 layers, the base 2" in str(error.value)
    assert "is of the family qwen2, not of llama, mistral" in str(error.value)


@pytest.mark.parametrize(
    ("family", "more", "kind", "message"),
    [
        ("gpt2", {}, MergeError, "mixtral: it has the block of llama, mistral, not of gpt2"),
        ("qwen3", {"architecture": "mixtral"}, MergeError, "has the block of llama, mistral"),
        ("llama", {"architecture": "mixtrol"}, UnknownNameError, "did you mean 'mixtral'"),
    ],
)
def test_refuses_a_family_that_does_not_fit(
    saved: Saved, family: str, more: dict[str, Any], kind: type[Exception], message: str
) -> None:
    folders = [saved(family, seed) for seed in (0, 1)]
    with pytest.raises(kind, match=message):
        plan_mixture(recipe(folders, **more), fetch)


def test_refuses_prompts_for_a_base_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_model("llama", 0).save_pretrained(tmp_path / "bare")
    with pytest.raises(MergeError, match="which has no tokenizer"):
        plan_mixture(recipe([tmp_path / "bare"] * 2), fetch, device="cpu")


def test_refuses_a_base_with_an_adapter_to_read_prompts(saved: Saved) -> None:
    made = recipe([saved("llama", 0)] * 2)
    lora = ModelRef(str(saved("llama", 0)), lora="somewhere")
    with pytest.raises(MergeError, match="a model with an adapter; merge it"):
        plan_mixture(made.model_copy(update={"base_model": lora}), fetch)
