"""A plan: configurations resolved to bricks, with reasons and costs, before anything runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from brickwork.brick.brick import Brick
from brickwork.brick.check import require_fit, require_weight
from brickwork.brick.configuration import BrickUse, Configuration
from brickwork.brick.effects import (
    Add,
    Codebook,
    Embed,
    Exit,
    Mask,
    Patch,
    Prefix,
    Route,
    Scale,
    Shift,
    Skip,
)
from brickwork.brick.forms import effects_of
from brickwork.errors import ConfigurationError
from brickwork.model.heads import heads_of
from brickwork.model.load import LoadedModel
from brickwork.runtime.savings import selection_flops, visited_share

Lookup = Callable[[str], tuple[str, Brick]]


@dataclass(frozen=True)
class PlannedBrick:
    """A brick of one row: which exactly, how strongly, why, and what it costs.

    ``flops`` counts a multiplication and an addition as two, for each token of the row.
    """

    reference: str
    brick: Brick
    weight: float
    reason: str
    flops: int

    def as_document(self) -> dict[str, Any]:
        """What a user sees of it, ready for JSON."""
        return {
            "name": self.reference,
            "hash": self.brick.hash,
            "form": self.brick.spec.form,
            "weight": self.weight,
            "reason": self.reason,
            "bytes": self.brick.bytes,
            "flops_per_token": self.flops,
        }


@dataclass(frozen=True)
class PlannedRow:
    """One row of a batch: its configuration and the bricks that it means."""

    configuration: Configuration
    bricks: tuple[PlannedBrick, ...]


@dataclass(frozen=True)
class Plan:
    """What a batch will run; ``base_bytes`` and ``base_flops`` are those of the bare base."""

    rows: tuple[PlannedRow, ...]
    base_bytes: int
    base_flops: int

    @property
    def bricks(self) -> dict[str, Brick]:
        """The distinct bricks of all rows, by hash."""
        return {use.brick.hash: use.brick for row in self.rows for use in row.bricks}

    @property
    def keeps_part_of_ffns(self) -> bool:
        """Whether a row keeps a part of its neurons alone, so that packing may pay."""
        return any(brick.spec.form in {"mask", "router"} for brick in self.bricks.values())

    def as_document(self) -> dict[str, Any]:
        """The plan as JSON: every row's bricks with reasons, and the costs beside the base's."""
        rows = []
        for row in self.rows:
            flops = sum(use.flops for use in row.bricks)
            rows.append(
                {
                    "configuration": row.configuration.model_dump(mode="json"),
                    "configuration_hash": row.configuration.hash,
                    "bricks": [use.as_document() for use in row.bricks],
                    "flops_per_token": self.base_flops + flops,
                    "flops_added": flops / self.base_flops,
                }
            )
        bytes_added = sum(brick.bytes for brick in self.bricks.values())
        return {
            "rows": rows,
            "base_bytes": self.base_bytes,
            "brick_bytes": bytes_added,
            "base_flops_per_token": self.base_flops,
        }


def resolve(
    configurations: Sequence[Configuration],
    lookup: Lookup,
    loaded: LoadedModel,
    reasons: Sequence[dict[str, str]] | None = None,
) -> Plan:
    """The plan of a batch: every brick found, checked against the base, and costed.

    Args:
        configurations: one for each row.
        lookup: gives the full reference and the brick for a name, a version or a hash.
        loaded: the base.
        reasons: for each row, why a name is there (default: the configuration names it).

    Raises:
        UnknownNameError: if a name is not found.
        MisfitError: if a brick does not fit the base, with every reason.
        BrickFormatError: if a weight has no meaning for a brick's form.
        ConfigurationError: if there are reasons, but not for each row.
    """
    given = [{} for _ in configurations] if reasons is None else reasons
    if len(given) != len(configurations):
        raise ConfigurationError(
            f"{len(configurations)} configurations, but reasons for {len(given)}; give one "
            "dictionary for each, or none at all."
        )
    checked: dict[tuple[str, float], int] = {}
    rows = []
    for configuration, why in zip(configurations, given, strict=True):
        bricks = tuple(_planned(use, lookup, loaded, why, checked) for use in configuration.bricks)
        rows.append(PlannedRow(configuration, bricks))
    return Plan(tuple(rows), *base_costs(loaded))


def _planned(
    use: BrickUse,
    lookup: Lookup,
    loaded: LoadedModel,
    why: dict[str, str],
    checked: dict[tuple[str, float], int],
) -> PlannedBrick:
    reference, brick = lookup(use.name)
    require_weight(brick, use.weight)
    used = (brick.hash, use.weight)
    if used not in checked:
        require_fit(brick, loaded.base)
        checked[used] = flops_per_token(brick, loaded, use.weight)
    reason = why.get(use.name, "named in the configuration")
    flops = checked[used] if use.weight else 0  # then nothing is attached
    return PlannedBrick(reference, brick, use.weight, reason, flops)


def flops_per_token(brick: Brick, loaded: LoadedModel, weight: float = 1.0) -> int:
    """What a brick adds to the computing of one token, attention to a prefix included.

    Below 0 if the brick saves some: of FFNs in a packed model, and of blocks that are left out.
    """
    total = 0
    for effect in effects_of(brick):
        match effect:
            case Mask() | Skip() | Exit() | Route():
                total += selection_flops(effect, loaded, weight)
            case Add(_, A, B, _):
                total += 2 * (A.numel() + B.numel())
            case Scale(_, vector, _) | Shift(_, vector):
                total += vector.numel()
            case Prefix(site, key, value):
                layer = loaded.base.sites[site].layer
                assert layer is not None
                queries = heads_of(loaded.model.config, layer).group  # that read one key
                total += 2 * queries * (key.numel() + value.numel())
            case Patch(_, key, _, value):
                total += 2 * (key.numel() + value.numel())
            case Codebook(_, key, value, _, projection, _):
                own = 0 if projection is None else 2 * projection.numel()
                # Each number of a key: a difference, its square and a sum.
                total += 3 * key.numel() + own + value.shape[1]
            case Embed():
                total += 0  # its tokens are computed once, with the prompt
    return total


def base_costs(loaded: LoadedModel) -> tuple[int, int]:
    """Bytes of the base's weights, and operations per token of its linear maps.

    Of a mixture of experts only the experts that a token visits count. Routers and what attention
    computes with the context, which grows with it, are left out.
    """
    size = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    linear = sum(s.sizes["in"] * s.sizes["out"] for s in loaded.base.of_kind("linear"))
    stacked = sum(p.numel() for p in loaded.model.parameters() if p.dim() == 3)
    return size, round(2 * (linear + visited_share(loaded) * stacked))
