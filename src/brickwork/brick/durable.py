"""Files that outlast a killed process and a power failure: the old content or the new one."""

import os
from pathlib import Path


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


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable; Windows cannot open one, and need not."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
