"""How far updates of one base get into each other's way, before they are merged.

Signs that conflict are what TIES elects between (Yadav et al. 2023, arXiv:2306.01708); subspaces
are compared by principal angles (Bjorck and Golub 1973).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from brickwork.measure.interference_results import (
    Beside,
    Pair,
    PairNumbers,
    Sampled,
    SitePair,
    Thresholds,
    Verdict,
)
from brickwork.measure.updates import SiteUpdates

_ADVICE = {
    "redundant": "one repeats the other: drop one, or halve both weights, or their sum acts twice",
    "contradicting": "one undoes the other: use them one at a time, give one a smaller weight, or "
    "keep elected signs alone (ties)",
    "colliding": "both write to the same directions: reweight them, or keep the larger changes "
    "alone (ties, sce), or take from one what lies in the other's directions (orthogonalise)",
    "independent": "neither is in the other's way: a weighted sum keeps both",
}


@dataclass(frozen=True)
class SiteNumbers:
    """One pair at one site, with what pooling needs."""

    site: str
    numbers: PairNumbers
    values: int
    inner: float
    lengths: tuple[float, float]


def overlap(
    a: Float[Tensor, "coordinates directions_a"], b: Float[Tensor, "coordinates directions_b"]
) -> float:
    """Mean squared cosine of the principal angles between two subspaces: 0 apart, 1 inside.

    Args:
        a: orthonormal columns.
        b: orthonormal columns; whichever has fewer is asked how much of it the other holds.

    >>> overlap(torch.eye(4)[:, :2], torch.eye(4)[:, 1:])
    0.5
    >>> overlap(torch.eye(4)[:, :2], torch.eye(4)[:, 2:])
    0.0
    """
    fewer = min(a.shape[1], b.shape[1])
    return float((a.T @ b).square().sum() / fewer) if fewer else 0.0


def chance_overlap(a: int, b: int, dimensions: int) -> float:
    """What ``overlap`` is on average for random subspaces.

    >>> chance_overlap(8, 16, 64)
    0.25
    """
    return max(a, b) / dimensions if min(a, b) else 0.0


def compare_at(
    updates: SiteUpdates, rows: Int64[Tensor, " rows"] | None, *, rank: int | None = None
) -> dict[tuple[int, int], SiteNumbers]:
    """Every pair of updates at a site that neither leaves as it is.

    Args:
        updates: side by side.
        rows: of them that signs are counted over; None: all.
        rank: principal directions compared, at most.
    """
    every = torch.arange(updates.shape[0]) if rows is None else rows
    values = updates.read(every)
    lengths = updates.lengths.tolist()
    found = {}
    for a, b in combinations(range(len(lengths)), 2):
        if not lengths[a] * lengths[b]:
            continue
        inner = updates.gram[a, b].item()
        left, right = (
            (side[a][:, :rank], side[b][:, :rank]) for side in (updates.left, updates.right)
        )
        conflicts, weighted, counted = _conflicts(values[a], values[b], updates.shape[0])
        numbers = PairNumbers(
            cosine=Beside(value=_cosine(inner, lengths[a], lengths[b]), expected=0.0),
            conflicts=conflicts,
            weighted=weighted,
            inputs=_beside(*right, updates.shape[1]),
            outputs=_beside(*left, updates.shape[0]),
            ratio=lengths[a] / lengths[b],
        )
        found[a, b] = SiteNumbers(updates.site, numbers, counted, inner, (lengths[a], lengths[b]))
    return found


def pool(sites: Sequence[SiteNumbers]) -> PairNumbers | None:
    """One pair over all its sites; None if there are none."""
    if not sites:
        return None
    a, b = (math.sqrt(sum(s.lengths[side] ** 2 for s in sites)) for side in (0, 1))
    weights = [s.lengths[0] * s.lengths[1] for s in sites]
    numbers = [s.numbers for s in sites]
    return PairNumbers(
        cosine=Beside(value=_cosine(sum(s.inner for s in sites), a, b), expected=0.0),
        conflicts=_pooled_share([n.conflicts for n in numbers], [s.values for s in sites]),
        weighted=_pooled_share([n.weighted for n in numbers], weights),
        inputs=_pooled_beside([n.inputs for n in numbers], weights),
        outputs=_pooled_beside([n.outputs for n in numbers], weights),
        ratio=a / b,
    )


def judge(numbers: PairNumbers | None, thresholds: Thresholds) -> Verdict:
    """The verdict on two whose numbers over all sites are given."""
    if numbers is None:
        return "independent"
    cosine, crowded = numbers.cosine.value, _above(numbers.outputs)
    if cosine >= thresholds.redundant:
        return "redundant"
    if cosine <= thresholds.contradicting:
        return "contradicting"
    return "colliding" if max(cosine, crowded) >= thresholds.colliding else "independent"


def pair_of(
    names: tuple[str, str],
    sites: Sequence[SiteNumbers],
    alone: tuple[int, int],
    thresholds: Thresholds,
) -> Pair:
    """The document of one pair.

    Args:
        names: of both.
        sites: that both change.
        alone: how many sites each changes that the other does not.
        thresholds: of the verdict.
    """
    numbers = pool(sites)
    verdict = judge(numbers, thresholds)
    advice = _ADVICE[verdict]
    if numbers and verdict == "independent" and _above(numbers.inputs) >= thresholds.colliding:
        advice += "; both read the same directions, as bricks do that began from one seed"
    return Pair(
        a=names[0], b=names[1], numbers=numbers, only_a=alone[0], only_b=alone[1],
        verdict=verdict, advice=advice,
        sites=[SitePair(site=s.site, numbers=s.numbers, values=s.values) for s in sites],
    )  # fmt: skip


def _above(overlaps: Beside) -> float:
    """Overlap above chance, of what is possible."""
    # In a space that one update fills, every other one has its directions.
    room = 1 - overlaps.expected
    return (overlaps.value - overlaps.expected) / room if room > 0.5 else 0.0


def _beside(a: Tensor, b: Tensor, dimensions: int) -> Beside:
    return Beside(value=overlap(a, b), expected=chance_overlap(a.shape[1], b.shape[1], dimensions))


def _cosine(inner: float, a: float, b: float) -> float:
    return max(-1.0, min(1.0, inner / (a * b))) if a * b else 0.0


def _conflicts(
    a: Float[Tensor, "rows columns"], b: Float[Tensor, "rows columns"], of: int
) -> tuple[Sampled | None, Sampled | None, int]:
    """Shares of opposite signs, plain and weighted by size, and over how many values."""
    product = a * b
    opposed, changed = (product < 0).sum(1).double(), (product != 0).sum(1).double()
    lost, sizes = product.clamp(max=0).neg().sum(1).double(), product.abs().sum(1).double()
    return _share(opposed, changed, of), _share(lost, sizes, of), int(changed.sum())


def _share(part: Float[Tensor, " rows"], whole: Float[Tensor, " rows"], of: int) -> Sampled | None:
    total = whole.sum()
    if not total:
        return None
    share = (part.sum() / total).item()
    rows = len(part)
    error = 0.0
    if 1 < rows < of:  # of a ratio of sums over rows, drawn without putting back
        spread = (part - share * whole).square().sum() / (rows - 1)
        error = (rows * spread * (1 - rows / of)).sqrt().item() / total.item()
    return Sampled(value=share, expected=0.5, error=error)


def _pooled_share(shares: Sequence[Sampled | None], weights: Sequence[float]) -> Sampled | None:
    held = [(s, w) for s, w in zip(shares, weights, strict=True) if s]
    total = sum(w for _, w in held)
    if not total:
        return None
    return Sampled(
        value=sum(s.value * w for s, w in held) / total,
        expected=0.5,
        error=math.sqrt(sum((s.error * w) ** 2 for s, w in held)) / total,
    )


def _pooled_beside(numbers: Sequence[Beside], weights: Sequence[float]) -> Beside:
    total = sum(weights)
    pairs = list(zip(numbers, weights, strict=True))
    return Beside(
        value=sum(n.value * w for n, w in pairs) / total,
        expected=sum(n.expected * w for n, w in pairs) / total,
    )
