"""Figures of section 4.5: what taking units away does to every functionality."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from brickwork.measure.results import Ablation, AblationRow, Analysis, Interval, RowKind
from brickwork.report.maps import Cells, change_scale, grid, heat_map, layer_labels
from brickwork.report.numbers import brief_change, change, count, mean
from brickwork.report.style import INK, canvas, names_of, short, styled

_TICKS = {-1000: "≤ -1000", -100: "-100", -10: "-10", 0: "0", 10: "10", 100: "100", 1000: "≥ 1000"}


@styled
def draw_matrix(analysis: Analysis, ablation: Ablation) -> Figure:
    """The relative increase of every perplexity, for every set of units taken away."""
    names, rows = names_of(analysis), ordered_rows(analysis, ablation)
    values = _percents(rows, names)
    figure = canvas(max(2.3, 1.3 + 0.33 * len(rows)))
    axes = figure.subplots()
    mesh = heat_map(
        axes,
        values,
        rows=[f"{short(row.removed, 25)} ({row.units:,})" for row in rows],
        columns=names,
        scale=change_scale(),
        cells=Cells(_cell, _beyond_zero(rows, names)),
    )
    for place, row in enumerate(rows):
        if row.kind == "function" and row.removed in names:
            corner = (names.index(row.removed), place)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=1.6))
    controls = sum(row.kind == "function" for row in rows)
    if 0 < controls < len(rows):
        axes.axhline(controls, color=INK, linewidth=1.6)
    axes.set(xlabel="perplexity measured on", ylabel=f"{ablation.units} taken away")
    _colour_bar(figure, axes, mesh)
    return figure


def caption_matrix(analysis: Analysis, ablation: Ablation) -> str:
    """The own functionality against the others, random units and resident ones."""
    rows = ablation.rows
    chosen = [row for row in rows if row.kind == "function"]
    own = [row.increase[row.removed].value for row in chosen if row.removed in row.increase]
    others = [
        rise.value for row in chosen for name, rise in row.increase.items() if name != row.removed
    ]
    said = [
        f"Taking away the {ablation.units} of a functionality changes its own perplexity by "
        f"{_range(own)} and the others' by {_range(others)}."
        if chosen
        else "No units were chosen by functionality here."
    ]
    random, resident = _rises(rows, "random"), _rises(rows, "resident")
    said.append(
        f"Null: as many random {ablation.units} change it by {_range(random)}."
        if random
        else f"No random {ablation.units} were taken away here, so compare with a figure that has "
        "this control."
    )
    if resident:
        said.append(f"Resident {ablation.units}: {_range(resident)}.")
    return " ".join(said)


@styled
def draw_each(analysis: Analysis, ablation: Ablation) -> Figure:
    """The relative increase of every perplexity, with one part taken away at a time."""
    names, rows = names_of(analysis), ablation.rows
    values = _percents(rows, names).T
    figure = canvas(max(2.3, 1.2 + 0.32 * len(names)))
    axes = figure.subplots()
    labels = [row.removed.rpartition("layers.")[2] for row in rows]
    cells = Cells(_cell, _beyond_zero(rows, names).T)
    mesh = heat_map(axes, values, rows=names, columns=labels, scale=change_scale(), cells=cells)
    if all(label.isdecimal() for label in labels):
        numbers = layer_labels([int(label) for label in labels])
        axes.set_xticks(np.arange(len(rows)) + 0.5, numbers)
    axes.set_xlabel(f"{ablation.units.removesuffix('s')} taken away")
    _colour_bar(figure, axes, mesh)
    return figure


def caption_each(analysis: Analysis, ablation: Ablation) -> str:
    """The parts that matter most and least, and how selective they are."""
    rises = {
        row.removed: mean([rise.value for rise in row.increase.values()]) for row in ablation.rows
    }
    worst, least = max(rises, key=rises.__getitem__), min(rises, key=rises.__getitem__)
    return (
        f"Of {count(len(rises), ablation.units.removesuffix('s'))}, taking away {worst} costs "
        f"most ({change(rises[worst])} on average over functionalities) and {least} least "
        f"({change(rises[least])}). The reference is the whole model; a part is special for a "
        "functionality only where its row differs from the other rows of the same column, for "
        "every part is its own control here and there is no random one."
    )


def ordered_rows(analysis: Analysis, ablation: Ablation) -> list[AblationRow]:
    """Rows of functionalities in the data's order, then the controls as they stand."""
    order = {name: place for place, name in enumerate(names_of(analysis))}
    own = [row for row in ablation.rows if row.kind == "function"]
    own.sort(key=lambda row: order.get(row.removed, len(order)))
    return [*own, *(row for row in ablation.rows if row.kind != "function")]


def _percents(rows: Sequence[AblationRow], names: Sequence[str]) -> NDArray[np.float64]:
    increases = [{name: rise.value for name, rise in row.increase.items()} for row in rows]
    return 100 * grid(increases, names)


def _beyond_zero(rows: Sequence[AblationRow], names: Sequence[str]) -> NDArray[np.bool_]:
    cells = [[_excludes_zero(row.increase.get(name)) for name in names] for row in rows]
    return np.array(cells, dtype=np.bool_).reshape(len(rows), len(names))


def _excludes_zero(rise: Interval | None) -> bool:
    return rise is not None and (rise.low > 0 or rise.high < 0)


def _cell(value: float) -> str:
    return brief_change(value / 100)


def _colour_bar(figure: Figure, axes: Axes, mesh: QuadMesh) -> None:
    bar = figure.colorbar(mesh, ax=axes, label="change of perplexity, %", aspect=16)
    bar.set_ticks(list(_TICKS), labels=list(_TICKS.values()))
    bar.ax.minorticks_off()


def _rises(rows: Sequence[AblationRow], kind: RowKind) -> list[float]:
    return [rise.value for row in rows if row.kind == kind for rise in row.increase.values()]


def _range(values: Sequence[float]) -> str:
    if not values:
        return "an amount that was not measured"
    if len(values) == 1:
        return change(values[0])
    middle = float(np.median(values))
    return f"{change(middle)} in the median ({change(min(values))} to {change(max(values))})"
