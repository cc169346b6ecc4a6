"""Exact thresholds: which values of a tensor are its k largest, without a sort.

A radix selection (Knuth, The Art of Computer Programming 3, 5.2.5): floats of one sign are ordered
as their bits are, so a histogram over the upper 16 bits says in which of its bins the k-th largest
size lies, and a second pass over that bin's lower 16 bits (float64: three) says which size it is.
Memory is bounded whatever the values are, and nothing depends on a lucky sample.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.nn.functional import hardshrink

# A pass over tensors of one shape: for each piece its first row and that piece of each tensor.
Stream = Callable[[], Iterator[tuple[int, Sequence[Float[Tensor, "rows columns"]]]]]
_BITS = 16
_DIGITS = 1 << _BITS
_EVERYWHERE = sys.maxsize


@dataclass(frozen=True)
class Cut:
    """The k largest values of a tensor by size; of equal sizes the first come.

    Attributes:
        threshold: the k-th largest size.
        last: first row of the piece in which the places for that size run out.
        left: how many of that size are taken in that piece; all before it, none after it.
    """

    threshold: float
    last: int = _EVERYWHERE
    left: int = 0

    def keep(
        self, values: Float[Tensor, "rows columns"], start: int
    ) -> Float[Tensor, "rows columns"]:
        """The values of the piece that begins at row ``start``, with 0 for those left out."""
        if start == self.last:
            return values * self.mask(values.abs(), start)
        return hardshrink(values, self._limit(start, values.dtype))

    def mask(
        self, sizes: Float[Tensor, "rows columns"], start: int
    ) -> Float[Tensor, "rows columns"]:
        """1 for the sizes (at least 0) that are taken, 0 for the others."""
        taken = torch.empty_like(sizes, memory_format=torch.contiguous_format)
        torch.gt(sizes, self._limit(start, sizes.dtype), out=taken)
        if start == self.last:
            equal = (sizes == self.threshold).flatten().nonzero().flatten()
            taken.view(-1)[equal[: self.left]] = 1
        return taken

    def _limit(self, start: int, dtype: torch.dtype) -> float:
        # A size is taken if it is greater: so to take the threshold, the number before it.
        if start >= self.last:
            return self.threshold
        before = torch.tensor(self.threshold, dtype=dtype)
        return torch.nextafter(before, torch.full_like(before, -torch.inf)).item()


ALL, NONE = Cut(0.0), Cut(float("inf"), -1)


def cuts(stream: Stream, values: int, ranks: Sequence[Sequence[int]]) -> list[tuple[Cut, ...]]:
    """For each tensor and each wanted k, which of its values are the k largest by size.

    Takes two passes over float32, four over float64, and a part of one more where not all values
    of the k-th largest size are among the k largest.

    Args:
        stream: starts a pass over the tensors; the same values every time, finite.
        values: in one tensor.
        ranks: for each tensor the k wanted; at most 0: none are taken; ``values`` or more: all.
    """
    searches = [
        _Search(tensor, k) for tensor, wanted in enumerate(ranks) for k in wanted if 0 < k < values
    ]
    dtype = torch.float32
    for digit in range(4):
        if not searches or digit == dtype.itemsize * 8 // _BITS:
            break
        counts, dtype = _next_digits(stream, searches, digit)
        for search in searches:
            search.narrow(counts[search.tensor, search.prefix])
    _share_out(stream, searches, dtype)
    cut = {(s.tensor, s.k): s.cut for s in searches}
    return [
        tuple(cut.get((tensor, k), ALL if k > 0 else NONE) for k in wanted)
        for tensor, wanted in enumerate(ranks)
    ]


@dataclass
class _Search:
    """What is known of a k-th largest size: its leading bits, and its rank among those alike."""

    tensor: int
    k: int
    prefix: int = 0
    rank: int = 0
    alike: int = 0
    cut: Cut = NONE

    def __post_init__(self) -> None:
        self.rank = self.k

    def narrow(self, counts: Int64[np.ndarray, " digits"]) -> None:
        """Take one more digit: the one whose values hold the rank, counted from the largest."""
        at_least = counts[::-1].cumsum()
        place = int(np.searchsorted(at_least, self.rank))
        digit = _DIGITS - 1 - place
        self.alike = int(counts[digit])
        self.rank -= int(at_least[place]) - self.alike
        self.prefix = self.prefix << _BITS | digit


def _next_digits(
    stream: Stream, searches: Sequence[_Search], digit: int
) -> tuple[dict[tuple[int, int], Int64[np.ndarray, " digits"]], torch.dtype]:
    """For each prefix that is searched, how many sizes have each next digit; and their dtype."""
    wanted = {(s.tensor, s.prefix) for s in searches}
    counts = {key: np.zeros(_DIGITS, dtype=np.int64) for key in wanted}
    dtype = torch.float32
    for _, tensors in stream():
        dtype = tensors[0].dtype
        shift = dtype.itemsize * 8 - (digit + 1) * _BITS
        keys = {tensor: _keys(tensors[tensor]) for tensor in {tensor for tensor, _ in wanted}}
        for tensor, prefix in wanted:
            counts[tensor, prefix] += _count(keys[tensor], None if digit == 0 else prefix, shift)
    return counts, dtype


def _keys(values: Float[Tensor, "rows columns"]) -> Int[Tensor, " values"]:
    integer = torch.int32 if values.dtype == torch.float32 else torch.int64
    return values.abs().view(integer).flatten()


def _count(
    keys: Int[Tensor, " values"], prefix: int | None, shift: int
) -> Int64[np.ndarray, " digits"]:
    """How many keys that begin with the prefix have each next digit."""
    if prefix is None:
        return torch.bincount(keys >> shift, minlength=_DIGITS).numpy()
    flat = keys.numpy()
    alike = flat[np.flatnonzero((flat >> (shift + _BITS)) == prefix)]
    return np.bincount((alike >> shift) & (_DIGITS - 1), minlength=_DIGITS)


def _share_out(stream: Stream, searches: Sequence[_Search], dtype: torch.dtype) -> None:
    """Set each search's cut; where places for the k-th size are short, the first come get them."""
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    short = []
    for search in searches:
        threshold = torch.tensor(search.prefix, dtype=integer).view(dtype).item()
        search.cut = Cut(threshold)
        if search.rank < search.alike:
            short.append(search)
    for start, tensors in stream() if short else ():
        for search in [*short]:
            equal = _keys(tensors[search.tensor]).numpy() == search.prefix
            here = int(np.count_nonzero(equal))
            if search.rank <= here:
                search.cut = Cut(search.cut.threshold, start, search.rank)
                short.remove(search)
            search.rank -= here
        if not short:
            return
