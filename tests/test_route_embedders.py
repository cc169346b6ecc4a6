"""Sentence embedders: from local folders, and packaged weights only if they were published."""

import hashlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from brickwork.errors import DataError, MissingExtraError
from brickwork.route import embedders
from brickwork.route.embedders import SentenceEmbedder, has_minilm, packaged_minilm, unit


class FakeModel:
    def __init__(self, folder: str, **options: Any) -> None:
        assert options == {
            "device": "cpu", "local_files_only": True, "trust_remote_code": False,
        }  # fmt: skip

    def encode(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        return np.array([[len(text), 3.0] for text in texts])


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("sentence_transformers")
    module.__spec__ = ModuleSpec("sentence_transformers", None)
    module.SentenceTransformer = FakeModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return module


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: ModuleType) -> Path:
    """A package like the real one, whose own code must not run."""
    folder = tmp_path / embedders.PACKAGE
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('the package was run')\n")
    (folder / "model" / "modules.json").write_text("[]")
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def model_folder(path: Path, weights: bytes = b"w") -> Path:
    path.mkdir()
    (path / "modules.json").write_text("[]")
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_unit_rows_have_length_one_and_zeros_stay_zeros() -> None:
    rows = unit(np.array([[3, 4], [0, 0], [1e-30, 0]], np.float64))
    assert rows.dtype == np.float32
    assert rows.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0], [1, 0]]


def test_rows_are_the_models_at_length_one(tmp_path: Path, library: ModuleType) -> None:
    embedder = SentenceEmbedder(model_folder(tmp_path / "m"))
    assert embedder.embed(["four", ""]).tolist() == [
        [pytest.approx(0.8), pytest.approx(0.6)],
        [0, 1],
    ]
    assert not embedder.fitted


def test_the_id_depends_on_what_the_model_reads_not_on_where_it_lies(
    tmp_path: Path, library: ModuleType
) -> None:
    one, same = (SentenceEmbedder(model_folder(tmp_path / name)) for name in ("a", "b"))
    (tmp_path / "b" / "README.md").write_text("not read")
    assert one.id == same.id == SentenceEmbedder(tmp_path / "b").id
    assert one.id != SentenceEmbedder(model_folder(tmp_path / "c", b"v")).id
    (tmp_path / "b" / "config.json").write_text("{}")
    assert one.id != SentenceEmbedder(tmp_path / "b").id


def test_refuses_what_is_no_model_folder(tmp_path: Path, library: ModuleType) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", "all-MiniLM-L6-v2"):
        with pytest.raises(DataError, match=r"has no modules\.json\); nothing is downloaded here"):
            SentenceEmbedder(folder)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "find_spec", lambda _: None)
    assert not has_minilm()
    with pytest.raises(MissingExtraError, match=r"brickwork\[embed\]"):
        SentenceEmbedder(model_folder(tmp_path / "m"))
    with pytest.raises(MissingExtraError, match=r"packaged MiniLM .*brickwork\[embed\]"):
        packaged_minilm()


def test_packaged_weights_that_were_not_published_are_refused(package: Path) -> None:
    assert has_minilm()
    found = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(DataError, match=f"is refused: its model.safetensors has sha256 {found}"):
        packaged_minilm()
    (package / "model" / "model.safetensors").unlink()
    with pytest.raises(DataError, match="has sha256 no such file"):
        packaged_minilm()


def test_packaged_weights_that_were_published_are_used(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedders, "MINILM_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert packaged_minilm().embed(["four"]).shape == (1, 2)


@pytest.mark.skipif(not has_minilm(), reason="the extra embed is not installed")
def test_the_packaged_minilm_knows_that_rain_is_weather() -> None:
    minilm = packaged_minilm()
    rain, weather, loan = minilm.embed(["It rains.", "What a wet day.", "Interest on a loan"])
    assert rain @ weather > rain @ loan + 0.2
    assert minilm.embed(["It rains."])[0] == pytest.approx(rain, abs=1e-5)  # padding rounds
