"""One row of numbers for each instance and kind of unit, in memory-mapped files.

A folder of rows has one ``.npy`` file for each column block (``neurons.mean_abs.prompt.003``), of
shape ``samples units``, a ``rows.json`` that says what they are of, and for every writer a file
that says which samples are done. Rows are written where they belong
in any order, and several processes may write different samples at once. What is marked done was
synced before: a killed writer does its last few batches again, and nothing else.
"""

import errno
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from brickwork.brick.durable import write_file
from brickwork.errors import DataError

_ABOUT = "rows.json"
SECONDS_PER_CHECKPOINT = 20.0
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Layout:
    """What a folder of rows holds.

    Attributes:
        key: says what the rows are of; rows with another key are never mixed in.
        samples: how many rows every block has.
        blocks: name -> units.
        dtype: one of ``DTYPES``.
    """

    key: str
    samples: int
    blocks: Mapping[str, int]
    dtype: str = "float32"

    @property
    def bytes(self) -> int:
        """Size on disk when all rows are there."""
        return self.samples * sum(self.blocks.values()) * np.dtype(self.dtype).itemsize


@dataclass(eq=False)
class Rows:
    """An open folder of rows; get one by ``open_rows``."""

    folder: Path
    layout: Layout
    writer: str
    _files: dict[str, "np.memmap[Any, Any]"] = field(default_factory=dict, repr=False)
    _written: "np.ndarray[Any, Any]" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._written = self._read_done(self.folder / f"done-{self.writer}.npy")

    @property
    def done(self) -> Bool[Tensor, " samples"]:
        """Which samples some writer has finished."""
        found = np.zeros(self.layout.samples, dtype=bool)
        for file in self.folder.glob("done-*.npy"):
            found |= self._read_done(file)
        return torch.from_numpy(found)

    def write(
        self, samples: Sequence[int], rows: Mapping[str, Float[Tensor, "some units"]]
    ) -> None:
        """Put in the rows of some samples, for every block.

        Raises:
            DataError: if a value is not finite in the rows' number format.
        """
        assert set(rows) == set(self.layout.blocks), "a sample's rows are written together"
        for name, values in rows.items():
            stored = values.to("cpu", DTYPES[self.layout.dtype])
            if not bool(stored.isfinite().all()):
                raise DataError(
                    f"the rows {name!r} hold values that {self.layout.dtype} cannot "
                    f"(largest {values.abs().max().item():g}); take float32 rows, or check the "
                    "model's weights for infinities."
                )
            self._map(name)[list(samples)] = stored.numpy()
        self._written[list(samples)] = True

    def checkpoint(self) -> None:
        """Sync what was written, then mark it as done."""
        for file in self._files.values():
            file.flush()
        write_file(self.folder / f"done-{self.writer}.npy", _npy(self._written))

    def fill(
        self,
        groups: Iterable[list[int]],
        make: Callable[[list[int]], Mapping[str, Tensor]],
        advance: Callable[[float], None],
    ) -> None:
        """Make and write the rows of all groups of samples, those that are done left out.

        What is written is marked as done now and then, and when the work ends in any way that
        leaves time for it.
        """
        done, synced = self.done, time.monotonic()
        try:
            for group in groups:
                left = [i for i in group if not done[i]]
                if left:
                    self.write(left, make(left))
                if time.monotonic() - synced > SECONDS_PER_CHECKPOINT:
                    self.checkpoint()
                    synced = time.monotonic()
                advance(len(group))
        finally:
            self.checkpoint()

    def read(self, name: str) -> Float[Tensor, "samples units"]:
        """A block, mapped and not loaded: changing it changes nothing on disk.

        Raises:
            DataError: if rows are missing.
        """
        missing = self.layout.samples - int(self.done.sum())
        if missing:
            raise DataError(
                f"{missing:,} of {self.layout.samples:,} rows in {self.folder} are not there yet; "
                "run the other shards, or the same command again without a shard."
            )
        return torch.from_numpy(self._open(name, "c"))

    def _map(self, name: str) -> "np.memmap[Any, Any]":
        if name not in self._files:
            self._files[name] = self._open(name, "r+")
        return self._files[name]

    def _open(self, name: str, mode: Literal["c", "r+"]) -> "np.memmap[Any, Any]":
        path, shape = self.folder / f"{name}.npy", (self.layout.samples, self.layout.blocks[name])
        try:
            found: np.memmap[Any, Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); remove {self.folder}.") from None
        if found.shape != shape or found.dtype != np.dtype(self.layout.dtype):
            raise DataError(
                f"{path} holds {found.dtype} of shape {found.shape}, not {self.layout.dtype} of "
                f"shape {shape}; it is damaged: remove {self.folder}."
            )
        return found

    def _read_done(self, file: Path) -> "np.ndarray[Any, Any]":
        if not file.exists():
            return np.zeros(self.layout.samples, dtype=bool)
        found: np.ndarray[Any, Any] = np.load(file, allow_pickle=False)
        if found.shape != (self.layout.samples,) or found.dtype != bool:
            raise DataError(f"{file} is damaged; remove it, and its rows are made again.")
        return found


def open_rows(folder: Path, layout: Layout, *, writer: str = "1-of-1") -> Rows:
    """Go on with a folder of rows, or start one.

    Args:
        folder: made if it is not there.
        layout: what the rows are to be.
        writer: name of this process among those that write different samples at the same time.

    Raises:
        DataError: if the folder holds rows of something else, or the disk is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {**vars(layout), "blocks": dict(layout.blocks), "format": 1}
    if (folder / _ABOUT).exists():
        _require_same(folder, about)
    else:
        free = shutil.disk_usage(folder).free
        if layout.bytes > free:
            raise DataError(
                f"the rows need {layout.bytes:,} bytes, and {free:,} are free at {folder}; take "
                "fewer instances, float16 rows, or another place."
            )
    for name, units in layout.blocks.items():
        _allocate(folder / f"{name}.npy", (layout.samples, units), layout.dtype)
    if not (folder / _ABOUT).exists():
        write_file(folder / _ABOUT, json.dumps(about, indent=1, sort_keys=True).encode())
    return Rows(folder, layout, writer)


def _require_same(folder: Path, about: Mapping[str, Any]) -> None:
    try:
        found = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{folder / _ABOUT} is damaged ({error}); remove the folder.") from None
    other = [name for name in about if found.get(name) != about[name]]
    if other:
        raise DataError(
            f"{folder} holds rows of another model, data set or setting ({', '.join(other)} "
            "differ); name another folder, or remove this one."
        )


def _allocate(path: Path, shape: tuple[int, int], dtype: str) -> None:
    """A file of zeros; of two processes that try, one succeeds."""
    if path.exists():
        return
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
        _reserve(part)
        os.link(part, path)
    except FileExistsError:
        pass  # another writer was first; its file is as good
    finally:
        part.unlink(missing_ok=True)


def _reserve(path: Path) -> None:
    """Take the space of a file now: a full disk would kill the process when a page is written."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DataError(
                    f"there is no space for {path.stat().st_size:,} bytes at {path.parent}; free "
                    "some, or take fewer instances or float16 rows."
                ) from None
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise


def _npy(array: "np.ndarray[Any, Any]") -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
