"""An edit on disk: a folder that holds its brick, its record and its keys.

``brick/`` is a brick's folder, for a linear edit also a PEFT adapter. ``edit.json`` is the record,
with the hashes of the brick and of ``keys.safetensors``.
"""

import hashlib
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from brickwork.brick.check import fingerprint_misfits, problems
from brickwork.brick.durable import require_free, sync_folder, write_file
from brickwork.brick.files import json_bytes, read_json, read_tensors, tensor_bytes
from brickwork.brick.folder import brick_files, read_brick, write_brick
from brickwork.brick.spec import explain
from brickwork.errors import BrickFormatError, EditError, listed
from brickwork.update.edit import Edit, EditRecord
from brickwork.update.parts import row_axes

BRICK, RECORD, KEYS = "brick", "edit.json", "keys.safetensors"
_HASH = re.compile(r"[0-9a-f]{64}")


def edit_problems(edit: Edit) -> list[str]:
    """What is wrong with an edit in itself, the model aside; empty if nothing is."""
    found, record = list(problems(edit.brick)), edit.record
    if found:  # no shape can be relied on
        return found
    found += fingerprint_misfits(edit.brick.spec.base, record.base)
    times = Counter(fact.id for fact in record.facts)
    found += [
        f"the fact {one!r} is in it {count} times" for one, count in times.items() if count > 1
    ]
    if not times:
        found.append("it teaches no fact")
    found += [
        f"it depends on {one[:80]!r}, which is no brick's hash"
        for one in record.depends_on
        if not _HASH.fullmatch(one)
    ]
    return found + _owner_problems(edit) + _key_problems(edit)


def write_edit(edit: Edit, folder: Path) -> None:
    """Write the edit as a new folder, all of it or nothing.

    Raises:
        EditError: if the edit is not sound, or the place is taken.
    """
    _require_sound(edit, f"the edit for {str(folder)!r}")
    require_free(folder, "an edit", EditError)
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=".brickwork-", dir=folder.absolute().parent))
    try:
        new = workshop / "new"
        new.mkdir()
        write_brick(edit.brick, new / BRICK)
        keys = tensor_bytes(edit.keys)
        write_file(new / KEYS, keys)
        hashes = {"brick": edit.brick.hash, "keys": hashlib.sha256(keys).hexdigest()}
        record = edit.record.model_dump(mode="json")
        write_file(new / RECORD, json_bytes(RECORD, {**hashes, **record}))
        new.rename(folder)
        sync_folder(folder.parent)
    except BrickFormatError as error:
        raise EditError(f"the edit for {str(folder)!r} cannot be written: {error}") from None
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def read_edit(folder: Path, id: str = "") -> Edit:
    """The edit of a folder that ``write_edit`` wrote, checked against its hashes.

    Args:
        folder: where it is.
        id: its name in the ledger.

    Raises:
        EditError: if a file is missing, damaged, changed or not what it should be.
    """
    try:
        document = read_json(folder, RECORD)
        wanted = {name: document.pop(name, None) for name in ("brick", "keys")}
        record = EditRecord.model_validate(document)
        edit = Edit(read_brick(folder / BRICK), record, read_tensors(folder, KEYS), id)
    except BrickFormatError as error:
        raise EditError(f"{folder} holds no edit that can be read: {error}") from None
    except ValidationError as error:
        raise EditError(
            f"{folder / RECORD} does not describe an edit: {explain(error)}; take it from a copy, "
            "or plan the edit again."
        ) from None
    found = {"brick": edit.brick.hash, "keys": file_hash(folder / KEYS)}
    for name, value in found.items():
        if wanted[name] != value:
            raise EditError(
                f"the {name} in {folder} should have the hash {str(wanted[name])[:12]} by its "
                f"{RECORD}, but it has {value[:12]}; take the folder from a copy, or plan the "
                "edit again."
            )
    _require_sound(edit, str(folder))
    return edit


def changed_files(folder: Path, edit: Edit) -> list[str]:
    """The files of an edit's folder, read before, that are not byte for byte what was written."""
    written = {f"{BRICK}/{name}": content for name, content in brick_files(edit.brick).items()}
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
    return [
        *(
            f"{name} is of other content"
            for name, content in sorted(written.items())
            if name in there and (folder / name).read_bytes() != content
        ),
        *(f"{name} is missing" for name in sorted({*written, RECORD, KEYS} - there)),
        *(f"{name} does not belong there" for name in sorted(there - {*written, RECORD, KEYS})),
    ]


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hex.

    Raises:
        EditError: if it cannot be read, or is there no more.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise EditError(f"{path} cannot be read: {error}; take it from a copy.") from None


def _require_sound(edit: Edit, what: str) -> None:
    found = edit_problems(edit)
    if found:
        raise EditError(
            f"{what} is not sound:{listed(found)}\nplan the edit again, or take it from a copy."
        )


def _owner_problems(edit: Edit) -> list[str]:
    owners, facts = edit.record.owners, len(edit.record.facts)
    if owners is None:
        return []
    axes, form = row_axes(edit.brick), edit.brick.spec.form
    if not axes:
        return [f"its rows have owners, but no rows of a brick of the form {form} can be a fact's"]
    sizes = {name: edit.brick.tensors[name].shape[axis] for name, axis in axes.items()}
    found = [
        f"{name}: has {size} rows, but {len(owners)} have owners"
        for name, size in sizes.items()
        if size != len(owners)
    ]
    return found + [
        f"row {row} is for fact {owner}, but there are {facts} facts, from 0"
        for row, owner in enumerate(owners)
        if not 0 <= owner < facts
    ]


def _key_problems(edit: Edit) -> list[str]:
    found = []
    for site, keys in edit.keys.items():
        rows, slots = len(edit.record.facts), edit.brick.by_site.get(site)
        if slots is None:
            found.append(f"it has keys at {site!r}, where its brick has no tensors")
        elif keys.dim() != 2 or len(keys) != rows:
            found.append(
                f"{site}: keys of shape {list(keys.shape)}, but {rows} facts need a row each"
            )
        elif "A" in slots and keys.shape[1] != slots["A"].shape[1]:
            found.append(
                f"{site}: keys of {keys.shape[1]} numbers, but {slots['A'].shape[1]} go in there"
            )
        elif not _finite(keys):
            found.append(f"{site}: keys that are no finite numbers")
    return found


def _finite(keys: Tensor) -> bool:
    return keys.is_floating_point() and bool(torch.isfinite(keys).all())
