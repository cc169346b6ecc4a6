"""Brick: what its hash sees and what it does not see."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from brickwork.brick.base import Base
from brickwork.brick.brick import Brick, canonical_json
from tests.bricks import FORMS, paper_base, random_brick

BASE = paper_base()


def brick(seed: int = 0, form: str = "lora", base: Base = BASE, **kw: Any) -> Brick:
    return random_brick(form, base, torch.Generator().manual_seed(seed), **kw)


def with_tensors(one: Brick, tensors: dict[str, Tensor]) -> Brick:
    return Brick(one.spec, tensors)


@pytest.mark.parametrize("form", FORMS)
def test_equal_content_gives_equal_hashes_however_it_lies_in_memory(form: str) -> None:
    one = brick(form=form)
    reversed_order = dict(reversed([(n, t.clone()) for n, t in one.tensors.items()]))
    spread = {n: torch.stack([t, t], dim=-1)[..., 0] for n, t in one.tensors.items()}
    trained = {n: torch.nn.Parameter(t) for n, t in one.tensors.items()}
    whole = torch.cat([t.reshape(-1) for t in one.tensors.values()])
    shared, start = {}, 0
    for name, tensor in one.tensors.items():
        shared[name] = whole[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    for tensors in (reversed_order, spread, trained, shared):
        other = with_tensors(one, dict(tensors))
        assert other == one
        assert len({other, one}) == 1
        assert list(other.by_site) == list(one.by_site)


@pytest.mark.parametrize("form", FORMS)
def test_any_changed_bit_changes_the_hash(form: str) -> None:
    one = brick(form=form)
    for name, tensor in one.tensors.items():
        bits = tensor.clone()
        bits.view(torch.int32).reshape(-1)[-1] ^= 1
        assert with_tensors(one, {**one.tensors, name: bits}) != one


def test_the_hash_sees_name_dtype_and_shape() -> None:
    plain = brick(sites=["model.layers.0.self_attn.q_proj"])
    name, tensor = "model.layers.0.self_attn.q_proj/A", torch.zeros(2, 8)
    others = [
        {name: tensor},
        {name: tensor.reshape(4, 4)},
        {name: tensor.reshape(-1)},
        {name: tensor.to(torch.float16)},
        {name: tensor.to(torch.bfloat16)},
        {name.replace("0", "1"): tensor},
        {name: torch.zeros(0, 8)},
        {name: torch.zeros(8, 0)},
        {name: torch.tensor(0.0)},
        {name: -tensor},
        {},
    ]
    assert len({with_tensors(plain, tensors).hash for tensors in others}) == len(others)


def test_no_name_can_pass_for_the_bytes_of_another_tensor() -> None:
    spec = brick().spec
    value = torch.tensor([1.5])
    raw = bytes(value.view(torch.uint8).tolist()).decode("latin-1")
    for header in ("{0} float32 [1]\n", '["{0}","float32",[1]]', "\n{0} float32 [1]\n"):
        names = ["a", "b"]
        joined = header.format("a")[:-1] + raw + header.format("b")[1:]
        assert Brick(spec, dict.fromkeys(names, value)) != Brick(spec, {joined: value})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_has_a_hash_and_a_size(dtype: torch.dtype) -> None:
    one = brick(dtype=dtype)
    assert len(one.hash) == 64
    assert one.bytes == sum(t.numel() * t.itemsize for t in one.tensors.values())
    assert one != brick()


def test_the_hash_sees_every_field_of_the_spec() -> None:
    one = brick()
    changes: dict[str, Any] = {
        "name": "other",
        "form": "ia3",
        "base": paper_base(weights="weights-2").fingerprint,
        "sites": (*one.spec.sites, "x"),
        "options": {"alpha": 9.0},
        "origin": "emergent",
        "granularity": "layer",
        "function": one.spec.function.model_copy(update={"text": "French"}),
        "lineage": one.spec.lineage.model_copy(update={"parents": ("0" * 64,)}),
        "licence": "apache-2.0",
        "metrics": ({"name": "loss", "after": 1.0},),
        "peft": {},
    }
    assert set(changes) == set(type(one.spec).model_fields)
    hashes = {
        Brick(type(one.spec)(**{**dict(one.spec), field: value}), one.tensors).hash
        for field, value in changes.items()
    }
    assert len(hashes | {one.hash}) == len(changes) + 1


def test_a_brick_equals_nothing_but_a_brick() -> None:
    assert brick() != brick().hash


texts = st.text(max_size=5)
leaves = st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | texts
documents = st.dictionaries(texts, leaves | st.dictionaries(texts, leaves, max_size=3), max_size=4)


@given(documents)
def test_canonical_json_does_not_depend_on_the_order_of_fields(document: dict[str, Any]) -> None:
    turned = dict(reversed(document.items()))
    assert canonical_json(turned) == canonical_json(document)
    assert json.loads(canonical_json(document)) == document


def test_canonical_json_has_no_word_for_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})
