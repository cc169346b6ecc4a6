"""Which changes of each operand a merge keeps: the largest, those in the middle, or random ones.

Every function measures what it must and returns the changes of a piece, with 0 for those left out.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8, UInt32
from torch import Tensor

from brickwork.combine.operands import Operands, Piece
from brickwork.combine.thresholds import cuts
from brickwork.errors import MergeError

Kept = Callable[[Piece], Sequence[Float[Tensor, "rows columns"]]]
_MOST_REMEMBERED = 16 << 23  # 16 MiB of bits


def everything(piece: Piece) -> Sequence[Float[Tensor, "rows columns"]]:
    """All changes."""
    return piece.deltas


def largest(operands: Operands, density: Sequence[float]) -> Kept:
    """The largest changes, exactly ``max(1, int(density * values))`` of each operand.

    Source:
        Yadav et al. 2023 (TIES), arXiv:2306.01708.
    """
    values = operands.values
    ranks = [[_share(d, values, least=1)] for d in density]
    found = cuts(_changes(operands), values, ranks)

    def kept(piece: Piece) -> Sequence[Float[Tensor, "rows columns"]]:
        return [
            cut.keep(delta, piece.start) if share < 1 else delta
            for delta, (cut,), share in zip(piece.deltas, found, density, strict=True)
        ]

    return kept


def middle(operands: Operands, density: Sequence[float], gamma: Sequence[float]) -> Kept:
    """Changes that are neither among the largest, nor among the smallest.

    The largest ``int(gamma * values)`` are left out, or fewer, so that there are
    ``int(density * values)`` to keep.

    Source:
        Davari and Belilovsky 2023 (Model Breadcrumbs), arXiv:2312.06795.
    """
    values = operands.values
    ranks = []
    for share, outliers in zip(density, gamma, strict=True):
        kept_ones = _share(share, values)
        left_out = min(_share(outliers, values), values - kept_ones)
        ranks.append([left_out + kept_ones, left_out])
    found = cuts(_changes(operands), values, ranks)

    def kept(piece: Piece) -> Sequence[Float[Tensor, "rows columns"]]:
        return [
            outer.keep(delta, piece.start).sub_(inner.keep(delta, piece.start))
            if share < 1
            else delta
            for delta, (outer, inner), share in zip(piece.deltas, found, density, strict=True)
        ]

    return kept


def at_random(operands: Operands, density: Sequence[float]) -> Kept:
    """Each change with the chance ``density``.

    Source:
        Yu et al. 2023 (DARE), arXiv:2311.03099; what is kept is rescaled elsewhere.
    """
    return _drawn_twice(
        operands, density, lambda piece, number: _drawn(piece.chances(number), density[number])
    )


def by_rank(operands: Operands, density: Sequence[float], epsilon: Sequence[float]) -> Kept:
    """Each change with a chance that rises with its rank within its row.

    The chance goes evenly from ``density - epsilon`` for the smallest change of a row to
    ``density + epsilon`` for its largest; a row of one value has the chance ``density``.

    Raises:
        MergeError: if those chances are not between 0 and 1.

    Source:
        Deep et al. 2024 (DELLA), arXiv:2406.11617.
    """
    for share, spread in zip(density, epsilon, strict=True):
        if 0 < share < 1 and not 0 < share - abs(spread) <= share + abs(spread) < 1:
            raise MergeError(
                f"density {share} and epsilon {spread} at {operands.name!r} give chances from "
                f"{share - spread:g} to {share + spread:g}, which must be above 0 and below 1; "
                "choose a smaller epsilon."
            )
    return _drawn_twice(
        operands,
        density,
        lambda piece, n: _ranked(piece.deltas[n], piece.chances(n), density[n], epsilon[n]),
    )


def _drawn_twice(
    operands: Operands,
    density: Sequence[float],
    draw: Callable[[Piece, int], Bool[np.ndarray, "rows columns"]],
) -> Kept:
    """Changes under drawn masks; a mask that is needed again is remembered, if that takes little.

    A merge that rescales comes by twice, and a draw, with its sort, is the dearest step.
    """
    remember = operands.values * len(density) <= _MOST_REMEMBERED
    remembered: dict[tuple[int, int], UInt8[np.ndarray, " bytes"]] = {}

    def kept_of(piece: Piece, number: int) -> Float[Tensor, "rows columns"]:
        delta, share = piece.deltas[number], density[number]
        if not 0 < share < 1:
            return delta if share >= 1 else torch.zeros_like(delta)
        bits = remembered.pop((piece.start, number), None)
        if bits is not None:
            flat = np.unpackbits(bits, count=delta.numel()).view(bool)
            return _masked(delta, flat.reshape(delta.shape))
        mask = draw(piece, number)
        if remember:
            remembered[piece.start, number] = np.packbits(mask)
        return _masked(delta, mask)

    return lambda piece: [kept_of(piece, number) for number in range(len(density))]


def _changes(operands: Operands) -> Callable[[], Iterator[tuple[int, Sequence[Tensor]]]]:
    return lambda: ((piece.start, piece.deltas) for piece in operands.pieces())


def _share(density: float, values: int, *, least: int = 0) -> int:
    if density <= 0:
        return 0
    return min(max(least, int(density * values)), values)


def _drawn(
    chances: UInt32[np.ndarray, "rows columns"], share: float | Float[np.ndarray, " columns"]
) -> Bool[np.ndarray, "rows columns"]:
    limit = np.clip(np.asarray(share) * 2.0**32, 0, 2**32 - 1).astype(np.uint32)
    return chances < limit


def _masked(
    delta: Float[Tensor, "rows columns"], mask: Bool[np.ndarray, "rows columns"]
) -> Float[Tensor, "rows columns"]:
    return delta * torch.from_numpy(mask.view(np.int8))  # a factor of int8 is quicker than of bool


def _ranked(
    delta: Float[Tensor, "rows columns"],
    chances: UInt32[np.ndarray, "rows columns"],
    share: float,
    spread: float,
) -> Bool[np.ndarray, "rows columns"]:
    """Draw in the order of ranks, and put every draw where the value of that rank stands."""
    columns = delta.shape[1]
    ranks = np.arange(columns) / max(columns - 1, 1) if columns > 1 else np.full(1, 0.5)
    drawn = _drawn(chances, share - spread + 2 * spread * ranks)
    # Size above, place below: one sort of integers, in which equal sizes stay in their order.
    keys = delta.abs().float().numpy().view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(columns, dtype=np.uint64)
    keys.sort(axis=1)
    order = torch.from_numpy((keys & np.uint64(0xFFFFFFFF)).view(np.int64))
    mask = torch.empty(drawn.shape, dtype=torch.bool)
    return mask.scatter_(1, order, torch.from_numpy(drawn)).numpy()
