"""The tensors that a merge takes in, read piece by piece, so that none is ever held whole.

A tensor is seen as a matrix: its last axis are the columns, all others its rows; a vector is one
row. A method measures what it must in passes over the pieces, then says what each piece becomes.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt32
from torch import Tensor

from brickwork.errors import MergeError

# Values of one operand in a piece: few enough for a processor's cache. Random streams restart at
# every piece, so a change of this number changes what DARE and DELLA draw.
PIECE = 1 << 18


class Source(Protocol):
    """A tensor of real numbers that can be read in rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's own shape."""

    def read(self, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """Rows ``[start, stop)`` in float32, or in float64 if it is kept so; not to be changed."""


class TensorSource:
    """A tensor in memory, or one that a memory map stands behind."""

    def __init__(self, tensor: Tensor, *, cast: torch.dtype | None = None) -> None:
        self._matrix = tensor.detach().reshape(matrix_shape(tuple(tensor.shape)))
        self._cast = cast
        self.shape = tuple(tensor.shape)

    def read(self, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """See ``Source.read``; values are rounded to ``cast`` before they are widened."""
        return self._widened(self._matrix[start:stop])

    def pick(self, rows: Int[Tensor, " some"]) -> Float[Tensor, "some columns"]:
        """The rows of these numbers, in this order, as ``read`` gives them."""
        return self._widened(self._matrix[rows])

    def _widened(self, rows: Tensor) -> Tensor:
        if self._cast is not None:
            rows = rows.to(self._cast)
        return rows if rows.dtype == torch.float64 else rows.to(torch.float32)


@dataclass(frozen=True)
class Piece:
    """The same rows of every operand.

    Attributes:
        start: first row.
        stop: the row after the last.
        tensors: the operands, in the recipe's order, without the base.
        base: the base's rows; None if the merge has no base.
        draw: the seed of an operand's random numbers in this piece.
    """

    start: int
    stop: int
    tensors: tuple[Float[Tensor, "rows columns"], ...]
    base: Float[Tensor, "rows columns"] | None
    draw: Callable[[int], int]

    @cached_property
    def deltas(self) -> tuple[Float[Tensor, "rows columns"], ...]:
        """What each operand adds to the base; the operands themselves if there is none."""
        base = self.base
        return self.tensors if base is None else tuple(t - base for t in self.tensors)

    def chances(self, operand: int) -> UInt32[np.ndarray, "rows columns"]:
        """Random numbers of one operand for these rows, from all of 32 bits, alike in every pass.

        They depend on the seed, the tensor's name, the operand's own name and the rows, and on
        nothing else: not on which other models take part, nor on the order of the work, nor on
        the machine. (numpy keeps this stream stable, and it is ten times as fast as torch's.)
        """
        rows, columns = self.stop - self.start, self.tensors[operand].shape[-1]
        draw = np.random.Generator(np.random.SFC64(self.draw(operand)))
        pairs = draw.integers(0, 1 << 64, (rows * columns + 1) // 2, dtype=np.uint64)
        return pairs.astype("<u8", copy=False).view("<u4")[: rows * columns].reshape(rows, columns)


# What a piece becomes; the dtype is that of the arithmetic, rounding comes later, once.
Combine = Callable[[Piece], Float[Tensor, "rows columns"]]


@dataclass(frozen=True)
class Operands:
    """What one output tensor is merged from.

    Attributes:
        name: the output tensor's name, for errors and random streams.
        sources: the operands, in the recipe's order, without the base.
        keys: their names, which their random streams depend on; no two are equal.
        base: what task vectors are taken from; None if the merge has no base.
        statistics: one for each operand, for methods that weigh by them, else empty.
        seed: of every random choice.
    """

    name: str
    sources: Sequence[Source]
    keys: Sequence[str]
    base: Source | None = None
    statistics: Sequence[Source] = ()
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The one shape that all operands have."""
        return (self.base or self.sources[0]).shape

    @property
    def rows(self) -> int:
        """Rows of the tensor, seen as a matrix."""
        return matrix_shape(self.shape)[0]

    @property
    def values(self) -> int:
        """Numbers in the tensor."""
        return prod(self.shape)

    def pieces(self) -> Iterator[Piece]:
        """All rows in order, all operands in one dtype; none for an empty tensor.

        Raises:
            MergeError: if an operand holds NaN or infinity, with the tensor's name.
        """
        rows, columns = matrix_shape(self.shape)
        step = max(1, PIECE // max(columns, 1))
        names = (*self.keys, "base")
        sources = self.sources if self.base is None else (*self.sources, self.base)
        for start in range(0, rows if columns else 0, step):
            stop = min(start + step, rows)
            read = [
                self._finite(source.read(start, stop), key)
                for source, key in zip(sources, names, strict=False)
            ]
            if any(values.dtype == torch.float64 for values in read):
                read = [values.double() for values in read]
            base = None if self.base is None else read.pop()
            yield Piece(start, stop, tuple(read), base, partial(self._draw, start))

    def statistic(self, operand: int, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """Rows ``[start, stop)`` of an operand's statistics.

        Raises:
            MergeError: if they hold NaN or infinity, with the tensor's name.
        """
        rows = self.statistics[operand].read(start, stop)
        return self._finite(rows, f"{self.keys[operand]} (its statistics)")

    def _draw(self, start: int, operand: int) -> int:
        text = f"{self.seed}\0{self.name}\0{self.keys[operand]}\0{start}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def _finite(self, rows: Tensor, key: str) -> Tensor:
        # A sum is one quick pass; only if it overflowed or met a NaN are all values looked at.
        if not math.isfinite(rows.sum().item()) and not rows.isfinite().all():
            raise MergeError(
                f"the tensor {self.name!r} of {key!r} holds NaN or infinity, which would spread "
                "to the whole merge; mend that model or leave it out."
            )
        return rows


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a matrix.

    >>> matrix_shape((2, 3, 4)), matrix_shape((5,)), matrix_shape(())
    ((6, 4), (1, 5), (1, 1))
    """
    return (prod(shape[:-1]), shape[-1]) if shape else (1, 1)
