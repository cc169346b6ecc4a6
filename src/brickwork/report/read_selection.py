"""Documents on running with part of a model, read from their folder without trust."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from brickwork.measure.selection_results import (
    CARVING_FILE,
    FORMAT,
    QUALITY_FILE,
    Carving,
    LayerKept,
    RouterQuality,
)
from brickwork.report.document import read_document

ROUTERS, CARVED = "a comparison of routers", "a carving"
_ROUNDING = 1e-6  # by which a share may exceed 1


def read_quality(folder: Path) -> RouterQuality:
    """What routers cost and save, checked to be something that a report can be drawn from.

    Args:
        folder: where ``routers.json`` lies.

    Raises:
        DataError: if the file is missing, is not JSON, is of another format, lacks a field or
            contradicts itself; the message names every field in question.
    """
    return read_document(
        folder / QUALITY_FILE, RouterQuality, quality_problems, format=FORMAT, what=ROUTERS
    )


def read_carving(folder: Path) -> Carving:
    """A smaller model's document, checked in the same way.

    Args:
        folder: where ``carving.json`` lies.

    Raises:
        DataError: as ``read_quality``.
    """
    return read_document(
        folder / CARVING_FILE, Carving, carving_problems, format=FORMAT, what=CARVED
    )


def quality_problems(quality: RouterQuality) -> Iterator[str]:
    """What cannot be true of any measurement, by field."""
    yield from _losses("base_losses", quality.base_losses, quality.base_losses)
    if quality.instances < 1:
        yield f"instances: should be at least 1, is {quality.instances}"
    if not quality.rows:
        yield "rows: holds none, so there is nothing to draw"
    seen = set()
    for place, row in enumerate(quality.rows):
        here = f"rows.{place}"
        key = (row.router, row.level, row.partition, row.groups, row.density)
        if key in seen:
            yield f"{here}: the same router, partition and density are given twice"
        seen.add(key)
        if bool(row.partition) != (row.groups > 0):
            yield f"{here}.groups: is {row.groups} for the partition {row.partition!r}"
        yield from _losses(f"{here}.losses", row.losses, quality.base_losses)
        yield from _within(f"{here}.density", row.density, above=0.0)
        for name in ("kept", "captured"):
            yield from _within(f"{here}.{name}", getattr(row, name))
        yield from _within(f"{here}.cost", row.cost, most=math.inf)
    for place, speed in enumerate(quality.speeds):
        here = f"speeds.{place}"
        yield from _within(f"{here}.density", speed.density, above=0.0)
        for name in ("dense", "sparse", "tokens", "threads"):
            value = getattr(speed, name)
            yield from _within(f"{here}.{name}", value, above=0.0, most=math.inf)


def carving_problems(carving: Carving) -> Iterator[str]:
    """What cannot be true of any smaller model, by field."""
    yield from _losses("before", carving.before, carving.before)
    for field in ("after", "random", "healed"):
        losses = getattr(carving, field)
        if losses is not None:
            yield from _losses(field, losses, carving.before)
    yield from _within("density", carving.density, above=0.0)
    for field in ("parameters", "flops"):
        before, after = getattr(carving, field)
        if not 0 < after <= before:
            yield f"{field}: should fall from a number above 0, but goes from {before} to {after}"
    if carving.instances < 1:
        yield f"instances: should be at least 1, is {carving.instances}"
    if not carving.layers:
        yield "layers: holds none"
    seen = set()
    for place, part in enumerate(carving.layers):
        if part.layer in seen:
            yield f"layers.{place}: layer {part.layer} is given twice"
        seen.add(part.layer)
        yield from _kept(f"layers.{place}", part)


def _kept(here: str, part: LayerKept) -> Iterator[str]:
    for name in ("neurons", "kv_heads"):
        kept, of = getattr(part, name), getattr(part, f"of_{name}")
        if not 0 <= kept <= of:
            yield f"{here}.{name}: keeps {kept} of {of}"
        elif part.skipped and kept:
            yield f"{here}.{name}: keeps {kept} in a layer that is skipped"
    if part.layer < 0:
        yield f"{here}.layer: should be at least 0, is {part.layer}"


def _losses(here: str, losses: Mapping[str, float], base: Mapping[str, float]) -> Iterator[str]:
    if not base:
        yield f"{here}: names no functionality"
    elif losses.keys() != base.keys():
        names = ", ".join(map(repr, sorted(losses.keys() ^ base.keys())))
        yield f"{here}: needs the functionalities of the whole model; they differ in {names}"
    for name, value in losses.items():
        yield from _within(f"{here}.{name}", value, most=math.inf)


def _within(
    here: str, value: float, *, above: float | None = None, most: float = 1.0
) -> Iterator[str]:
    if value < 0 or (above is not None and value <= above) or value > most + _ROUNDING:
        low = "at least 0" if above is None else f"above {above:g}"
        yield f"{here}: should be {low}{'' if most == math.inf else ' and at most 1'}, is {value:g}"
