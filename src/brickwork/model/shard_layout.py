"""Where every tensor of a checkpoint to come will lie, settled before a byte of it is known."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch

from brickwork.model.checkpoint import WEIGHTS
from brickwork.model.shards import DTYPES

_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


class Shape(NamedTuple):
    """A tensor to come: its name, dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its length in a file."""
        return prod(self.shape) * self.dtype.itemsize


class Place(NamedTuple):
    """A tensor's file, and its first byte there."""

    file: str
    offset: int


@dataclass(frozen=True)
class ShardLayout:
    """The files of a checkpoint's weights.

    Attributes:
        headers: what each file begins with.
        sizes: the length of each file in bytes.
        places: where each tensor lies.
        parameters: numbers in all tensors.
        bytes: length of all tensors, headers not counted.
    """

    headers: Mapping[str, bytes]
    sizes: Mapping[str, int]
    places: Mapping[str, Place]
    parameters: int
    bytes: int

    @property
    def index(self) -> dict[str, Any] | None:
        """The index of the weights as transformers writes it; None for a single file."""
        if len(self.headers) == 1:
            return None
        return {
            "metadata": {"total_parameters": self.parameters, "total_size": self.bytes},
            "weight_map": {name: self.places[name].file for name in sorted(self.places)},
        }


def lay_out(shapes: Sequence[Shape], shard_bytes: int) -> ShardLayout:
    """Divide tensors among safetensors files, in their order.

    Args:
        shapes: the tensors, with no name twice.
        shard_bytes: most bytes of tensors in a file; a larger tensor gets a file of its own.

    >>> halves = [Shape(n, torch.float16, (4,)) for n in "ab"]
    >>> layout = lay_out(halves, shard_bytes=8)
    >>> sorted(layout.headers), layout.places["b"].file, layout.sizes[layout.places["b"].file]
    (['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'],
     'model-00002-of-00002.safetensors', 104)
    """
    shards = list(_divided(shapes, shard_bytes)) or [[]]
    headers: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    places: dict[str, Place] = {}
    stem, _, ending = WEIGHTS.rpartition(".")
    for number, shard in enumerate(shards, 1):
        whole = len(shards) == 1
        file = WEIGHTS if whole else f"{stem}-{number:05d}-of-{len(shards):05d}.{ending}"
        header, starts, end = _header(shard)
        headers[file], sizes[file] = header, len(header) + end
        places |= {name: Place(file, len(header) + start) for name, start in starts.items()}
    parameters = sum(prod(shape.shape) for shape in shapes)
    return ShardLayout(headers, sizes, places, parameters, sum(shape.bytes for shape in shapes))


def _divided(shapes: Iterable[Shape], shard_bytes: int) -> Iterator[list[Shape]]:
    shard: list[Shape] = []
    full = 0
    for shape in shapes:
        if shape.bytes > shard_bytes:
            yield [shape]
            continue
        if full + shape.bytes > shard_bytes:
            yield shard
            shard, full = [], 0
        shard.append(shape)
        full += shape.bytes
    if shard:
        yield shard


def _header(shapes: Sequence[Shape]) -> tuple[bytes, dict[str, int], int]:
    """A file's first bytes, where its tensors begin after them, and where they end."""
    starts: dict[str, int] = {}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The widest numbers come first, so that every number lies at a multiple of its own width.
    for shape in sorted(shapes, key=lambda shape: -shape.dtype.itemsize):
        starts[shape.name] = end
        entries[shape.name] = {
            "dtype": _NAMES[shape.dtype],
            "shape": list(shape.shape),
            "data_offsets": [end, end + shape.bytes],
        }
        end += shape.bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, starts, end
