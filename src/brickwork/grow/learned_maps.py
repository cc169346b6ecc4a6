"""The maps of learned growth, which make a larger model's parameters linear in a smaller one's.

A parameter of the larger model is a weighted sum of the smaller one's layers, and along its axes
maps make new units of the old ones. The maps start as a growth whose weights are given, so that
the larger model says at first what the smaller one said.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brickwork.errors import GrowthError
from brickwork.grow.growth import GrownWeights, Growth
from brickwork.grow.spread import Spread, generator_for, share_of
from brickwork.model.parameters import NORMS, Described, Kind, Segment, Side, describe_parameters
from brickwork.model.parts import row_of
from brickwork.model.weights import Weights

Start = Literal["exact", "selection"]


class Owner(NamedTuple):
    """What has a map of its own: the whole stream, or the units of one kind in one layer."""

    kind: Kind
    side: Side
    layer: int | None = None


@dataclass(frozen=True)
class _Origin:
    """What a parameter is made of.

    Attributes:
        old: the same parameter of every old layer that has it.
        shares: what each of them is multiplied by at first.
        axes: the segments of each axis, with the owners of their maps where they have one.
        base: what a norm's weight is counted from.
    """

    old: tuple[str, ...]
    shares: tuple[float, ...]
    axes: tuple[tuple[tuple[Segment, Owner | None], ...], ...]
    base: float


class GrowthMaps(nn.Module):
    """Trainable maps; called, they give the larger model's parameters by path, in float32.

    Units are written and read by maps of their own: with one map for both, no growth through a
    nonlinearity could start exact. The numbers of a head move together. The old parameters are
    held in float32, beside the model that they are of.

    Attributes:
        depth: for every parameter of the larger model, the shares of the old layers.
        width: maps of units, new by old.
        owners: the number of each in ``width``.

    Args:
        grown: of a model in memory; by width, heads, hidden size and depth, in any order.
        start: ``exact``, as ``grown`` says; or ``selection``: new units copy old ones drawn at
            random, and who reads them reads all of each, which changes what the model says.
        seed: of what is drawn.

    Raises:
        GrowthError: if a growth makes what is not linear in the old parameters.

    Source:
        LiGO (Wang et al. 2023, arXiv:2303.00980), section 3. Departures: the maps of readers are
        not tied to those of writers; keys and values of a layer share one, and so do the gates of
        neurons and what they gate; layers are summed before their units are mapped, as in the
        paper's program, which starts width by ``selection``.
    """

    def __init__(self, grown: GrownWeights, start: Start = "exact", seed: int = 0) -> None:
        super().__init__()
        chain, old = _chain_of(grown)
        spreads = [_started(step.growth, start, seed) for step in chain]
        self._origins = dict(_origins(chain, old))
        self._stacks = {o.old: _stack(old, o) for o in self._origins.values()}
        device = next(iter(self._stacks.values())).device
        self.depth = nn.ParameterList(
            nn.Parameter(torch.tensor(o.shares, device=device)) for o in self._origins.values()
        )
        self.owners: dict[Owner, int] = {}
        self.width = nn.ParameterList()
        pieces = (p for o in self._origins.values() for axis in o.axes for p in axis)
        for segment, owner in pieces:
            if owner is not None and owner not in self.owners:
                self.owners[owner] = len(self.width)
                first = _first_map(owner, segment.count, spreads, seed)
                self.width.append(nn.Parameter(first.float().to(device)))

    def forward(self) -> dict[str, Float[Tensor, "..."]]:
        """All parameters of the larger model, with gradients to the maps."""
        pairs = zip(self._origins.items(), self.depth, strict=True)
        return {path: self._made(origin, shares) for (path, origin), shares in pairs}

    def _made(self, origin: _Origin, shares: Float[Tensor, " layers"]) -> Float[Tensor, "..."]:
        result: Tensor = torch.tensordot(shares, self._stacks[origin.old], dims=1)
        for number, pieces in enumerate(origin.axes):
            if any(owner is not None for _, owner in pieces):
                parts = result.split([segment.entries for segment, _ in pieces], number)
                mapped = [
                    self._mapped(p, number, owner)
                    for p, (_, owner) in zip(parts, pieces, strict=True)
                ]
                result = torch.cat(mapped, number)
        return result - origin.base

    def _mapped(self, part: Tensor, number: int, owner: Owner | None) -> Tensor:
        if owner is None:
            return part
        units = self.width[self.owners[owner]]  # new old
        lines = part.movedim(number, 0)
        # Entries of a unit stand together, so that they and all other axes are one.
        made: Tensor = units @ lines.reshape(units.shape[1], -1)
        return made.view(-1, *lines.shape[1:]).movedim(0, number)


def _chain_of(grown: GrownWeights) -> tuple[list[GrownWeights], Weights]:
    """The growths, first one first, and what they began with."""
    chain: list[GrownWeights] = []
    weights: Weights = grown
    while isinstance(weights, GrownWeights):
        _require_linear(weights.growth)
        chain.insert(0, weights)
        weights = weights.old
    return chain, weights


def _require_linear(growth: Growth) -> None:
    blends = any(spread.blends for spread in growth.spreads.values())
    enlarges = growth.layers is not None or bool(growth.spreads)
    if growth.made or growth.replaced or growth.tokens or blends or not enlarges:
        raise GrowthError(
            "maps were to be learned of a growth that makes "
            f"{sorted(growth.spreads) or list(growth.config) or 'another family'}, and not only "
            "more neurons, heads, hidden numbers or layers; leave it out, and do it before or "
            "afterwards."
        )


def _origins(chain: Sequence[GrownWeights], old: Weights) -> Iterator[tuple[str, _Origin]]:
    every = list(describe_parameters(old.outline).values())
    described = [{d.key: d for d in describe_parameters(w.outline).values()} for w in chain]
    grows = {kind for step in chain for kind in step.growth.spreads}
    for new in described[-1].values():
        source, share = _traced(new, chain, described)
        alike = [d for d in every if (d.role, d.name) == (new.role, new.name)]
        first = next(d for d in alike if d.layer == source)
        alike = [d for d in alike if d.axes == first.axes]
        base = row_of(old.outline).norm_base if _is_norm(new) else 0.0
        yield (
            new.path,
            _Origin(
                tuple(d.path for d in alike),
                tuple(share if d is first else 0.0 for d in alike),
                tuple(
                    tuple((s, _owner(new, s.kind, axis.side, grows)) for s in axis.segments)
                    for axis in first.axes
                ),
                base,
            ),
        )


def _is_norm(described: Described) -> bool:
    return described.role in NORMS and described.name == "weight"


def _traced(
    new: Described,
    chain: Sequence[GrownWeights],
    described: Sequence[dict[tuple[str, int | None, str], Described]],
) -> tuple[int | None, float]:
    """The old layer that a parameter comes from, and what it was multiplied by on the way."""
    layer, share = new.layer, 1.0
    for step, own in zip(reversed(chain), reversed(described), strict=True):
        here = own[new.role, layer, new.name]
        share *= step.growth.factors.get(new.role, 1.0)
        if layer is not None and step.is_silent(here):
            share = 0.0
        layer = step.source_of(layer)
    return layer, share


def _owner(new: Described, kind: Kind, side: Side, grows: set[Kind]) -> Owner | None:
    if kind not in grows:
        return None
    return Owner(kind, side, None if kind == "hidden" else new.layer)


def _stack(old: Weights, origin: _Origin) -> Float[Tensor, "layers ..."]:
    return torch.stack([old.tensor(path).float() for path in origin.old]) + origin.base


def _started(growth: Growth, start: Start, seed: int) -> dict[Kind, Spread]:
    if start == "exact":
        return dict(growth.spreads)
    return {kind: _selected(s, generator_for(seed, kind)) for kind, s in growth.spreads.items()}


def _selected(spread: Spread, generator: torch.Generator) -> Spread:
    """New units copy old ones at random, and all of each copy is read."""
    old = max(spread.source) + 1
    drawn = torch.randint(old, (len(spread.source),), generator=generator).tolist()
    source = [d if new else s for s, new, d in zip(spread.source, spread.fresh, drawn, strict=True)]
    return replace(spread, source=tuple(source), shares=None)


def _first_map(
    owner: Owner, old: int, steps: Sequence[dict[Kind, Spread]], seed: int
) -> Float[Tensor, "new old"]:
    """What the growths make of units, as one matrix."""
    made = torch.eye(old, dtype=torch.float64)
    generator = generator_for(seed, str(tuple(owner)))
    for spreads in steps:
        if owner.kind in spreads:
            made = _matrix(spreads[owner.kind], owner.side, len(made), generator) @ made
    return made


def _matrix(
    spread: Spread, side: Side, old: int, generator: torch.Generator
) -> Float[Tensor, "new old"]:
    """One growth of units as a matrix; a drawn unit is a random sum of old ones."""
    source = torch.tensor(spread.source)
    known = source >= 0
    made = torch.zeros(len(source), old, dtype=torch.float64)
    made[known, source[known]] = 1.0
    if side == "reads" and spread.shares is not None:
        made *= share_of(spread, generator)[:, None]
    fresh = int((~known).sum())
    if side == "norms":
        made[~known] = 1 / old  # a norm of zero would keep every gradient out
    elif (spread.read if side == "reads" else spread.written) == "draw":
        noise = torch.randn(fresh, old, generator=generator, dtype=torch.float64)
        made[~known] = noise / old**0.5
    return made
