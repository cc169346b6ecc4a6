"""The anatomy: its numbers are those of the model, with weights or without them."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from brickwork.cli.main import main
from brickwork.model.anatomy import anatomy
from brickwork.model.load import load_model, outline_model, wrap_model
from brickwork.reference import paths
from tests.tiny import FAMILIES, GROUPED, tiny_model, tiny_tokenizer, unknown_model

WINDOWS = {
    "mistral": [4, 4], "phi3": [4, 4], "gemma2": [4, None], "gemma3_text": [4, None],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_add_up(family: str) -> None:
    model = tiny_model(family)
    document = anatomy(wrap_model(model, name="m"))
    counts = document["parameters"]
    total = counts.pop("total")
    assert total == sum(p.numel() for p in model.parameters()) == sum(counts.values())
    assert counts["other"] == 0
    assert document["bytes"] == 4 * total
    assert document["tied_embeddings"] == (counts["unembed"] == 0)
    assert (document["hidden"], document["vocabulary"]) == (32, 112)
    assert [layer["heads"] for layer in document["layers"]] == [4, 4]
    assert [layer["window"] for layer in document["layers"]] == WINDOWS.get(family, [None, None])
    learned = family in {"gpt2", "opt"}
    assert document["positions"] == {"kind": "learned" if learned else "rotary", "longest": 64}
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize("family", FAMILIES)
def test_an_outline_has_the_same_anatomy(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path / "m")
    whole = anatomy(load_model(str(tmp_path / "m")))
    outline = anatomy(outline_model(str(tmp_path / "m")), fingerprint=False)
    assert outline["fingerprint"] is None
    assert outline == whole | {"fingerprint": None}


def test_layers_that_differ_are_told_apart() -> None:
    dense, sparse = anatomy(wrap_model(tiny_model("qwen3_moe")))["layers"]
    assert (dense["ffn"], dense["neurons"], dense["experts"]) == ("gated", 48, None)
    assert (sparse["ffn"], sparse["neurons"]) == ("moe_gated", 96)
    assert (sparse["experts"], sparse["experts_per_token"]) == (4, 2)


def test_every_kind_of_site_names_the_forms_that_fit() -> None:
    sites = anatomy(wrap_model(tiny_model("llama")))["sites"]
    assert "lora" in sites["linear"]["forms"]
    assert sites["embedding"] == {"forms": ["prompt"], "addresses": ["embed"]}
    assert sites["block"]["addresses"] == ["layers.0", "layers.1"]


def test_an_unknown_family_still_has_an_anatomy() -> None:
    document = anatomy(wrap_model(unknown_model()))
    assert (document["known"], document["layers"]) == (False, None)
    assert len(document["sites"]["linear"]["addresses"]) == 15


def test_model_show_needs_the_configuration_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LlamaConfig(**GROUPED | {"hidden_size": 8192}).save_pretrained(tmp_path / "big")
    assert main(["model", "show", str(tmp_path / "big"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["name"], document["hidden"]) == ("big", 8192)
    assert document["fingerprint"] is None
    assert main(["model", "show", str(tmp_path / "big"), "--fingerprint"]) == 2
    assert "has no weights" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["gemma2", "mixtral", "opt"])
def test_model_show_draws_what_it_knows(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(family).save_pretrained(tmp_path / "a[red]b")
    assert main(["model", "show", str(tmp_path / "a[red]b"), "--fingerprint"]) == 0
    shown = capsys.readouterr().out
    known = {
        "gemma2": ["4 tokens", "all tokens"],
        "mixtral": ["192 in 4"],
        "opt": ["learned, up to 64"],
    }
    assert all(words in shown for words in ["a[red]b", "lora, ia3", *known[family]])


def test_model_show_knows_the_embedded_model_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(paths, "model_folder", lambda: tmp_path / "model")
    assert main(["model", "show", "reference", "--fingerprint", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == document["fingerprint"]["name"] == "reference"
    assert document["fingerprint"]["tokenizer"]


def test_model_show_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "show", "./nowhere"]) == 2
    assert "there is no folder './nowhere'" in capsys.readouterr().err
