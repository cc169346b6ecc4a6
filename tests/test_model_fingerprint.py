"""A fingerprint: the same base in another dtype, another base after one changed value."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import ByT5Tokenizer

from brickwork.errors import ModelError
from brickwork.model import fingerprint as module
from brickwork.model.fingerprint import (
    fingerprint,
    named_tensors,
    tokenizer_hash,
    weights_hash,
)
from brickwork.model.load import load_model, outline_model
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_dtype_does_not_matter(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    wide = load_model(str(tmp_path), dtype="float32").base.fingerprint
    narrow = load_model(str(tmp_path), dtype="bfloat16")
    assert narrow.dtype == torch.bfloat16
    assert narrow.base.fingerprint == wide
    narrow.model.save_pretrained(tmp_path / "bfloat16")
    back = load_model(str(tmp_path / "bfloat16"), dtype="float32", name=tmp_path.name)
    assert back.dtype == torch.float32
    assert back.base.fingerprint == wide


def test_weights_hash_equals_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {
        "b": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
        "a": torch.tensor(3),
        "c": torch.arange(12.0).reshape(3, 4).T,
        "d": torch.empty(0),
    }
    digests = {}
    for name, tensor in tensors.items():
        values = tensor.to(torch.bfloat16).view(torch.int16) if name != "a" else tensor
        raw = b"".join(
            value.to_bytes(2 if name != "a" else 8, "little", signed=True)
            for value in values.flatten().tolist()
        )
        digests[name] = hashlib.sha256(raw).hexdigest()
    text = json.dumps(digests, sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert weights_hash(tensors) == expected
    monkeypatch.setattr(module, "_CHUNK", 2)
    assert weights_hash(tensors) == expected


def test_one_value_more_than_rounding_makes_another_base() -> None:
    model = tiny_model("llama")
    before = fingerprint(model, None, "")
    weight = model.get_parameter("model.layers.1.mlp.down_proj.weight")
    with torch.no_grad():
        weight[3, 5] = 1.0
        one = fingerprint(model, None, "")
        weight[3, 5] += 2**-10  # less than half a step of bfloat16
        nearly_one = fingerprint(model, None, "")
        weight[3, 5] += 2**-7
    assert one.weights != before.weights
    assert nearly_one == one
    assert fingerprint(model, None, "").weights != one.weights
    assert one.shapes == before.shapes
    assert before == fingerprint(tiny_model("llama"), None, "")


def test_names_and_tying_count() -> None:
    tied, untied = tiny_model("qwen2"), tiny_model("llama")
    assert "lm_head.weight" in named_tensors(untied)
    assert "lm_head.weight" not in named_tensors(tied)
    with torch.no_grad():
        tied.get_input_embeddings().weight[0, 0] += 1
    assert fingerprint(tied, None, "").weights != fingerprint(tiny_model("qwen2"), None, "").weights


def test_rotary_frequencies_do_not_count() -> None:
    model = tiny_model("llama")
    before = fingerprint(model, None, "")
    rotary = model.model.rotary_emb
    rotary.register_buffer("inv_freq", rotary.inv_freq.clone() + 1, persistent=True)
    assert "model.rotary_emb.inv_freq" in model.state_dict()
    assert fingerprint(model, None, "") == before
    rotary.register_buffer("table", torch.ones(2), persistent=True)
    assert fingerprint(model, None, "").shapes != before.shapes


def test_the_state_of_padding_does_not_count(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "an apple"], padding=True, truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert tokenizer_hash(tokenizer) == before
    tokenizer.add_tokens(["apple"])
    assert tokenizer_hash(tokenizer) != before


def test_a_tokenizer_without_a_backend_has_a_hash_too() -> None:
    assert not hasattr(ByT5Tokenizer(), "backend_tokenizer")
    assert tokenizer_hash(ByT5Tokenizer()) == tokenizer_hash(ByT5Tokenizer())
    assert tokenizer_hash(ByT5Tokenizer()) != tokenizer_hash(ByT5Tokenizer(extra_ids=3))


def test_an_outline_has_no_fingerprint(tmp_path: Path) -> None:
    tiny_model("llama").config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no weights to fingerprint \(21 of 21 tensors"):
        _ = outline_model(str(tmp_path)).base
