"""Objects: the folders of bricks, named by their content, and those still on their way.

``objects/ab/abcdef.../`` holds one brick as ``brickwork.brick.folder`` writes it, and never
changes. ``temp/<hash>-<random>/`` is a marker: a brick of that hash may be on its way in or out.
Two laws hold whenever nobody has the catalog's write lock, even if a process was killed: every
row of the catalog has its object, and every object has a row or a marker.
"""

import filecmp
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brickwork.brick.durable import sync_folder
from brickwork.brick.spec import BrickSpec
from brickwork.errors import BrickFormatError, StoreError
from brickwork.store.catalog import FOLDERS
from brickwork.store.entry import HASH_PATTERN, Entry

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick

_MARKER = re.compile(rf"({HASH_PATTERN})-.+")
_OBJECT = re.compile(HASH_PATTERN)
_BRICK = "brick"


class SweptError(Exception):
    """A collection took away what was being written; write it again."""


@dataclass(frozen=True)
class Staged:
    """A brick that is written, synced and read back, but has no row yet."""

    marker: Path
    hash: str
    spec: BrickSpec
    bytes: int
    tags: tuple[str, ...]


class Objects:
    """The object folders of one store."""

    def __init__(self, folder: Path) -> None:
        self._objects, self._temp = (folder / name for name in FOLDERS)

    def path(self, content: str) -> Path:
        """Where the object of that content hash is, or would be."""
        return self._objects / content[:2] / content

    def stage(self, brick: "Brick", tags: tuple[str, ...]) -> Staged:
        """Write the brick beside the objects and read it back.

        Raises:
            SweptError: if a collection took it away meanwhile.
            BrickFormatError: if the brick is not well formed.
            StoreError: if it cannot be written, or does not read back as itself.
        """
        from brickwork.brick.folder import read_brick, write_brick  # noqa: PLC0415 - torch

        marker = self.mark(brick.hash)
        try:
            write_brick(brick, marker / _BRICK)
            back = read_brick(marker / _BRICK)
        except (OSError, BrickFormatError) as error:
            if not marker.exists():
                raise SweptError from error
            self.discard(marker)
            raise _as_store_error(error) from error
        if back != brick:
            self.discard(marker)
            raise StoreError(f"brick {brick.spec.name!r} does not read back as it was written.")
        return Staged(marker, brick.hash, brick.spec, brick.bytes, tags)

    def put(self, staged: Staged) -> None:
        """Move a staged brick to its place; the caller holds the write lock.

        An object that is there stays if it is the same to the byte; a damaged one is replaced.
        """
        fresh, place = staged.marker / _BRICK, self.path(staged.hash)
        if not fresh.exists():
            raise SweptError
        try:
            if place.exists():
                if _same_files(fresh, place):
                    return
                place.rename(staged.marker / "damaged")
            place.parent.mkdir(parents=True, exist_ok=True)
            fresh.rename(place)
            for folder in (place.parent, self._objects, self._objects.parent):
                sync_folder(folder)
        except OSError as error:
            raise _as_store_error(error) from error

    def mark(self, content: str) -> Path:
        """Say that a brick of this content may be on its way."""
        try:
            self._temp.mkdir(exist_ok=True)
            marker = Path(tempfile.mkdtemp(prefix=f"{content}-", dir=self._temp))
            sync_folder(self._temp)
        except OSError as error:
            raise _as_store_error(error) from error
        return marker

    def take_out(self, marker: Path, *, keep: bool) -> Path:
        """Set a marker aside, with its object unless ``keep``; the caller holds the write lock.

        The new place is a marker too, so a kill between the two renames loses nothing. Whoever
        was still writing under the old name finds it gone as a whole.
        """
        aside = marker.with_name(f"{content_of(marker)}-out-{os.urandom(6).hex()}")
        try:
            marker.rename(aside)
        except FileNotFoundError:
            return marker  # its writer is done, or another collection took it
        place = self.path(content_of(marker))
        if not keep and place.exists():
            place.rename(aside / "collected")
            sync_folder(place.parent)
        return aside

    def markers(self, moment: float) -> list[Path]:
        """The markers that nobody has touched since ``moment`` (seconds since the epoch)."""
        found = []
        for path in self._temp.glob("*"):
            try:
                if _MARKER.fullmatch(path.name) and path.stat().st_mtime <= moment:
                    found.append(path)
            except FileNotFoundError:
                continue  # its writer is done
        return sorted(found)

    @staticmethod
    def discard(marker: Path) -> None:
        """Delete a marker with what is in it; what cannot be deleted waits for a collection."""
        shutil.rmtree(marker, ignore_errors=True)

    def discard_unmoved(self, staged: Staged) -> None:
        """Delete the marker of a brick that got no row, unless its object was moved already.

        That object has no row, so the marker must go on saying that it may be there.
        """
        if (staged.marker / _BRICK).exists():
            self.discard(staged.marker)

    def hashes(self) -> Iterator[str]:
        """The content hashes that have an object folder."""
        return (path.name for path in self._objects.glob("??/*") if _OBJECT.fullmatch(path.name))

    def strangers(self) -> list[Path]:
        """What is among the objects but is none."""
        return sorted(
            path
            for path in (*self._objects.glob("*"), *self._objects.glob("??/*"))
            if path != self.path(path.name) and not (path.is_dir() and len(path.name) == 2)
        )

    def is_marked(self, content: str) -> bool:
        """Whether a brick of this content may be on its way."""
        return any(self._temp.glob(f"{content}-*"))

    def read(self, entry: Entry) -> "Brick":
        """The brick of an entry, checked against the hash that the catalog has of it.

        Raises:
            StoreError: if the object is missing, cannot be read, or is of other content.
        """
        from brickwork.brick.folder import read_brick  # noqa: PLC0415 - torch

        place = self.path(entry.hash)
        try:
            brick = read_brick(place)
        except (BrickFormatError, OSError) as error:
            raise _damaged(entry, str(error) if place.is_dir() else f"{place} is missing") from None
        if brick.hash != entry.hash:
            raise _damaged(entry, f"its content has the hash {brick.hash[:12]}")
        return brick

    def problems(self, entry: Entry) -> list[str]:
        """What is wrong with the object of an entry; empty if nothing is."""
        from brickwork.brick.folder import brick_files  # noqa: PLC0415 - torch

        try:
            brick = self.read(entry)
        except StoreError as error:
            return [str(error)]
        found = []
        if brick.spec != entry.spec:
            found.append(f"{entry.reference}: the catalog describes it otherwise than its object")
        names = {path.name for path in self.path(entry.hash).iterdir()}
        strange = sorted(names.symmetric_difference(brick_files(brick)))
        if strange:
            found.append(f"{entry.reference}: its object has other files: {', '.join(strange)}")
        return found

    def size(self, content: str) -> int:
        """Bytes on the disk, 0 if there is no such object."""
        return sum(path.stat().st_size for path in self.path(content).glob("*"))


def content_of(marker: Path) -> str:
    """The content hash that a marker names."""
    match = _MARKER.fullmatch(marker.name)
    assert match, marker
    return match[1]


def _damaged(entry: Entry, problem: str) -> StoreError:
    return StoreError(
        f"the object of {entry.reference} (sha256:{entry.hash[:12]}) is damaged: "
        f"{problem.rstrip('.')}; add the brick again from a copy, and it is mended."
    )


def _same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    if not other.is_dir() or names != sorted(path.name for path in other.iterdir()):
        return False
    _, different, unreadable = filecmp.cmpfiles(one, other, names, shallow=False)
    return not different and not unreadable


def _as_store_error(error: Exception) -> Exception:
    if not isinstance(error, OSError):
        return error
    return StoreError(f"the store could not be written: {error}; see to it and try again.")
