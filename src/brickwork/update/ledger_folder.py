"""A ledger on disk: ``ledger.json`` says which edits there are, each in a folder beside it.

A change is made in this order: new folders are written, ``ledger.json`` is replaced, old folders
go. A process killed in between leaves the old state or the new one, and perhaps a folder that no
entry names. The next change clears it away, if it is known to be revoked; else it is left alone,
for it may be somebody's work. One process changes a ledger at a time.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from brickwork.brick.base import Fingerprint
from brickwork.brick.durable import write_file
from brickwork.brick.files import json_bytes, read_json
from brickwork.brick.spec import explain
from brickwork.errors import BrickFormatError, EditError

LEDGER, _LOCK = "ledger.json", "lock"
_PATIENCE, _PAUSE = 30.0, 0.02  # seconds; a change takes far less than one
# An id is also a folder's name, so it holds no separator and no point.
_ID = r"[0-9]{4,9}-[a-z0-9]+(?:-[a-z0-9]+)*"
_EDIT_FOLDER = re.compile(rf"({_ID})(?:\.([1-9][0-9]{{0,8}}))?")

State = Literal["applied", "disabled"]
EditId = Annotated[str, StringConstraints(pattern=rf"^{_ID}\z", max_length=80)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Entry(_Document):
    """One edit of a ledger."""

    id: EditId
    state: State
    hash: Hash
    """Of the brick."""
    record: Hash
    """sha256 of its ``edit.json``, which names the hashes of the other files."""
    added: AwareDatetime
    revision: int = Field(0, ge=0, lt=10**9)
    """How often a fact was taken out of it."""

    @property
    def folder(self) -> str:
        """The name of its folder in the ledger's."""
        return _folder(self.id, self.revision)


class Revocation(_Document):
    """What was taken out for good: an edit, or a fact of one, and when."""

    id: EditId
    hash: Hash
    """Of the edit's brick as it was before."""
    facts: tuple[str, ...]
    """Names of the facts that went; none if the edit was damaged."""
    whole: bool
    """Whether the edit went with them."""
    revision: int = Field(0, ge=0, lt=10**9)
    when: AwareDatetime

    @property
    def folder(self) -> str:
        """The name of the folder that the edit had before."""
        return _folder(self.id, self.revision)


class LedgerDocument(_Document):
    """What ``ledger.json`` says."""

    format: Literal[1] = 1
    base: Fingerprint
    entries: tuple[Entry, ...] = ()
    history: tuple[Revocation, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> "LedgerDocument":
        numbers = [number_of(entry.id) for entry in self.entries]
        if numbers != sorted(set(numbers)):
            raise ValueError("its entries are not in the order of their numbers")
        gone = {line.id for line in self.history if line.whole}
        if gone.intersection(entry.id for entry in self.entries):
            raise ValueError("an entry is at the same time revoked")
        return self

    @property
    def ids(self) -> set[str]:
        """Of every edit that it has or had."""
        return {entry.id for entry in self.entries} | {line.id for line in self.history}

    @property
    def by_hash(self) -> Mapping[str, Sequence[str]]:
        """The edits whose bricks have, or had, a hash: one, unless a revoked one came again."""
        found: dict[str, list[str]] = {}
        lines = [(line.hash, line.id) for line in self.history]
        for content, id in [*lines, *((entry.hash, entry.id) for entry in self.entries)]:
            found.setdefault(content, []).append(id)
        return found


def line_of(entry: Entry, facts: tuple[str, ...], *, whole: bool) -> Revocation:
    """What the history says of an edit, or of facts of it, that go."""
    return Revocation(
        id=entry.id,
        hash=entry.hash,
        facts=facts,
        whole=whole,
        revision=entry.revision,
        when=datetime.now(UTC),
    )


def number_of(id: str) -> int:
    """The place in the order that an id begins with."""
    return int(id.partition("-")[0])


def next_number(folder: Path, document: LedgerDocument) -> int:
    """A number that no edit has or had, and no folder either."""
    used = [*document.ids]
    used += [match[1] for path in folder.iterdir() if (match := _EDIT_FOLDER.fullmatch(path.name))]
    return max(map(number_of, used), default=0) + 1


def read_document(folder: Path) -> LedgerDocument:
    """What the ledger in a folder says.

    Raises:
        EditError: if there is none, or it is not what it should be.
    """
    try:
        return LedgerDocument.model_validate(read_json(folder, LEDGER))
    except BrickFormatError as error:
        raise EditError(
            f"{str(folder)!r} was opened as a ledger of edits, but {error} Name the folder of a "
            "ledger, or create one."
        ) from None
    except ValidationError as error:
        raise EditError(
            f"{folder / LEDGER} is no ledger of edits: {explain(error)}; take it from a copy."
        ) from None


def document_bytes(document: LedgerDocument) -> bytes:
    """``ledger.json`` as a file.

    Raises:
        EditError: if it would be longer than one that can be read.
    """
    try:
        return json_bytes(LEDGER, document.model_dump(mode="json"))
    except BrickFormatError as error:
        raise EditError(
            f"the ledger has no room for {len(document.entries)} edits and what was revoked: "
            f"{error} Put more facts into one edit, or bake some into a checkpoint."
        ) from None


def write_document(folder: Path, document: LedgerDocument) -> None:
    """Let the ledger say this from now on; a killed process leaves the old document or the new."""
    write_file(folder / LEDGER, document_bytes(document))


@contextmanager
def locked(folder: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Inside, no other process and no other thread changes the ledger.

    Args:
        folder: the ledger's.
        patience: seconds to wait for another one that is changing it.

    Raises:
        EditError: if it takes longer, or the folder cannot be written.
    """
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise EditError(
            f"the ledger {str(folder)!r} was to be changed, but it cannot be written: {error}; "
            "see to it, or work on a copy."
        ) from None
    try:
        _acquire(handle, folder, patience)
        yield
    finally:
        os.close(handle)


def clear_leftovers(folder: Path, document: LedgerDocument) -> None:
    """Delete what killed processes left half done; the caller has the lock."""
    kept = {entry.folder for entry in document.entries}
    edits = {line.id for line in document.history if line.whole}
    parts = {line.folder for line in document.history if not line.whole} - kept
    for path in folder.iterdir():
        match = _EDIT_FOLDER.fullmatch(path.name)
        revoked = match is not None and (match[0] in parts or match[1] in edits)
        if revoked or path.name.startswith((".brickwork-", f".{LEDGER}.")):
            discard(path)


def discard(path: Path) -> None:
    """Delete a folder or a file, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # what cannot go now goes with a later change
    else:
        path.unlink(missing_ok=True)


def _folder(id: str, revision: int) -> str:
    return id if revision == 0 else f"{id}.{revision}"


def _acquire(handle: int, folder: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                break
        time.sleep(_PAUSE)
    raise EditError(
        f"another process has been changing the ledger {str(folder)!r} for more than "
        f"{patience:g} seconds; wait for it, or end it, and try again."
    )
