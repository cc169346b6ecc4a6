"""The numbers behind the figures on part of a model, as tables."""

from collections.abc import Sequence

from brickwork.measure.selection_results import Carving, RouterQuality, RouterRow
from brickwork.report.carving import rises
from brickwork.report.numbers import mean, percent
from brickwork.report.router_lines import Line, levels_of, lines_of, nats, rise
from brickwork.report.selection_words import best_rows, router_name
from brickwork.report.style import short
from brickwork.report.tables import Cell, Table

_NONE = Cell("not measured")


def best_table(quality: RouterQuality) -> Table:
    """For each level and density the best router of each sort."""
    columns = (
        "chosen for a", "density", "best from the input alone", "increase", "multiply-adds",
        "best that reads activations", "increase", "multiply-adds", "bound", "increase",
        "random", "fixed",
    )  # fmt: skip
    rows = []
    for level, part in levels_of(quality).items():
        lines = lines_of(part)
        usable = best_rows(part, [line for line in lines if line.usable])
        reading = best_rows(part, [line for line in lines if _reads(line)])
        bound = best_rows(part, [line for line in lines if line.knows == "bound"])
        controls = [
            best_rows(part, [line for line in lines if line.router == name])
            for name in ("random", "fixed")
        ]
        rows += [
            (
                Cell(level),
                _share(density),
                *_winner(part, usable.get(density)),
                *_winner(part, reading.get(density)),
                *_winner(part, bound.get(density))[:2],
                *(_winner(part, found.get(density))[1] for found in controls),
            )
            for density in sorted({row.density for row in part.rows if row.density < 1})
        ]
    return Table(columns, rows)


def rows_table(quality: RouterQuality) -> Table:
    """Every measurement, after the whole model's."""
    names = list(quality.base_losses)
    columns = (
        "router", "partition", "groups", "chosen for a", "density", "kept", "increase", "captured",
        "multiply-adds", *(short(name) for name in names),
    )  # fmt: skip
    whole = tuple(_loss(quality.base_losses[name]) for name in names)
    dense = (Cell("whole model"), *[Cell("")] * 3, *[_share(1.0)] * 2, Cell("0", 0.0))
    rows = [(*dense, _share(1.0), _share(1.0), *whole)]
    for level in levels_of(quality).values():
        rows += [
            (
                _name(row.router),
                _name(row.partition or "single neurons"),
                Cell(f"{row.groups:,}", row.groups) if row.groups else Cell(""),
                Cell(row.level),
                _share(row.density),
                _share(row.kept),
                _nats(rise(quality, row)),
                _share(row.captured),
                _share(row.cost),
                *(_loss(row.losses[name]) for name in names),
            )
            for line in lines_of(level)
            for row in line.rows
        ]
    return Table(columns, rows)


def speeds_table(quality: RouterQuality) -> Table:
    """Every timing."""
    columns = (
        "path", "number format", "threads", "tokens", "density", "dense, ms", "sparse, ms",
        "times as fast", "ideal",
    )  # fmt: skip
    rows = [
        (
            _name(row.path),
            _name(row.dtype),
            *(Cell(f"{number:,}", number) for number in (row.threads, row.tokens)),
            _share(row.density),
            *(Cell(f"{1e3 * seconds:.3f}", seconds) for seconds in (row.dense, row.sparse)),
            *(Cell(f"{gain:.2f}", gain) for gain in (row.dense / row.sparse, 1 / row.density)),
        )
        for row in quality.speeds
    ]
    return Table(columns, rows)


def carvings_table(carvings: Sequence[Carving]) -> Table:
    """How each smaller model was made, and its size."""
    columns = (
        "", "target", "units", "chosen by", "density", "widths", "seed", "neurons kept",
        "key-value heads kept", "layers left out", "parameters", "of", "FLOPs", "of",
    )  # fmt: skip
    rows = [
        (
            Cell(str(number), number),
            *map(_name, (each.target, each.units, each.by)),
            _share(each.density),
            _name(each.widths),
            Cell(str(each.seed), each.seed),
            _sum(each, "neurons"),
            _sum(each, "kv_heads"),
            Cell(str(sum(part.skipped for part in each.layers))),
            *(_count(size) for size in (*each.parameters[::-1], *each.flops[::-1])),
        )
        for number, each in enumerate(carvings, 1)
    ]
    return Table(columns, rows)


def carved_losses_table(carvings: Sequence[Carving]) -> Table:
    """Every loss of every smaller model."""
    columns = ("", "target", "functionality", "whole model", "carved", "random", "healed")
    rows = []
    for number, each in enumerate(carvings, 1):
        for name in each.before:
            others = [_beside(each, field, name) for field in ("after", "random", "healed")]
            rows.append(
                (
                    Cell(str(number), number),
                    Cell("target" if name == each.target else ""),
                    _name(name),
                    _loss(each.before[name]),
                    *others,
                )
            )
        others = [_mean(each, field) for field in ("after", "random", "healed")]
        base = _loss(mean(list(each.before.values())))
        rows.append((Cell(str(number), number), Cell(""), Cell("mean"), base, *others))
    return Table(columns, rows)


def _reads(line: Line) -> bool:
    """Whether it is a router that computes activations first; magnitude is one, and a bound."""
    return line.level == "token" and (
        line.knows == "activations" or (line.knows == "bound" and not line.partition)
    )


def _winner(quality: RouterQuality, row: RouterRow | None) -> tuple[Cell, Cell, Cell]:
    if row is None:
        return (Cell("none"),) * 3
    return _name(router_name(row)), _nats(rise(quality, row)), _share(row.cost)


def _beside(each: Carving, field: str, name: str) -> Cell:
    losses = getattr(each, field)
    if losses is None:
        return _NONE
    return Cell(f"{losses[name]:.3f} ({nats(rises(each, field)[name])})", losses[name])


def _mean(each: Carving, field: str) -> Cell:
    losses = getattr(each, field)
    if losses is None:
        return _NONE
    value = mean(list(losses.values()))
    return Cell(f"{value:.3f} ({nats(mean(list(rises(each, field).values())))})", value)


def _sum(each: Carving, word: str) -> Cell:
    kept = sum(getattr(part, word) for part in each.layers)
    return Cell(f"{kept:,} of {sum(getattr(part, f'of_{word}') for part in each.layers):,}", kept)


def _name(text: str) -> Cell:
    brief = short(text, 40)
    return Cell(brief, title=None if brief == text else text)


def _share(value: float) -> Cell:
    return Cell(percent(value), value)


def _nats(value: float) -> Cell:
    return Cell(nats(value), value)


def _loss(value: float) -> Cell:
    return Cell(f"{value:.3f}", value)


def _count(number: int) -> Cell:
    return Cell(f"{number:,}", number)
