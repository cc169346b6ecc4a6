"""write_merge: against a loop over whole tensors, as transformers reads it, and refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from brickwork.combine.engine import Extras, write_merge
from brickwork.combine.operands import PIECE, Source
from brickwork.combine.plan import MergePlan, ModelRef, Operand, TensorPlan
from brickwork.errors import MergeError
from tests.combine import plan_of, write_model
from tests.tiny import tiny_model, tiny_tokenizer

MEAN = {"weight": (1.0, 3.0), "normalize": True}
SHAPES = {
    "wide": (3, PIECE // 2 + 5),  # pieces that do not divide its rows evenly
    "tall": (1000, 8),
    "cube": (2, 3, 4),
    "vector": (7,),
    "single": (),
    "empty": (0, 4),
}


def random_tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=chance).to(dtype) for n, s in SHAPES.items()}


def read(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def two_models(
    place: Path, dtype: torch.dtype = torch.float32
) -> tuple[list[ModelRef], list[dict[str, Tensor]]]:
    tensors = [random_tensors(seed, dtype) for seed in (1, 2)]
    return [write_model(place / f"m{n}", each) for n, each in enumerate(tensors)], tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("workers", [1, 3])
def test_writes_what_a_loop_over_whole_tensors_computes(
    tmp_path: Path, dtype: torch.dtype, workers: int
) -> None:
    refs, tensors = two_models(tmp_path, dtype)
    plan = plan_of(refs, SHAPES, "linear", parameters=MEAN, dtype=dtype)
    threads, told = torch.get_num_threads(), []
    summary = write_merge(plan, tmp_path / "out", workers=workers, advance=told.append)
    assert torch.get_num_threads() == threads
    found = read(tmp_path / "out")
    assert list(found) == sorted(SHAPES) or set(found) == set(SHAPES)
    for name, merged in found.items():
        exact = (tensors[0][name].double() + 3 * tensors[1][name].double()) / 4
        assert merged.dtype == dtype
        assert merged.shape == SHAPES[name]
        # One rounding to the output's dtype, and a few of the arithmetic's, in float32.
        step = torch.finfo(dtype).eps / 2 + 4 * torch.finfo(torch.float32).eps
        assert torch.allclose(merged.double(), exact, rtol=step, atol=1e-6)
    assert summary.bytes == sum(told) == sum(t.nbytes for t in found.values())
    assert (summary.tensors, summary.resumed, summary.files) == (len(SHAPES), 0, 1)


def test_workers_and_shards_change_no_bit(tmp_path: Path) -> None:
    refs, _ = two_models(tmp_path)
    plan = plan_of(refs, SHAPES, "linear", parameters=MEAN)
    write_merge(plan, tmp_path / "one", workers=1)
    summary = write_merge(plan, tmp_path / "many", workers=4, shard_bytes=40_000)
    one, many = read(tmp_path / "one"), read(tmp_path / "many")
    assert all(torch.equal(one[name], many[name]) for name in SHAPES)
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(SHAPES)
    assert index["metadata"]["total_size"] == summary.bytes
    assert summary.files == len(set(index["weight_map"].values())) == 2


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000])
def test_transformers_reads_the_result_with_all_that_belongs_to_it(
    tmp_path: Path, shard_bytes: int
) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    ref = ModelRef(str(tmp_path / "m"))
    shapes = {n: tuple(t.shape) for n, t in load_file(tmp_path / "m/model.safetensors").items()}
    plan = plan_of([ref], shapes, "linear", parameters={"weight": (2.0,), "normalize": False})
    config = json.loads((tmp_path / "m/config.json").read_text())
    record = {"recipe": {"merge_method": "linear"}}
    write_merge(
        replace(plan, config=config), tmp_path / "out",
        extras=Extras(record=record), shard_bytes=shard_bytes,
    )  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    own = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, 2 * own[name])
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()
    said = json.loads((tmp_path / "out/brickwork.json").read_text())
    assert said["recipe"] == record["recipe"]
    assert str(tmp_path) not in json.dumps(said)
    size = (tmp_path / "m/model.safetensors").stat().st_size
    assert said["sources"] == [{"model": "m", "files": {"model.safetensors": size}}]


def test_a_copy_is_a_copy_to_the_byte_also_of_nan(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40])
    tensors = {"odd": odd, "half": odd.bfloat16(), "counts": torch.arange(3)}
    ref = write_model(tmp_path / "m", tensors)
    plan = plan_of([ref], {"odd": (4,)}, "copy")
    plan = replace(plan, tensors=[
        replace(plan.tensors[0], name=name, shape=tuple(tensor.shape), dtype=tensor.dtype,
                operands=(Operand(ref, name, "m"),))
        for name, tensor in tensors.items()
    ])  # fmt: skip
    write_merge(plan, tmp_path / "out")
    for name, tensor in read(tmp_path / "out").items():
        same = tensors[name].contiguous().view(torch.uint8)
        assert torch.equal(tensor.view(torch.uint8), same)


def test_a_copy_to_another_dtype_is_rounded_once(tmp_path: Path) -> None:
    refs, tensors = two_models(tmp_path)
    write_merge(plan_of(refs[:1], SHAPES, "copy", dtype=torch.bfloat16), tmp_path / "out")
    for name, merged in read(tmp_path / "out").items():
        assert torch.equal(merged, tensors[0][name].bfloat16())


def test_buffers_that_are_no_fractions_must_be_equal(tmp_path: Path) -> None:
    refs = [write_model(tmp_path / f"m{n}", {"ids": torch.arange(n, n + 4)}) for n in (0, 0 + 1)]
    plan = plan_of(refs, {"ids": (4,)}, "copy", dtype=torch.int64)
    with pytest.raises(MergeError, match="the buffer 'ids' is not the same in 'm0' and 'm1'"):
        write_merge(plan, tmp_path / "out")
    plan = plan_of(refs, {"ids": (4,)}, "linear", parameters=MEAN)
    with pytest.raises(MergeError, match=r"'ids' of 'm0' holds torch\.int64.*only copying can"):
        write_merge(plan, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m0", "m1"]


def test_a_value_too_large_for_its_dtype_is_refused_with_the_tensors_name(tmp_path: Path) -> None:
    ref = write_model(tmp_path / "m", {"w": torch.full((2, 2), 60000.0)})
    fields: dict[str, Any] = {"parameters": {"weight": (2.0,), "normalize": False}}
    plan = plan_of([ref], {"w": (2, 2)}, "linear", dtype=torch.float16, **fields)
    with pytest.raises(MergeError, match=r"'w' \(up to 1.2e\+05\) is beyond what torch.float16"):
        write_merge(plan, tmp_path / "out")
    write_merge(replace(plan, tensors=[replace(plan.tensors[0], dtype=torch.bfloat16)]),
                tmp_path / "out")  # fmt: skip


def test_sums_that_overflow_are_no_refusal(tmp_path: Path) -> None:
    # 40000 ten times is beyond float16 and far from infinity in float32.
    ref = write_model(tmp_path / "m", {"w": torch.full((10,), 40000.0)})
    fields: dict[str, Any] = {"parameters": {"weight": (1.0,), "normalize": True}}
    plan = plan_of([ref], {"w": (10,)}, "linear", dtype=torch.float16, **fields)
    write_merge(plan, tmp_path / "out")
    assert torch.equal(read(tmp_path / "out")["w"], torch.full((10,), 40000.0).half())


def test_nan_in_a_model_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    tensors = random_tensors(1)
    tensors["tall"][500, 3] = float("nan")
    ref = write_model(tmp_path / "m", tensors)
    fields: dict[str, Any] = {"parameters": {"weight": (1.0,), "normalize": True}}
    with pytest.raises(MergeError, match="'tall' of 'm' holds NaN"):
        write_merge(plan_of([ref], SHAPES, "linear", **fields), tmp_path / "out", workers=2)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_shapes_other_than_planned_are_refused(tmp_path: Path) -> None:
    refs, _ = two_models(tmp_path)
    plan = plan_of(refs, {"vector": (8,)}, "linear", parameters=MEAN)
    with pytest.raises(MergeError, match=r"with the shape \[8\], but its sources have \[7\]"):
        write_merge(plan, tmp_path / "out")


def test_what_a_plan_does_not_say_is_handed_in(tmp_path: Path) -> None:
    refs, tensors = two_models(tmp_path)
    plan = plan_of(refs[:1], {"tall": (1000, 8)}, "copy")
    given = TensorPlan("router", (2, 3), torch.bfloat16, "copy", ())

    class Reversed:
        shape = (1000, 8)

        def __init__(self, source: Source) -> None:
            self.source = source

        def read(self, start: int, stop: int) -> Tensor:
            return self.source.read(1000 - stop, 1000 - start).flip(0)

    extras = Extras(
        rearranged=lambda _tensor, sources: {k: Reversed(v) for k, v in sources.items()},
        files={"tokenizer.json": b"{}", "additional_chat_templates/tool.jinja": b"x"},
        tensors={"router": torch.arange(6.0).reshape(2, 3)},
    )
    (tmp_path / "m0/vocab.json").write_text("{}")
    plan = replace(plan, tensors=[*plan.tensors, given])
    write_merge(plan, tmp_path / "out", extras=extras)
    found = read(tmp_path / "out")
    assert torch.equal(found["tall"], tensors[0]["tall"].flip(0))
    assert torch.equal(found["router"], torch.arange(6.0).reshape(2, 3).bfloat16())
    assert (tmp_path / "out/additional_chat_templates/tool.jinja").read_bytes() == b"x"
    assert not (tmp_path / "out/vocab.json").exists()  # it would contradict the tokenizer


def test_data_is_aligned_and_the_header_is_pytorchs(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(3), "c": torch.ones(1).half()}
    ref = write_model(tmp_path / "m", tensors)
    plan = MergePlan(
        [TensorPlan(n, tuple(t.shape), t.dtype, "copy", (Operand(ref, n, "m"),))
         for n, t in tensors.items()],
        {ref: tmp_path / "m"}, {"model_type": "llama"}, ref,
    )  # fmt: skip
    write_merge(plan, tmp_path / "out")
    raw = (tmp_path / "out/model.safetensors").read_bytes()
    length = int(np.frombuffer(raw[:8], "<u8")[0])
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    sizes = {"BOOL": 1, "F32": 4, "F16": 2}
    assert all(e["data_offsets"][0] % sizes[e["dtype"]] == 0 for e in header.values())
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert {n: file.get_tensor(n).dtype for n in file.keys()} == {  # noqa: SIM118
            n: t.dtype for n, t in tensors.items()
        }
