"""Sums of many small terms that lie in a safetensors file from the start.

They are added to in place behind a memory map, so that they may be larger than the memory: the
system writes out what is not in use.
"""

import hashlib
import json
import shutil
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brickwork.errors import DataError

_CHUNK = 1 << 22


class Sums:
    """Float32 tensors of zeros in a new file, to add to; ``close`` puts them on the disk."""

    def __init__(self, file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        header, size = _header(shapes)
        free = shutil.disk_usage(file.parent).free
        if size > free:
            raise DataError(
                f"the statistics need {size:,} bytes, and {free:,} are free at {file.parent}; "
                "free some, or name another place."
            )
        with file.open("xb") as stream:
            stream.write(header)
            stream.truncate(len(header) + size)
        self._map: np.memmap[Any, Any] = np.memmap(
            file, dtype=np.float32, mode="r+", offset=len(header), shape=(max(size // 4, 1),)
        )
        self.tensors: dict[str, Tensor] = {}
        start = 0
        for name, shape in shapes.items():
            window = np.asarray(self._map[start : start + prod(shape)])
            self.tensors[name] = torch.from_numpy(window).reshape(shape)
            start += prod(shape)

    def close(self) -> None:
        """Write out what the memory still holds."""
        self._map.flush()
        self.tensors.clear()


def _header(shapes: Mapping[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """The start of a safetensors file, and the bytes of all tensors."""
    if not shapes:
        raise DataError("statistics of no parameter were asked for; name a model that has some.")
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + 4 * prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, start


def file_hash(file: Path) -> str:
    """The sha256 of a file of any size, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
