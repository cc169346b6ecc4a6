"""Bricks baked into a checkpoint: what plain transformers says with it, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from brickwork.brick.brick import Brick
from brickwork.brick.configuration import BrickUse, Configuration
from brickwork.combine.bake import bake_bricks
from brickwork.errors import MergeError
from brickwork.model.load import LoadedModel, load_model
from brickwork.model.shards import Shards
from brickwork.runtime.configured import ConfiguredModel
from tests.bricks import random_brick
from tests.tiny import tiny_model, tiny_tokenizer

IDS = [5, 17, 33, 90, 4, 71]


def saved(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    tiny_model(family).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_model(str(folder), dtype="float32", name="tiny")


def some_bricks(loaded: LoadedModel) -> list[Brick]:
    """Two LoRAs that meet at a map, factors on it, and factors on inputs and outputs elsewhere."""
    base, generator = loaded.base, torch.Generator().manual_seed(1)
    sites = [s.path for s in base.of_kind("linear") if s.layer is not None]
    down = next(s.path for s in base.of_kind("linear") if s.address == "layers.1.mlp.down")
    return [
        random_brick("lora", base, generator, sites=[down], name="one"),
        random_brick("lora", base, generator, sites=sites, name="two"),
        random_brick("ia3", base, generator, sites=[down], name="three"),
        random_brick("ia3", base, generator, sites=sites, name="four"),
    ]


def logits_with(loaded: LoadedModel, bricks: list[Brick]) -> Tensor:
    model = ConfiguredModel(loaded)
    for brick in bricks:
        model.add(brick)
    uses = tuple(BrickUse(name=brick.spec.name) for brick in bricks)
    return model.logits([IDS], [Configuration(bricks=uses)])[0]


@torch.no_grad()
def plain_logits(folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits: Tensor = model(torch.tensor([IDS])).logits[0]
    return logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "opt", "gpt_neox"])
def test_a_baked_model_says_what_the_bricks_say(tmp_path: Path, family: str) -> None:
    loaded = saved(tmp_path / "base", family)
    bricks = some_bricks(loaded)
    summary = bake_bricks(tmp_path / "base", bricks, tmp_path / "out", name="tiny")
    expected = logits_with(loaded, bricks)
    # The same products in float32, summed in another order, through two layers.
    torch.testing.assert_close(plain_logits(tmp_path / "out"), expected, rtol=1e-3, atol=1e-3)
    assert (expected - logits_with(loaded, [])).abs().max() > 0.1
    assert summary.tensors == len(Shards(tmp_path / "out").tensors)


def test_values_are_rounded_once_and_the_rest_is_copied(tmp_path: Path) -> None:
    loaded = saved(tmp_path / "base", "llama", torch.bfloat16)
    base, generator = loaded.base, torch.Generator().manual_seed(0)
    site = next(s.path for s in base.of_kind("linear") if s.address == "layers.0.mlp.down")
    bricks = [random_brick("lora", base, generator, sites=[site], name=n) for n in ("a", "b")]
    files = {"brickwork_edits.json": b"{}"}
    bake_bricks(tmp_path / "base", bricks, tmp_path / "out", name="tiny", files=files)
    before, after = Shards(tmp_path / "base"), Shards(tmp_path / "out")
    for name in before.tensors:
        old, new = before.tensor(name), after.tensor(name)
        assert new.dtype == torch.bfloat16
        if name != f"{site}.weight":
            assert torch.equal(old, new)
            continue
        total = old.double()
        for brick in bricks:
            slots = brick.by_site[site]
            total += (8.0 / len(slots["A"])) * (slots["B"].double() @ slots["A"].double())
        # Half a unit in the last of bfloat16's 8 bits, and what float32 adds to that.
        torch.testing.assert_close(new.double(), total, rtol=2**-8, atol=1e-6)
        assert (new == total.to(torch.bfloat16)).float().mean() > 0.99
    assert (tmp_path / "out" / "brickwork_edits.json").read_bytes() == b"{}"
    record = json.loads((tmp_path / "out" / "brickwork.json").read_text())
    assert record["operation"] == "bake"
    assert [one["name"] for one in record["bricks"]] == ["a", "b"]
    assert record["sources"][0]["model"] == "tiny"
    same = (tmp_path / "base" / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == same


def test_refuses_what_is_no_change_of_weights(tmp_path: Path) -> None:
    loaded = saved(tmp_path / "base", "llama")
    generator = torch.Generator().manual_seed(0)
    bricks = [
        random_brick(form, loaded.base, generator, name=f"my-{form}")
        for form in ("lora", "codebook", "patch", "memory", "steering")
    ]
    with pytest.raises(MergeError, match="4 of 5 bricks act on states") as failure:
        bake_bricks(tmp_path / "base", bricks, tmp_path / "out")
    for form in ("codebook", "patch", "memory", "steering"):
        assert f"my-{form} " in str(failure.value)
    with pytest.raises(MergeError, match="there are none; name at least one"):
        bake_bricks(tmp_path / "base", [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refuses_to_change_a_tied_weight(tmp_path: Path) -> None:
    loaded = saved(tmp_path / "base", "qwen2")
    brick = random_brick("lora", loaded.base, torch.Generator(), sites=["lm_head"])
    with pytest.raises(MergeError, match=r"lm_head.weight of base, which is tied to another"):
        bake_bricks(tmp_path / "base", [brick], tmp_path / "out")
