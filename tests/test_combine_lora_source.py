"""base+lora: against PEFT's merge_and_unload, without a full matrix, and what does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from brickwork.brick.folder import write_brick
from brickwork.combine.engine import write_merge
from brickwork.combine.lora_source import LoraSource, LowRank, find_adapter
from brickwork.combine.operands import TensorSource
from brickwork.combine.plan import MergePlan, ModelRef, Operand, TensorPlan
from brickwork.errors import BrickworkError, MergeError, MisfitError
from brickwork.model.load import wrap_model
from tests.bricks import random_brick
from tests.tiny import tiny_model

# The sites of each family, square Conv1D maps among them, where the shape tells nothing.
TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
}


def adapter(place: Path, family: str, **config: object) -> None:
    """A checkpoint, and a PEFT LoRA of random values for it."""
    tiny_model(family).save_pretrained(place / "base")
    settings = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS[family], **config}
    settings["fan_in_fan_out"] = family == "gpt2"  # PEFT warns if it has to find out
    wrapped = get_peft_model(tiny_model(family), LoraConfig(**settings))
    chance = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=chance)
    wrapped.save_pretrained(place / "lora")


def sum_plan(place: Path, *, method: str = "copy", dtype: torch.dtype | None = None) -> MergePlan:
    """The sum of base and LoRA, written out."""
    ref = ModelRef(str(place / "base"), lora=str(place / "lora"))
    held = load_file(place / "base/model.safetensors")
    tensors = [
        TensorPlan(name, tuple(t.shape), dtype or t.dtype, method, (Operand(ref, name, "m"),))
        for name, t in held.items()
    ]
    config = json.loads((place / "base/config.json").read_text())
    return MergePlan(tensors, {ref: place / "base"}, config, ref)


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("config", ["plain", "rslora", "patterns"])
def test_equals_pefts_own_merge(tmp_path: Path, family: str, config: str) -> None:
    last = TARGETS[family][-1]
    settings: dict[str, dict[str, object]] = {
        "plain": {},
        "rslora": {"use_rslora": True},
        "patterns": {"rank_pattern": {last: 2}, "alpha_pattern": {last: 7}},
    }
    adapter(tmp_path, family, **settings[config])
    write_merge(sum_plan(tmp_path), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    wrapped = PeftModel.from_pretrained(tiny_model(family), tmp_path / "lora")
    theirs = dict(wrapped.merge_and_unload().named_parameters())
    changed = 0
    for name, tensor in found.items():
        full = name if name in theirs else f"transformer.{name}"
        # Both add in float32, in another order; values are below 100.
        assert torch.allclose(tensor, theirs[full], rtol=1e-6, atol=1e-5)
        changed += not torch.equal(tensor, dict(tiny_model(family).named_parameters())[full])
    assert changed >= 2 * len(TARGETS[family])


def test_another_scale_of_the_adapter_is_another_merge(tmp_path: Path) -> None:
    adapter(tmp_path, "llama")
    plan = sum_plan(tmp_path)

    def interrupt(size: int) -> None:
        if size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_merge(plan, tmp_path / "out", workers=1, advance=interrupt)
    settings = tmp_path / "lora/adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_alpha": 50}))
    assert write_merge(plan, tmp_path / "out").resumed == 0


def test_a_lora_brick_is_added_as_its_adapter_is(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    chance = torch.Generator().manual_seed(0)
    brick = random_brick("lora", wrap_model(model).base, chance, options={"alpha": 4.0})
    write_brick(brick, tmp_path / "lora")
    write_merge(sum_plan(tmp_path), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    own = dict(model.named_parameters())
    for site, slots in brick.by_site.items():
        a, b = slots["A"].double(), slots["B"].double()
        exact = own[f"{site}.weight"].double() + 4.0 / a.shape[0] * b @ a
        # Sums of at most 6 products of float32.
        assert torch.allclose(found[f"{site}.weight"].double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_any_rows_are_those_of_the_whole_sum(transposed: bool) -> None:
    chance = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, generator=chance), torch.randn(7, 2, generator=chance)
    shape = (5, 7) if transposed else (7, 5)
    weight: Tensor = torch.randn(shape, generator=chance)
    product = (b.double() @ a.double()).T if transposed else b.double() @ a.double()
    source = LoraSource(TensorSource(weight), LowRank(a, b, 0.5, transposed))
    for start, stop in [(0, 1), (2, 5), (0, len(weight))]:
        exact = weight[start:stop].double() + 0.5 * product[start:stop]
        assert torch.allclose(source.read(start, stop).double(), exact, atol=1e-6)  # float32
    cast = LoraSource(TensorSource(weight), LowRank(a, b, 0.5, transposed), cast=torch.bfloat16)
    assert torch.equal(cast.read(0, 3), source.read(0, 3).bfloat16().float())


def test_a_lora_for_another_model_is_refused_before_any_work(tmp_path: Path) -> None:
    adapter(tmp_path, "llama")
    plan = sum_plan(tmp_path)
    tiny_model("gpt2").save_pretrained(tmp_path / "other")
    plan = replace(plan, folders=dict.fromkeys(plan.folders, tmp_path / "other"))
    with pytest.raises(MisfitError, match=r"no module 'model\.layers\.0"):
        write_merge(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tied_unembedding_takes_no_lora_of_its_own(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.save_pretrained(tmp_path / "base")
    loaded = wrap_model(model)
    brick = random_brick(
        "lora", loaded.base, torch.Generator().manual_seed(0), sites=["lm_head"]
    )  # fmt: skip
    write_brick(brick, tmp_path / "lora")
    with pytest.raises(MergeError, match=r"lm_head\.weight.*no such tensor of its own"):
        write_merge(sum_plan(tmp_path), tmp_path / "out")


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(MergeError, match=r"there is no LoRA .*no such folder"):
        find_adapter(str(tmp_path / "lora"), None)
    (tmp_path / "lora").mkdir()
    with pytest.raises(MergeError, match="neither a PEFT adapter nor a brick"):
        write_merge(sum_plan(tmp_path), tmp_path / "out")
    (tmp_path / "lora").rmdir()
    chance = torch.Generator().manual_seed(0)
    write_brick(random_brick("bias", wrap_model(model).base, chance), tmp_path / "lora")
    with pytest.raises(MergeError, match=r"is of the form 'bias'.*only a LoRA can follow"):
        write_merge(sum_plan(tmp_path), tmp_path / "out")


def test_a_lora_that_is_more_than_one_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path, "llama", use_dora=True)
    with pytest.raises(BrickworkError, match="use_dora"):
        write_merge(sum_plan(tmp_path), tmp_path / "out")
