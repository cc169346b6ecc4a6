"""Documents on running with part of a model, from random numbers: plausible, but of no model."""

from collections.abc import Sequence
from random import Random
from typing import Literal

from brickwork.measure.selection_results import (
    Carving,
    LayerKept,
    RouterQuality,
    RouterRow,
    SpeedRow,
)

NAMES = ("Coding", "Math", "Translation", "Ethics", "Writing", "Knowledge", "Linguistic")
DENSITIES = (0.1, 0.25, 0.5, 0.75, 1.0)
PARTITIONS = (("coactivation", 64), ("parameters", 64), ("random", 64))
# router, whether it chooses groups, how much it costs at a density of 0.1 in nats, its own work
ROUTERS = (
    ("truth", True, 0.5, 0.0),
    ("magnitude", False, 0.15, 2 / 3),
    ("threshold", False, 0.3, 1 / 3),
    ("similarity", True, 2.4, 0.01),
    ("centroid", True, 1.9, 0.01),
    ("gate", True, 0.8, 0.01),
    ("mlp", True, 0.7, 0.04),
    ("fixed", True, 3.0, 0.0),
    ("random", True, 6.0, 0.0),
)


def synthetic_quality(
    names: Sequence[str] = NAMES,
    *,
    densities: Sequence[float] = DENSITIES,
    partitions: Sequence[tuple[str, int]] = PARTITIONS,
    routers: Sequence[tuple[str, bool, float, float]] = ROUTERS,
    levels: Sequence[Literal["token", "prompt"]] = ("token",),
    speeds: bool = True,
    seed: int = 0,
) -> RouterQuality:
    """A whole document; equal seeds give equal ones."""
    chance = Random(seed)
    base = {name: 1.2 + number / 4 for number, name in enumerate(names)}
    rows = [
        RouterRow(
            partition=partition,
            groups=groups,
            router=router,
            level=level,
            density=density,
            kept=min(1.0, density + 0.004 * grouped * (density < 1)),
            losses={
                name: loss
                + power * (0.8 + 0.2 * place) * (1 - density) ** 3 * chance.uniform(1, 1.2)
                for name, loss in base.items()
            },
            captured=density + (1 - density) * density**0.5 / (1 + power),
            cost=_cost(own, density) if level == "token" else density,
        )
        for router, grouped, power, own in routers
        for place, (partition, groups) in enumerate(partitions if grouped else [("", 0)])
        for level in levels
        for density in densities
    ]  # fmt: skip
    return RouterQuality(
        brickwork="0.1.0",
        model="brickwork/synthetic",
        fingerprint="0123456789abcdef" * 4,
        data="probe instances",
        instances=280,
        seed=0,
        base_losses=base,
        rows=tuple(rows),
        speeds=tuple(_speeds(densities, chance)) if speeds else (),
    )


def _cost(own: float, density: float) -> float:
    """A router's own work is a part of the FFN's if it is large, and comes on top of it else."""
    return own + (1 - own) * density if own > 0.1 else density + own


def _speeds(densities: Sequence[float], chance: Random) -> list[SpeedRow]:
    return [
        SpeedRow(
            density=density,
            tokens=1,
            dense=0.036,
            sparse=0.036 * density * chance.uniform(1, 1.2) * slower,
            path=path,
            dtype=dtype,
            threads=threads,
        )
        for path, slower in (("native", 0.7), ("torch", 1.3))
        for dtype, threads in (("float32", 1), ("float32", 2), ("bfloat16", 2))
        for density in densities
        if density < 1
    ]


def synthetic_carving(
    target: str = "Math",
    *,
    names: Sequence[str] = NAMES,
    layers: int = 8,
    density: float = 0.5,
    units: str = "neurons",
    healed: bool = False,
    seed: int = 0,
) -> Carving:
    """A whole document, whose target suffers less than the other functionalities.

    Groups have another width in every layer.
    """
    widths = "global" if units == "groups" else "uniform"
    chance = Random(seed)
    before = {name: 1.2 + number / 4 for number, name in enumerate(names)}
    lost = {name: (0.1 if name == target else 0.6) * chance.uniform(0.5, 2) for name in names}
    parts = [_layer(layer, layers, density, units, widths, chance) for layer in range(layers)]
    return Carving(
        brickwork="0.1.0",
        model="brickwork/synthetic",
        fingerprint="0123456789abcdef" * 4,
        data="probe instances",
        target=target,
        units=units,
        by="attribution",
        density=density,
        widths=widths,
        seed=0,
        layers=tuple(parts),
        instances=70,
        before=before,
        after={name: before[name] + lost[name] for name in names},
        random={name: before[name] + 1.5 + lost[name] for name in names},
        healed={name: before[name] + lost[name] / 3 for name in names} if healed else None,
        parameters=(21_300_000, round(21_300_000 * (0.4 + 0.6 * density))),
        flops=(42_000_000, round(42_000_000 * (0.35 + 0.65 * density))),
    )


def _layer(
    layer: int, layers: int, density: float, units: str, widths: str, chance: Random
) -> LayerKept:
    if units == "layers":
        skipped = layer not in (0, layers - 1) and chance.random() > density
        kept = 0 if skipped else 1024
        return LayerKept(
            layer=layer,
            neurons=kept,
            of_neurons=1024,
            kv_heads=kept // 256,
            of_kv_heads=4,
            skipped=skipped,
        )
    share = density if widths == "uniform" else min(1.0, density * chance.uniform(0.4, 1.6))
    heads = units == "heads"
    return LayerKept(
        layer=layer,
        neurons=1024 if heads else round(1024 * share),
        of_neurons=1024,
        kv_heads=max(1, round(4 * share)) if heads else 4,
        of_kv_heads=4,
    )
