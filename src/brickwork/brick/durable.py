"""Files that outlast a killed process and a power failure: the old content or the new one."""

import os
from pathlib import Path

from brickwork.errors import BrickworkError


def write_file(path: Path, content: bytes) -> None:
    """Write one file in place of an old one: a killed process leaves the old one or the new."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def require_free(folder: Path, what: str, error: type[BrickworkError]) -> None:
    """Refuse a place that is taken, also by an empty folder or a link to nothing.

    Args:
        folder: where something is to be written.
        what: it, with its article, for the message.
        error: the kind of error to raise.
    """
    if os.path.lexists(folder):
        raise error(
            f"{what} was to be written to {str(folder)!r}, which is there already; name a folder "
            "that is not, or remove it first."
        )


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable; Windows cannot open one, and need not."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
