"""The files of a brick's folder: read without trust, written whole or not at all.

Only JSON and safetensors are read; nothing is unpickled, and no file outside the folder is opened.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from brickwork.brick.durable import sync_folder
from brickwork.errors import BrickFormatError

_JSON_LIMIT = 8 << 20


def json_bytes(name: str, document: Mapping[str, Any]) -> bytes:
    """The document as a file that ``read_json`` accepts."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    content = (text + "\n").encode()
    _require_short(name, len(content))
    return content


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file; equal tensors give equal bytes, also where they share memory."""
    plain: dict[str, Tensor] = {}
    storages = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage().data_ptr()
        plain[name] = whole.clone() if storage in storages else whole
        storages.add(storage)
    return safetensors.save(plain, metadata={"format": "pt"})


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of the folder.

    Raises:
        BrickFormatError: if the file is missing, leads out of the folder, is too large, or holds
            anything but one JSON object with finite numbers and no field twice.
    """
    content = _content(folder, name, short=True)
    try:
        document = json.loads(
            content, parse_constant=_refuse_constant, object_pairs_hook=_without_repetition
        )
    except (ValueError, RecursionError) as error:
        raise BrickFormatError(f"{folder / name} is not JSON: {error}.") from None
    if not isinstance(document, dict):
        raise BrickFormatError(f"{folder / name} holds no JSON object.")
    return document


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors in a safetensors file of the folder.

    Raises:
        BrickFormatError: if the file is missing, leads out of the folder or is damaged.
    """
    content = _content(folder, name, short=False)
    try:
        return safetensors.load(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise BrickFormatError(f"{folder / name} is not a safetensors file: {error}.") from None


def write_folder(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files as a new folder, in place of one that stood there.

    If anything fails, the old folder stands as it was. If the process is killed between the two
    renames, the old one lies in a folder ``.brickwork-...`` beside it.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=".brickwork-", dir=folder.parent))
    new, old = workshop / "new", workshop / "old"
    try:
        new.mkdir()
        for name, content in files.items():
            _write_durably(new / name, content)
        sync_folder(new)
        _exchange(new, folder, old)
        sync_folder(folder.parent)
    finally:
        if not os.path.lexists(old) or os.path.lexists(folder):
            shutil.rmtree(workshop, ignore_errors=True)


def _exchange(new: Path, folder: Path, old: Path) -> None:
    if os.path.lexists(folder):
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if os.path.lexists(old):
            old.rename(folder)
        raise


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _content(folder: Path, name: str, *, short: bool) -> bytes:
    try:
        path = _inside(folder, name)
        if short:
            _require_short(folder / name, path.stat().st_size)
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # the last: a loop, before Python 3.13
        raise BrickFormatError(f"{folder / name} cannot be read: {error}.") from None


def _inside(folder: Path, name: str) -> Path:
    """The file's path, links resolved; the Hub's cache keeps its files in a folder beside."""
    root, path = folder.resolve(), (folder / name).resolve()
    snapshots = [parent for parent in root.parents if parent.name == "snapshots"]
    allowed = [root, *(parent.parent / "blobs" for parent in snapshots[:1])]
    if not path.is_file():
        raise BrickFormatError(f"{folder} has no file {name!r}.{_hint(folder)}")
    if not any(path.is_relative_to(place) for place in allowed):
        raise BrickFormatError(f"{folder / name} leads out of its folder; refused.")
    return path


def _hint(folder: Path) -> str:
    if (folder / "adapter_model.bin").is_file():
        return (
            " adapter_model.bin is a pickle, which can run any code and is never read; save the "
            "adapter again with PEFT's save_pretrained(..., safe_serialization=True)."
        )
    return ""


def _require_short(name: Path | str, size: int) -> None:
    if size > _JSON_LIMIT:
        raise BrickFormatError(
            f"{name} has {size:,} bytes, more than the {_JSON_LIMIT:,} that a description may have."
        )


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a field is given twice")
    return document
