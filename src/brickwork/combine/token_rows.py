"""Embeddings whose rows stand in another order than on disk, still read piece by piece."""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from brickwork.combine.operands import PIECE, Source, TensorSource
from brickwork.errors import MergeError

# For each place of the output the row of one tensor, or -1 for none.
Rows = Int[Tensor, " vocabulary"]


class RowsSource:
    """A model's embedding, output matrix or output bias with the rows of another vocabulary.

    Places that the model has no row for get the mean of what the others put there; places after
    all tokens get the mean of all rows before them (Hewitt 2021, *Initializing new word
    embeddings for pretrained language models*).

    Args:
        inner: the tensor as it is; its first axis is the vocabulary.
        rows: for each place the tensor's row; -1: the place is filled.
        fill: what places are filled from: tensors, and their rows for each place, -1: takes no
            part. A place that none takes part in is zero.
        size: places, those after the last row included.

    Raises:
        MergeError: if a tensor does not have a row that is asked for.
    """

    def __init__(
        self, inner: Source, rows: Rows, fill: Sequence[tuple[Source, Rows]], size: int
    ) -> None:
        for source, wanted in ((inner, rows), *fill):
            last = int(wanted.max()) if len(wanted) else -1
            if last >= source.shape[0]:
                raise MergeError(
                    f"the tokenizer's row {last} was asked for, but the tensor has "
                    f"{source.shape[0]} rows; the model's vocabulary and its configuration do "
                    "not go together."
                )
        self._inner, self._rows, self._fill = inner, rows, tuple(fill)
        self.shape = (size, *inner.shape[1:])

    def read(self, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """See ``Source.read``."""
        if len(self.shape) == 1:  # a bias is one row, whose columns are the vocabulary
            return self._places(0, self.shape[0]).reshape(1, -1)
        return self._places(start, stop)

    def _places(self, start: int, stop: int) -> Float[Tensor, "places columns"]:
        found = self._filled(start, min(stop, len(self._rows)))
        more = stop - max(start, len(self._rows))
        return torch.cat([found, self._mean.expand(more, -1)]) if more > 0 else found

    def _filled(self, start: int, stop: int) -> Float[Tensor, "places columns"]:
        rows = self._rows[start:stop]
        found = _take(self._inner, rows)
        absent = (rows < 0).nonzero()[:, 0]
        if not len(absent):
            return found
        total = found.new_zeros(len(absent), found.shape[1])
        parts = found.new_zeros(len(absent), 1)
        for source, wanted in self._fill:
            chosen = wanted[start:stop][absent]
            total += _take(source, chosen)
            parts += (chosen >= 0)[:, None]
        found[absent] = total / parts.clamp(min=1)
        return found

    @cached_property
    def _mean(self) -> Float[Tensor, "one columns"]:
        places, step = len(self._rows), max(1, PIECE // _columns(self._inner))
        total = torch.zeros(1, _columns(self._inner), dtype=torch.float64)
        for start in range(0, places, step):
            piece = self._filled(start, min(start + step, places))
            total += piece.sum(dim=0, keepdim=True, dtype=torch.float64)
        return (total / max(places, 1)).to(_take(self._inner, self._rows[:0]).dtype)


def _take(source: Source, rows: Int[Tensor, " places"]) -> Float[Tensor, "places columns"]:
    """The rows in that order, zeros for -1; rows that follow each other are read together."""
    if isinstance(source, TensorSource) and len(source.shape) > 1:
        found = source.pick(rows.clamp(min=0))
        return torch.where(rows[:, None] >= 0, found, 0) if bool((rows < 0).any()) else found
    flat = source.read(0, 1).reshape(-1, 1) if len(source.shape) == 1 else None
    like = source.read(0, 0) if flat is None else flat
    found = torch.zeros(len(rows), _columns(source), dtype=like.dtype)
    breaks = (rows[1:] != rows[:-1] + 1) | (rows[:-1] < 0)
    ends = [0, *((breaks.nonzero()[:, 0] + 1).tolist()), len(rows)]
    numbers = rows.tolist()
    for first, last in pairwise(ends):
        if last > first and (row := numbers[first]) >= 0:
            end = row + last - first
            found[first:last] = source.read(row, end) if flat is None else flat[row:end]
    return found


def _columns(source: Source) -> int:
    return source.shape[1] if len(source.shape) > 1 else 1
