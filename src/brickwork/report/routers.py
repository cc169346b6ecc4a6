"""Figures of routers: what it costs to run only some neurons of each FFN, and what it saves."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from brickwork.measure.selection_results import RouterQuality, SpeedRow
from brickwork.report.factor_axes import apart, by_factors, loss_axis, round_between
from brickwork.report.numbers import count, percent, spread
from brickwork.report.router_lines import (
    FREE,
    Kind,
    Line,
    best_lines,
    lines_of,
    looks_of_routers,
    nats,
    pareto_front,
    rise,
)
from brickwork.report.style import INK, canvas, legend_below, short, styled

_EVEN = 0.4  # nats that an even axis shows well
_RISES = (-1.0, -0.2, 0.0, FREE, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
_COSTS = {
    "token": "A router that reads activations has to compute some of them for all neurons, and so "
    "costs more than its density.",
    "prompt": "They are those of a token of the answer, for which nothing is chosen any more; the "
    "prompt itself is read by the whole model.",
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288")
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X")


@styled
def draw_losses(quality: RouterQuality) -> Figure:
    """One panel for each functionality, one line for each router, the dense loss dashed."""
    lines, looks = best_lines(quality), looks_of_routers(quality)
    figure, panels = small_multiples(list(quality.base_losses))
    for axes, (name, dense) in zip(panels, quality.base_losses.items(), strict=True):
        axes.axhline(dense, color=INK, linestyle="--", linewidth=1.1, label="whole model")
        for line in lines:
            _plot(axes, line, [row.losses[name] for row in line.rows], looks[line.router])
        values = [dense, *(row.losses[name] for line in lines for row in line.rows)]
        loss_axis(axes, values)
        _kept_axis(axes)
    for axes in panels[:: _columns(len(panels))]:
        axes.set_ylabel("loss, nats per token")
    legend_below(figure, panels[0], columns=5)
    return figure


def caption_losses(quality: RouterQuality) -> str:
    """What is drawn, what doing nothing gives, and what chance gives at the smallest density."""
    dense = list(quality.base_losses.values())
    return (
        "Loss in nats per response token against the share of neurons that was kept, on average "
        "over tokens and layers; one panel for each functionality, each with its own axis. "
        f"{_best_partitions(quality)} Doing nothing, the whole model, is the dashed line "
        f"({spread(dense)} nats). {_chance(quality)} {_bounds(quality)}"
    )


@styled
def draw_partitions(quality: RouterQuality) -> Figure:
    """One panel for each router, one line for each partition; single neurons in the last."""
    lines, looks = lines_of(quality), looks_of_routers(quality)
    single = [line for line in lines if not line.partition]
    grouped = dict.fromkeys(line.router for line in lines if line.partition)
    figure, panels = small_multiples([*grouped, *(["single neurons"] if single else [])])
    divisions = list(dict.fromkeys(line.division for line in lines if line.partition))
    for axes, name in zip(panels, grouped, strict=False):
        for line in lines:
            if line.router == name and line.partition:
                look = _partition_look(divisions.index(line.division))
                _plot(axes, line, _rises(quality, line), look, label=line.division)
    for line in single:
        _plot(panels[-1], line, _rises(quality, line), looks[line.router])
    _shared_rises(panels, [rise(quality, row) for row in quality.rows])
    for axes in panels:
        _kept_axis(axes)
    if single:
        panels[-1].legend(loc="best")
    _legend_of_all(figure, panels[: len(grouped)])
    return figure


def caption_partitions(quality: RouterQuality) -> str:
    """What the partitions differ by, beside the random choice."""
    lines = [line for line in lines_of(quality) if line.partition]
    divisions = dict.fromkeys(line.division for line in lines)
    told = (
        f"The partitions are {', '.join(divisions)} (name, groups of a layer)."
        if divisions
        else "No router of groups was measured, so there is no partition to compare."
    )
    return (
        "Increase of the loss in nats per response token, the mean over functionalities, against "
        f"the share of neurons kept; one panel for each router. {told} Doing nothing is 0; the "
        f"dotted line is {FREE} nats. {_chance(quality)} Lines of one panel differ by the "
        "partition alone; a random choice among the groups of a partition shows what the partition "
        "costs by itself."
    )


@styled
def draw_captured(quality: RouterQuality) -> Figure:
    """The share of the output energy that the kept neurons have."""
    figure = canvas(4.4)
    axes = figure.subplots()
    looks = looks_of_routers(quality)
    axes.plot([0, 100], [0, 100], color=INK, linestyle=":", linewidth=1.1, label="evenly spread")
    for line in best_lines(quality):
        _plot(axes, line, [100 * row.captured for row in line.rows], looks[line.router])
    axes.set(ylim=(-2, 103), ylabel="energy captured, %")
    _kept_axis(axes)
    legend_beside(figure, axes)
    return figure


def caption_captured(quality: RouterQuality) -> str:
    """How much of the energy the extremes capture at the smallest density."""
    lines = best_lines(quality)
    least = min(row.density for row in quality.rows)
    rows = {line.router: row for line in lines for row in line.rows if row.density == least}
    best = max(rows, key=lambda name: rows[name].captured)
    worst = min(rows, key=lambda name: rows[name].captured)
    return (
        "Share of the energy of the FFN outputs that the kept neurons have, in percent (energy: "
        "the square of a neuron's output magnitude, summed over neurons), against the share of "
        f"neurons kept. {_best_partitions(quality)} At a density of {percent(least)} most is "
        f"captured by {best} ({percent(rows[best].captured)}) and least by {worst} "
        f"({percent(rows[worst].captured)}). Doing nothing captures 100 %; neurons chosen by "
        "chance, none of them always kept, capture on average as large a share as they are of all "
        "neurons (dotted line)."
    )


@styled
def draw_costs(quality: RouterQuality) -> Figure:
    """Loss increase against multiply-adds, and the rows that nothing cheaper beats."""
    figure = canvas(4.6)
    axes = figure.subplots()
    looks, front = looks_of_routers(quality), pareto_front(quality)
    axes.plot(
        [100 * row.cost for row in front],
        [rise(quality, row) for row in front],
        color="#f2d544",
        linewidth=7,
        alpha=0.55,
        solid_capstyle="round",
        label="cheapest for its loss",
        zorder=1,
    )
    for line in best_lines(quality):
        costs = [100 * row.cost for row in line.rows]
        _plot(axes, line, _rises(quality, line), looks[line.router], across=costs)
    _shared_rises([axes], [rise(quality, row) for row in quality.rows])
    axes.axvline(100, color=INK, linestyle="--", linewidth=1.1)
    most = max(100.0, *(100 * row.cost for row in quality.rows))
    axes.set(xlim=(-2, 1.04 * most), xlabel="multiply-adds of the FFN with its router, % of dense")
    legend_beside(figure, axes)
    return figure


def caption_costs(quality: RouterQuality) -> str:
    """What a density really costs, for each router that was measured there."""
    densities = [row.density for row in quality.rows]
    middle = min(densities, key=lambda density: (abs(density - 0.25), density))
    costs = [
        f"{line.router} {percent(row.cost)}"
        for line in best_lines(quality)
        for row in line.rows
        if row.density == middle and line.router != "truth"
    ]
    said = f"At a density of {percent(middle)} the cost is: {', '.join(costs)}." if costs else ""
    return (
        "Increase of the loss in nats per response token, the mean over functionalities, against "
        "the multiply-adds of the FFN and its router for a token, in percent of the dense FFN's. "
        f"{_COSTS[quality.rows[0].level]} {said} The yellow band joins what nothing cheaper beats, "
        "over all partitions and without truth, which is no router. Doing nothing is 0 nats at "
        f"100 % (dashed). {_chance(quality)} Multiply-adds are counted, not timed."
    )


@styled
def draw_speeds(quality: RouterQuality) -> Figure:
    """How many times as fast as the dense FFN, beside the share of the work that is left out."""
    figure = canvas(4.2)
    axes = figure.subplots()
    densities = sorted({row.density for row in quality.speeds})
    drawn = [densities[0] * 0.9, 1.0]
    ideal = [1 / density for density in drawn]
    axes.plot([100 * d for d in drawn], ideal, color=INK, linestyle=":", label="ideal: 1 / density")
    axes.axhline(1, color=INK, linestyle="--", linewidth=1.1, label="dense")
    for place, (name, rows) in enumerate(_speed_lines(quality.speeds).items()):
        colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
        axes.plot(
            [100 * row.density for row in rows],
            [row.dense / row.sparse for row in rows],
            color=colour,
            marker=marker,
            label=_label(name),
        )
    values = [1.0, ideal[0], *(row.dense / row.sparse for row in quality.speeds)]
    by_factors(axes, "x", apart([100 * density for density in {*densities, 1.0}]))
    by_factors(axes, "y", round_between(min(values), max(values)))
    axes.set(xlabel="density, %", ylabel="times as fast as dense")
    legend_beside(figure, axes)
    return figure


def caption_speeds(quality: RouterQuality) -> str:
    """The largest and the smallest gain, with their density."""
    gains = {row: row.dense / row.sparse for row in quality.speeds}
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    return (
        "How many times as fast one FFN is over the chosen neurons as over all, in a decoding "
        "step (seconds dense divided by seconds sparse), against density, by path, number format "
        "and threads; both axes go by equal factors. The most is "
        f"{gains[best]:.2f} at {percent(best.density)} ({_speed_name(best)}), the least "
        f"{gains[worst]:.2f} at {percent(worst.density)} ({_speed_name(worst)}). Doing nothing is "
        "1 (dashed). Reading only the chosen weights, at the dense FFN's rate, would give 1 / "
        "density (dotted); lines can lie above it, as dense and sparse are not the same code. The "
        "router's own time, attention and the rest of the model are not in it."
    )


def small_multiples(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Panels of one size, three to a row."""
    columns = _columns(len(titles))
    rows = -(-len(titles) // columns)
    figure = canvas(0.9 + 2.5 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(titles) :]:
        axes.remove()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(short(title, 34))
    return figure, grid[: len(titles)]


def legend_beside(figure: Figure, axes: Axes) -> None:
    """A legend to the right of a single panel."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")


def _plot(
    axes: Axes,
    line: Line,
    values: Sequence[float],
    look: Kind,
    *,
    across: Sequence[float] | None = None,
    label: str | None = None,
) -> None:
    axes.plot(
        [100 * row.kept for row in line.rows] if across is None else across,
        values,
        color=look.colour,
        marker=look.marker,
        linestyle=look.dashes,
        markerfacecolor="white" if look.knows == "bound" else look.colour,
        label=_label(short(line.router, 28) if label is None else label),
    )


def _rises(quality: RouterQuality, line: Line) -> list[float]:
    return [rise(quality, row) for row in line.rows]


def _label(name: str) -> str:
    """The name as a legend takes it, which leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _brief(division: str) -> str:
    """A partition's name on one short line, its number of groups whole."""
    name, _, groups = division.rpartition(" (")
    return f"{short(name, 28)} ({groups}"


def _partition_look(place: int) -> Kind:
    return Kind("input", _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)])


def _kept_axis(axes: Axes) -> None:
    axes.set(xlim=(-2, 103), xlabel="neurons kept, %")
    axes.set_xticks(range(0, 101, 20))


def _shared_rises(panels: Sequence[Axes], values: Sequence[float]) -> None:
    """One axis of loss increases for all panels: even to ``FREE``, then by equal factors."""
    low, high = min(0.0, *values), max(2 * FREE, *values)
    for axes in panels:
        axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
        axes.axhline(FREE, color=INK, linestyle=":", linewidth=1.1, zorder=1)
        if high > _EVEN:
            axes.set_yscale("symlog", linthresh=FREE, linscale=0.5)
            axes.set_yticks([tick for tick in _RISES if low <= tick <= 1.2 * high])
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(1.3 * low - 0.2 * FREE, 1.3 * high)
    for axes in panels[:: _columns(len(panels))]:
        axes.set_ylabel("increase of the mean loss, nats")


def _legend_of_all(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend of whatever any of the panels holds."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        names, columns = [_brief(label) for label in found], min(3, len(found))
        figure.legend(list(found.values()), names, loc="outside lower center", ncols=columns)


def _columns(panels: int) -> int:
    return min(3, panels)


def _speed_lines(speeds: Sequence[SpeedRow]) -> dict[str, list[SpeedRow]]:
    lines: dict[str, list[SpeedRow]] = {}
    for row in sorted(speeds, key=lambda row: row.density):
        lines.setdefault(_speed_name(row), []).append(row)
    return lines


def _speed_name(row: SpeedRow) -> str:
    threads, tokens = count(row.threads, "thread"), count(row.tokens, "token")
    return f"{row.path}, {row.dtype}, {threads}, {tokens}"


def _best_partitions(quality: RouterQuality) -> str:
    """Which partition each line has."""
    lines = [line for line in best_lines(quality) if line.partition]
    divisions = {line.division for line in lines}
    if not lines:
        return ""
    if len(divisions) == 1:
        return f"Routers of groups have the partition that is best for each: {divisions.pop()}."
    named = "; ".join(f"{line.router}: {line.division}" for line in lines)
    return f"Routers of groups have the partition that is best for each ({named})."


def _chance(quality: RouterQuality) -> str:
    """What a random choice costs, at the densities' ends."""
    lines = [line for line in best_lines(quality) if line.router == "random"]
    if not lines:
        return "A choice at random was not measured, so this does not show what chance would give."
    rows = [row for row in lines[0].rows if row.density < 1] or lines[0].rows
    told = [
        f"{nats(rise(quality, row))} nats at a density of {percent(row.density)}"
        for row in (rows[:1] if len(rows) == 1 else (rows[0], rows[-1]))
    ]
    return f"Chance, a random choice, raises the mean loss by {' and '.join(told)}."


def _bounds(quality: RouterQuality) -> str:
    """What knowing everything costs at the smallest density."""
    bounds = [line for line in best_lines(quality) if line.knows == "bound"]
    told = [
        f"{line.router} {nats(rise(quality, line.rows[0]))} at {percent(line.rows[0].density)}"
        for line in bounds
    ]
    if not told:
        return ""
    return (
        f"Upper bounds, which know the activations, have hollow markers ({'; '.join(told)}): truth "
        "chooses groups by what they really do, magnitude single neurons."
    )
