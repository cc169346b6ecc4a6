"""Loading: to the bit what was saved, and a clear refusal of everything else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from brickwork.errors import ModelError
from brickwork.model.load import load_model, outline_model, wrap_model
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer, unknown_model

IDS = torch.arange(2, 26).reshape(2, 12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model with its tokenizer, to be damaged."""
    tiny_model("llama").save_pretrained(tmp_path / "saved")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | changes))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_saved_model_comes_back_to_the_bit(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / family)
    loaded = load_model(str(tmp_path / family))
    assert torch.equal(loaded.model(IDS).logits, model(IDS).logits)
    assert loaded.base == wrap_model(model, name=family).base
    assert loaded.architecture is not None
    assert (loaded.name, loaded.tokenizer) == (family, None)
    assert (loaded.device.type, loaded.dtype) == ("cpu", torch.float32)
    assert not loaded.model.training


def test_the_tokenizer_comes_along_unless_it_is_not_wanted(folder: Path) -> None:
    loaded = load_model(str(folder))
    assert loaded.tokenizer is not None
    assert loaded.tokenizer("the ant").input_ids == tiny_tokenizer()("the ant").input_ids
    own = wrap_model(tiny_model("llama"), tiny_tokenizer(), "saved")
    assert own.base.fingerprint == loaded.base.fingerprint
    assert load_model(str(folder), tokenizer=False).tokenizer is None


def test_dtype_and_name_are_as_asked_for(folder: Path) -> None:
    loaded = load_model(str(folder), dtype="bfloat16", name="mine")
    assert (loaded.dtype, loaded.name) == (torch.bfloat16, "mine")
    assert loaded.base.fingerprint.name == "mine"


def test_a_wrapped_model_is_the_same_object_in_the_same_mode() -> None:
    model = tiny_model("gpt2").train()
    assert wrap_model(model).model is model
    assert model.training
    assert wrap_model(unknown_model()).architecture is None


def test_sharded_weights_are_loaded(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(load_model(str(tmp_path)).model(IDS).logits, model(IDS).logits)


def test_an_outline_needs_the_configuration_alone(tmp_path: Path) -> None:
    tiny_model("llama").config.save_pretrained(tmp_path)
    outline = outline_model(str(tmp_path), dtype="bfloat16")
    assert (outline.device.type, outline.dtype) == ("meta", torch.bfloat16)
    shapes = {name: p.shape for name, p in outline.model.named_parameters()}
    assert shapes == {name: p.shape for name, p in tiny_model("llama").named_parameters()}


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_cannot_name_code_on_the_hub(folder: Path, key: str) -> None:
    edit_config(folder, **{key: "someone/kernel"})
    assert load_model(str(folder)).model.config._attn_implementation == "sdpa"
    assert outline_model(str(folder)).model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"1 missing: model\.norm\.weight"),
        (lambda w: w.update({"extra.weight": torch.ones(2)}), "1 unexpected: extra.weight"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(2)}),
            r"1 mismatched: model\.norm\.weight \[2\], not \[32\]",
        ),
    ],
)
def test_weights_that_are_not_the_models_are_refused_by_name(
    folder: Path, edit: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    edit_weights(folder, edit)
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "of the type 'lama', which this version of transformers does not"),
        (
            {"model_type": "lama", "auto_map": {"AutoModelForCausalLM": "evil.Model"}},
            "code that comes with a model is never run",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'quantization_config'"),
        ({"transformers_weights": "adapter_model.bin"}, "'transformers_weights'"),
        ({"num_attention_heads": 0}, "could not read the configuration .*ZeroDivisionError"),
        ({"model_type": "t5"}, "could not load the weights of .*ValueError"),
    ],
)
def test_a_bad_configuration_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "[1]", "config.json of the model .* is damaged"),
        ("model.safetensors", "\xff" * 100, "could not load the weights of .*SafetensorError"),
        ("tokenizer.json", "{}", "could not load the tokenizer of"),
    ],
)
def test_a_damaged_file_is_refused(folder: Path, file: str, content: str, message: str) -> None:
    (folder / file).write_text(content, encoding="latin-1")
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"dtype": "int8"}, "'int8' is not one of auto, float32, bfloat16, float16"),
        ({"device": "meta"}, "the device 'meta' cannot be used here"),
        ({"device": "abacus"}, "the device 'abacus' cannot be used here"),
        ({"revision": "main"}, "is a local folder, so it has no revision 'main'"),
    ],
)
def test_what_cannot_be_done_here_is_refused(
    folder: Path, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(str(folder), **how)


def test_transformers_is_quiet_and_left_as_it_was(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    capfd.readouterr()
    load_model(str(folder))
    edit_weights(folder, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(ModelError):
        load_model(str(folder))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
