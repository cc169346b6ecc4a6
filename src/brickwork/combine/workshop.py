"""A merge in the making: sized files beside the target, and a journal of what is safe on disk.

A killed run leaves nothing at the target. The next run of the same merge goes on where it stopped;
another merge to the same place begins anew. Two at once are refused.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from brickwork.brick.durable import require_free, sync_folder, write_file
from brickwork.errors import MergeError
from brickwork.model.shard_layout import ShardLayout

_KEY, _JOURNAL, _LOCK, _NEW = "key", "journal", "lock", "new"
_ATTEMPTS = 10


class Workshop:
    """The folder in which a merge is made; get one by ``open_workshop``.

    Attributes:
        new: what will be the target.
        finished: tensors that an earlier run has made.
        whole: whether all is made but for the name.
    """

    def __init__(self, place: Path, key: str, layout: ShardLayout) -> None:
        self.place, self.new = place, place / _NEW
        self._layout = layout
        self._unsynced: list[str] = []
        self.whole = False
        self.finished = self._finished(key)
        if self.finished:
            self._go_on()
        else:
            self._begin(key)

    def done(self, names: Iterable[str]) -> None:
        """Note tensors whose bytes are written; they are safe after the next ``sync``."""
        self._unsynced += names

    def sync(self) -> None:
        """Make the noted tensors durable, and only then say so in the journal."""
        for file in sorted({self._layout.places[name].file for name in self._unsynced}):
            sync_file(self.new / file)
        with (self.place / _JOURNAL).open("a", encoding="utf-8") as journal:
            journal.writelines(json.dumps(name) + "\n" for name in self._unsynced)
            journal.flush()
            os.fsync(journal.fileno())
        self._unsynced = []

    def publish(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """Make all tensors durable, add the small files, and give the whole its name."""
        self.sync()  # so that nothing of it is lost if the rest fails
        for file in self._layout.sizes:
            sync_file(self.new / file)
        for name, content in files.items():
            path = self.new / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            sync_file(path)
        for inner in {(self.new / name).parent for name in files}:
            sync_folder(inner)
        sync_folder(self.new)
        self.whole = True
        require_free(folder, "a model", MergeError)
        self.new.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(self.place, ignore_errors=True)

    def _finished(self, key: str) -> set[str]:
        """What the journal of an earlier run of the same merge says, if its files are there."""
        try:
            same = (self.place / _KEY).read_text("utf-8") == key
            whole = same and all(
                (self.new / file).stat().st_size == size
                for file, size in self._layout.sizes.items()
            )
            journal = (self.place / _JOURNAL).read_text("utf-8", "replace") if whole else ""
        except FileNotFoundError:
            return set()
        # A line that a kill has cut short is no name's.
        names = {json.dumps(name): name for name in self._layout.places}
        return {names[line] for line in journal.split("\n") if line in names}

    def _go_on(self) -> None:
        """Mend what a kill or a power failure has left: half a line, a header that was lost."""
        self._write_headers()
        lines = "".join(json.dumps(name) + "\n" for name in sorted(self.finished))
        write_file(self.place / _JOURNAL, lines.encode())

    def _begin(self, key: str) -> None:
        (self.place / _KEY).unlink(missing_ok=True)
        (self.place / _JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir()
        self._require_room()
        for file, size in self._layout.sizes.items():
            with (self.new / file).open("xb") as stream:
                self._reserve(stream, size)
        self._write_headers()
        sync_folder(self.new)
        write_file(self.place / _KEY, key.encode())

    def _write_headers(self) -> None:
        for file, header in self._layout.headers.items():
            with (self.new / file).open("r+b") as stream:
                stream.write(header)

    def _require_room(self) -> None:
        needed, free = sum(self._layout.sizes.values()), shutil.disk_usage(self.place).free
        if needed > free:
            raise MergeError(
                f"the merge needs {needed:,} bytes where it is to be written, and {free:,} are "
                "free there; make room, or name a folder on another disk."
            )

    def _reserve(self, stream: BufferedWriter, size: int) -> None:
        """Take the room now, so that a full disk shows before the work and not at its end."""
        if not hasattr(os, "posix_fallocate"):
            stream.truncate(size)
            return
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            raise MergeError(
                f"no room could be reserved for a file of {size:,} bytes ({error.strerror}); "
                "make room, or name a folder on another disk."
            ) from None


@contextmanager
def open_workshop(folder: Path, key: str, layout: ShardLayout) -> Iterator[Workshop]:
    """A workshop for the merge that is to be at ``folder``, which must be free.

    What is in it stays if the work is interrupted or fails, and goes if the merge is refused.

    Args:
        folder: the target.
        key: what identifies the merge; equal keys mean equal bytes.
        layout: of the weights.

    Raises:
        MergeError: if the target is taken, another run is at work there, room is missing, or the
            place cannot be written to.
    """
    folder = folder.absolute()
    place = folder.parent / f".brickwork-merge-{folder.name}"
    try:
        require_free(folder, "a model", MergeError)
        lock = _lock(place, folder)
        try:
            yield from _kept_if_of_use(place, folder, key, layout)
        finally:
            os.close(lock)
    except OSError as error:
        raise MergeError(
            f"the merge to {str(folder)!r} stopped ({error}); mend that, and the same call goes on "
            "with what was made, or name a folder elsewhere."
        ) from error


def _kept_if_of_use(place: Path, folder: Path, key: str, layout: ShardLayout) -> Iterator[Workshop]:
    workshop = None
    try:
        require_free(folder, "a model", MergeError)
        workshop = Workshop(place, key, layout)
        yield workshop
    except KeyboardInterrupt:
        if workshop is not None:
            workshop.sync()
        raise
    except Exception as error:
        # After a full disk or too little memory the same call can go on; what is refused cannot.
        if isinstance(error, MergeError) and not (workshop and workshop.whole):
            shutil.rmtree(place, ignore_errors=True)
        raise


def sync_file(path: Path) -> None:
    """Make what was written to a file durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(place: Path, folder: Path) -> int:
    """An open file that no other process has locked; closing it unlocks."""
    for _ in range(_ATTEMPTS):
        place.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another run has just finished and cleared up
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            break
        if _is_file(place / _LOCK, handle):
            return handle
        os.close(handle)
    raise MergeError(
        f"another merge to {str(folder)!r} is at work; wait for it, or name another folder."
    )


def _is_file(path: Path, handle: int) -> bool:
    """Whether the open file still has that name."""
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False
