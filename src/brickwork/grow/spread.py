"""How the units of one kind become more, and what that makes of a parameter's axis.

A new unit is a copy of an old one, or has none (it is drawn, or zero). Whoever reads a unit that
now has copies reads a share of each, so that the sum is what it was (Net2Net, Chen et al. 2016,
arXiv:1511.05641). Uneven shares let the copies learn different things.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.model.parameters import Axis, Kind, Segment

NONE = -1
_AT_ONCE = 1 << 22  # numbers that are held in a wider format besides
Fill = Literal["zero", "draw"]


@dataclass(frozen=True)
class Spread:
    """How the units of one kind become more.

    Attributes:
        source: for every new unit the old one that it copies, or NONE.
        fresh: which of the new units count as added.
        written: what writes a unit without a source is: ``zero`` or drawn at random.
        read: what reads it.
        shares: whether readers of copies take uneven or even shares; None: all of each.
        blends: units without a source that are the mean of some old ones, by their number.
        inner: where a unit itself grows: for each of its entries the old one, or NONE.
    """

    source: tuple[int, ...]
    fresh: tuple[bool, ...]
    written: Fill = "draw"
    read: Fill = "zero"
    shares: Literal["even", "uneven"] | None = None
    blends: Mapping[int, tuple[int, ...]] | None = None
    inner: tuple[int, ...] | None = None

    def width(self, old: int) -> int:
        """Entries of a unit afterwards."""
        return old if self.inner is None else len(self.inner)


def added(old: int, new: int, *, source: Sequence[int] | None = None, **how: Any) -> Spread:
    """All old units in their places, then new ones: of ``source``, or of none.

    >>> added(2, 3, source=[1]).source
    (0, 1, 1)
    """
    rest = tuple(source) if source is not None else (NONE,) * (new - old)
    assert len(rest) == new - old, "a source for every new unit"
    return Spread((*range(old), *rest), (False,) * old + (True,) * (new - old), **how)


def repeated(old: int, new: int) -> list[int]:
    """Sources for new units: the old ones in their order, again and again.

    >>> repeated(2, 5)
    [0, 1, 0]
    """
    return [unit % old for unit in range(new - old)]


def generator_for(seed: int, name: str) -> torch.Generator:
    """Chance that depends on the seed and on what it is for, not on what was drawn before."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def spread_axis(
    tensor: Float[Tensor, "..."],
    number: int,
    axis: Axis,
    spreads: Mapping[Kind, Spread],
    *,
    generator: torch.Generator,
) -> Float[Tensor, "..."]:
    """The tensor with the units along one axis spread; itself if nothing of it is.

    Args:
        tensor: any number of axes.
        number: of the axis.
        axis: what it counts.
        spreads: by kind of unit.
        generator: for drawn entries, and for uneven shares.
    """
    if not any(segment.kind in spreads for segment in axis.segments):
        return tensor
    index = sources_of(axis.segments, spreads)
    result = tensor.index_select(number, index.clamp_min(0))
    if axis.side == "reads":
        factors = torch.cat([_factors(s, spreads.get(s.kind), generator) for s in axis.segments])
        _share(result, number, index, factors)
    _fill(result, number, tensor, index, (axis, spreads, generator))
    return result


def sources_of(
    segments: Sequence[Segment], spreads: Mapping[Kind, Spread]
) -> Int[Tensor, " entries"]:
    """For every entry of the grown axis the old one that it copies, or NONE."""
    found, start = [], 0
    for segment in segments:
        spread = spreads.get(segment.kind)
        units = torch.tensor(spread.source if spread else range(segment.count))[:, None]
        within = torch.arange(segment.width)
        if spread and spread.inner is not None:
            within = torch.tensor(spread.inner)
        entries = start + units * segment.width + within
        found.append(torch.where((units < 0) | (within < 0), NONE, entries).flatten())
        start += segment.entries
    return torch.cat(found)


def fresh_entries(
    segments: Sequence[Segment], spreads: Mapping[Kind, Spread]
) -> Bool[Tensor, " entries"]:
    """Which entries of the grown axis are new."""
    found = []
    for segment in segments:
        spread = spreads.get(segment.kind)
        fresh = torch.tensor(spread.fresh) if spread else torch.zeros(segment.count).bool()
        within = torch.zeros(segment.width, dtype=torch.bool)
        if spread and spread.inner is not None:
            within = torch.tensor(spread.inner) < 0
        found.append((fresh[:, None] | within).flatten())
    return torch.cat(found)


def wide(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The numbers in a format that sums and products of them are to be made in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _share(
    result: Tensor,
    number: int,
    index: Int[Tensor, " entries"],
    factors: Float[Tensor, " entries"],
) -> None:
    """Divide what is read of a unit among its copies, in place.

    Each copy is rounded, and the smallest gets what is left, which a short format can hold: so the
    sum of the copies is what was divided, to the bit in bfloat16 and float16.
    """
    shared = (factors != 1).nonzero().flatten()
    falling = shared[factors[shared].argsort(descending=True, stable=True)]
    order = falling[index[falling].argsort(stable=True)]  # copies of one entry together
    counts = index[order].unique_consecutive(return_counts=True)[1]
    firsts = counts.cumsum(0) - counts
    for copies in counts.unique().tolist():
        for first in firsts[counts == copies].split(_entries_at_once(result, number)):
            whole = wide(result.index_select(number, order[first]))
            left = whole.clone()
            for place in range(copies):
                entry = order[first + place]
                part = whole * factors[entry].to(whole.dtype).view(_along(result, number))
                part = (left if place == copies - 1 else part).to(result.dtype)
                result.index_copy_(number, entry, part)
                left -= part


def _along(tensor: Tensor, number: int) -> list[int]:
    """The shape of numbers that belong to the entries of one axis."""
    return [-1 if axis == number else 1 for axis in range(tensor.dim())]


def _factors(
    segment: Segment, spread: Spread | None, generator: torch.Generator
) -> Float[Tensor, " entries"]:
    if spread is None or spread.shares is None:
        return torch.ones(_length(segment, spread), dtype=torch.float64)
    return share_of(spread, generator).repeat_interleave(segment.width)


def _length(segment: Segment, spread: Spread | None) -> int:
    """Entries of a segment afterwards."""
    if spread is None:
        return segment.entries
    return len(spread.source) * spread.width(segment.width)


def share_of(spread: Spread, generator: torch.Generator) -> Float[Tensor, " units"]:
    """The share of each unit; those of one source sum to 1."""
    source = torch.tensor(spread.source)
    weights = torch.ones(len(source), dtype=torch.float64)
    if spread.shares == "uneven":
        weights += torch.rand(len(source), generator=generator, dtype=torch.float64)
    known = source >= 0
    totals = torch.zeros(int(source.max()) + 1, dtype=torch.float64)
    totals.index_add_(0, source[known], weights[known])
    weights[known] /= totals[source[known]]
    return torch.where(known, weights, 1.0)


def _fill(
    result: Tensor,
    number: int,
    old: Tensor,
    index: Int[Tensor, " entries"],
    how: tuple[Axis, Mapping[Kind, Spread], torch.Generator],
) -> None:
    """Write the entries that have no source, in place."""
    axis, spreads, generator = how
    start = 0
    for segment in axis.segments:
        spread = spreads.get(segment.kind)
        length = _length(segment, spread)
        at = start + (index[start : start + length] < 0).nonzero().flatten()
        start += length
        if spread is None or not len(at):
            continue
        if spread.blends is not None:
            _blend(result, number, old, spread.blends)
            continue
        # Under a norm of zero nothing new would ever have a gradient.
        fill = {"reads": spread.read, "norms": "draw"}.get(axis.side, spread.written)
        _write(result, number, at, old, generator if fill == "draw" else None)


def _blend(result: Tensor, number: int, old: Tensor, blends: Mapping[int, tuple[int, ...]]) -> None:
    """Give units the mean of old ones; those of the same old ones share the sum."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for unit, sources in blends.items():
        alike.setdefault(sources, []).append(unit)
    for sources, units in alike.items():
        parts = torch.tensor(sources).split(_entries_at_once(old, number))
        sums = [wide(old.index_select(number, part)).sum(number) for part in parts]
        mean = torch.stack(sums).sum(0) / len(sources)
        for unit in units:
            result.select(number, unit).copy_(mean)


def _write(
    result: Tensor, number: int, at: Tensor, old: Tensor, generator: torch.Generator | None
) -> None:
    if generator is None:
        result.index_fill_(number, at, 0.0)
        return
    if old.dim() == 1:
        # A bias has no scale to draw by; a norm's is that of its others.
        result.index_fill_(number, at, float(old.float().mean()))
        return
    scale = _size(old)
    for entries in at.split(_entries_at_once(result, number)):
        shape = [len(entries) if n == number else size for n, size in enumerate(result.shape)]
        noise = torch.randn(shape, generator=generator).mul_(scale)
        result.index_copy_(number, entries, noise.to(result.dtype))


def _entries_at_once(tensor: Tensor, number: int) -> int:
    """Entries of an axis of which a float32 copy is small."""
    return max(1, _AT_ONCE * tensor.shape[number] // max(1, tensor.numel()))


def _size(tensor: Tensor) -> float:
    """Root mean square, without a copy of the whole in float32."""
    flat = tensor.reshape(-1)
    squares = sum(float(part.float().square().sum()) for part in flat.split(_AT_ONCE))
    return float((squares / max(1, len(flat))) ** 0.5)
