"""The tensors of a checkpoint on disk, by name, behind a memory map: nothing is read until used."""

import json
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from pydantic import BaseModel, NonNegativeInt
from torch import Tensor

from brickwork.errors import ModelError
from brickwork.model.checkpoint import INDEX, WEIGHTS

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_HEADER_LIMIT = 100 << 20  # what the safetensors library allows


@dataclass(frozen=True)
class Held:
    """Where a tensor lies: dtype, shape, file, and the first byte and length in that file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    bytes: int


class Shards:
    """All tensors of a checkpoint's folder; each is mapped for as long as it is used.

    Raises:
        ModelError: if a file is damaged, or two files hold a tensor of one name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Held] = {}
        for file in weight_files(folder):
            for name, held in read_header(file).items():
                if name in self.tensors:
                    raise ModelError(f"{folder} holds the tensor {name!r} twice; mend its shards.")
                self.tensors[name] = held

    def tensor(self, name: str) -> Tensor:
        """The tensor itself, without a copy; writing to it changes nothing on disk."""
        return map_tensor(self.tensors[name])


def map_tensor(held: Held) -> Tensor:
    """A tensor of a file behind a memory map of its own, which goes when the tensor does.

    One map for a whole file would do too, but then a process seems to hold all that it ever read.

    Raises:
        ModelError: if the file has become shorter since its header was read.
    """
    if not held.bytes:
        return torch.empty(held.shape, dtype=held.dtype)
    before = held.offset % mmap.ALLOCATIONGRANULARITY
    try:
        with held.file.open("rb") as file:
            # Copy on write: torch warns about memory that cannot be written to.
            window = mmap.mmap(
                file.fileno(), before + held.bytes,
                offset=held.offset - before, access=mmap.ACCESS_COPY,
            )  # fmt: skip
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{held.file} cannot be read any more ({error}); restore it and begin again."
        ) from None
    raw = torch.frombuffer(window, dtype=torch.uint8, count=held.bytes, offset=before)
    if before % held.dtype.itemsize:  # files of old writers are not aligned
        raw = raw.clone()
    return raw.view(held.dtype).reshape(held.shape)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint that ``find_checkpoint`` has accepted."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = json.loads((folder / INDEX).read_text("utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def read_header(file: Path) -> dict[str, Held]:
    """What a safetensors file holds, without reading it.

    Raises:
        ModelError: if the file is damaged or lies about its sizes.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, size, _HEADER_LIMIT)))
        entries = {
            name: _Entry.model_validate(entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
        _require_filled(entries.values(), size - 8 - length)
        return {name: _held(file, entry, 8 + length) for name, entry in entries.items()}
    except (OSError, ValueError, AttributeError, RecursionError, struct.error) as error:
        raise ModelError(
            f"{file} is no sound safetensors file ({error}); fetch or copy it again."
        ) from None


class _Entry(BaseModel):
    dtype: str
    shape: tuple[NonNegativeInt, ...]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


def _require_filled(entries: Iterable[_Entry], size: int) -> None:
    """Tensors follow each other from the first byte behind the header to the last of the file."""
    end = 0
    for first, last in sorted(entry.data_offsets for entry in entries):
        if first != end:
            raise ValueError(f"its tensors overlap or leave a gap at byte {min(first, end)}")
        end = last
    if end != size:
        raise ValueError(f"its tensors take {end} bytes, but the file has room for {size}")


def _held(file: Path, entry: _Entry, start: int) -> Held:
    if entry.dtype not in DTYPES:
        raise ValueError(f"a tensor has the dtype {entry.dtype!r}")
    first, last = entry.data_offsets
    held = Held(DTYPES[entry.dtype], entry.shape, file, start + first, last - first)
    width = held.dtype.itemsize
    # Torch cannot make a tensor of such axes, even if another is 0 and so it holds nothing.
    too_large = prod(axis or 1 for axis in held.shape) * width >= 1 << 63
    if too_large or held.bytes != prod(held.shape) * width:
        raise ValueError("a tensor's shape does not fit its place in the file")
    return held
