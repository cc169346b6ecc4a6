"""Finding a checkpoint: a folder as it is, a Hub id fetched, and nothing unsafe either way."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from brickwork.errors import ModelError
from brickwork.model import checkpoint
from brickwork.model.checkpoint import find_checkpoint
from brickwork.model.load import load_model
from tests.tiny import tiny_model

ANSWER: Any = SimpleNamespace(headers={}, request=None)


def touch(folder: Path, *files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for file in files:
        (folder / file).touch()
    return folder


class Hub:
    """Stands in for the Hub: gives one folder, and remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None, list[str]]] = []

    def __call__(self, hub_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append((hub_id, revision, allow_patterns))
        return str(self.folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no config.json; a checkpoint is a folder"),
        (["config.json"], "has no weights: neither model.safetensors nor"),
        (["config.json", "pytorch_model.bin"], "only as pytorch_model.bin, and reading those can"),
        (["config.json", "model.safetensors", "adapter_config.json"], "has an adapter beside it"),
        (["config.json", "shard-00000-model-00000-of-00001.safetensors"], "distributed checkpoint"),
    ],
)
def test_an_unsafe_or_empty_folder_is_refused(
    tmp_path: Path, files: Sequence[str], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(str(touch(tmp_path / "m", *files)))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "model.safetensors.index.json is damaged"),
        ('{"weight_map": [1]}', "model.safetensors.index.json is damaged"),
        ('{"weight_map": {"a": "model-1.safetensors"}}', "lacks the weight files model-1.safe"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "names '../x.safetensors', no safetensors"),
        ('{"weight_map": {"a": "model.bin"}}', "names 'model.bin', no safetensors"),
    ],
)
def test_a_bad_index_is_refused(tmp_path: Path, index: str, message: str) -> None:
    folder = touch(tmp_path / "m", "config.json")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=message):
        find_checkpoint(str(folder), None, weights=True)


@pytest.mark.parametrize("name", ["", "./nowhere", "/nowhere", "a/b/c", "~/nowhere", "-x", "a b"])
def test_what_is_neither_a_folder_nor_an_id_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="it is no Hub id either"):
        load_model(name)


def test_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a file; name the folder that holds config\.json"):
        load_model(str(touch(tmp_path, "config.json") / "config.json"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("", response=ANSWER), "only to those who accepted its terms"),
        (RepositoryNotFoundError("", response=ANSWER), "no model of that id that you may see"),
        (RevisionNotFoundError("", response=ANSWER), "has no such revision"),
        (LocalEntryNotFoundError(""), "not on this machine, and the Hub was not reached"),
        (
            OfflineModeIsEnabled("no network"),
            "the Hub could not be read: OfflineModeIsEnabled: no net",
        ),
    ],
)
def test_what_the_hub_refuses_is_said(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> str:
        raise error

    monkeypatch.setattr(checkpoint, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=rf"'org/name' at revision 'v1': .*{message}"):
        load_model("org/name", revision="v1")


def test_a_hub_model_is_fetched_in_one_state_and_named_by_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "commit")
    hub = Hub(tmp_path / "commit")
    monkeypatch.setattr(checkpoint, "snapshot_download", hub)
    assert load_model("org/name", revision="v1").name == "org/name"
    (_, first, small), (_, second, weights) = hub.asked
    assert (first, second, weights) == ("v1", "commit", ["model.safetensors"])
    assert not [pattern for pattern in small if pattern.endswith((".bin", ".safetensors", ".py"))]


def test_of_a_sharded_hub_model_only_its_shards_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "commit", max_shard_size="20KB")
    hub = Hub(tmp_path / "commit")
    monkeypatch.setattr(checkpoint, "snapshot_download", hub)
    find_checkpoint("name", None, weights=True)
    index = json.loads((tmp_path / "commit" / "model.safetensors.index.json").read_text())
    assert hub.asked[1][2] == sorted(set(index["weight_map"].values()))


def test_no_weights_are_fetched_for_an_outline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(touch(tmp_path / "commit", "config.json"))
    monkeypatch.setattr(checkpoint, "snapshot_download", hub)
    find_checkpoint("org/name", None, weights=False)
    assert len(hub.asked) == 1
