"""Figures of smaller models: what was kept where, what it costs in loss, and what it saves."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from brickwork.measure.selection_results import Carving, LayerKept
from brickwork.report.factor_axes import loss_axis
from brickwork.report.maps import Cells, heat_map, layer_labels, share_scale
from brickwork.report.numbers import amount, count, mean, percent, percent_spread
from brickwork.report.router_lines import nats
from brickwork.report.style import INK, canvas, legend_below, short, styled

_BEFORE, _AFTER = "#c9d3dc", "#0072B2"
_MOST_NUMBERS = 24  # layers whose cells have room for a number
_LEFT_OUT = "\u00d7"


class Role(NamedTuple):
    """One of the losses that stand side by side."""

    label: str
    colour: str
    edge: str
    marker: str


ROLES: Mapping[str, Role] = {
    "random": Role("as many random units", "#8a8a8a", "#8a8a8a", "X"),
    "healed": Role("carved and healed", "#009E73", INK, "^"),
    "after": Role("carved", "#0072B2", INK, "o"),
    "before": Role("whole model", "white", INK, "D"),
}
"""By the document's field; the last is drawn on top."""


def labels_of(carvings: Sequence[Carving]) -> list[str]:
    """A short name for each, with its number where there are several."""
    numbers = [f"{place + 1}. " for place in range(len(carvings))] if len(carvings) > 1 else [""]
    return [
        f"{number}{short(each.target, 12)}, {percent(each.density)} of {each.units}"
        for number, each in zip(numbers, carvings, strict=True)
    ]


@styled
def draw_kept(carvings: Sequence[Carving]) -> Figure:
    """The shares of neurons, and of key and value heads, that every layer keeps."""
    layers = sorted({part.layer for each in carvings for part in each.layers})
    parts = _parts(carvings)
    figure = canvas(0.9 + len(parts) * (0.75 + 0.32 * len(carvings)))
    panels = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
    for axes, (name, word) in zip(panels, parts.items(), strict=True):
        values = _shares(carvings, layers, word)
        mesh = heat_map(
            axes,
            values,
            rows=labels_of(carvings),
            columns=["" for _ in layers],
            scale=share_scale(100.0),
            cells=_cells(values) if len(layers) <= _MOST_NUMBERS else None,
        )
        axes.set_xticks(np.arange(len(layers)) + 0.5, layer_labels(layers))
        axes.set_title(f"share of the {name} kept, %")
        _mark_skipped(axes, carvings, layers)
    panels[-1].set_xlabel(f"layer ({_LEFT_OUT}: left out)")
    figure.colorbar(mesh, ax=list(panels), label="kept, %", aspect=16)
    return figure


def caption_kept(carvings: Sequence[Carving]) -> str:
    """How much each model keeps, over layers."""
    told = [
        f"{label}: {_kept(each)}" for label, each in zip(labels_of(carvings), carvings, strict=True)
    ]
    return (
        f"Share of each layer's neurons and key-value heads that was kept, in percent; "
        f"{'; '.join(told)}. Doing nothing keeps 100 % everywhere. A control of random units keeps "
        "as many, elsewhere. Layers that are left out have a cross and are grey, and so is what a "
        "model does not have."
    )


@styled
def draw_carved_losses(carvings: Sequence[Carving]) -> Figure:
    """For each model and functionality the losses before and after, and of random units."""
    most = max(len(each.before) for each in carvings)
    columns = min(2, len(carvings))
    rows = -(-len(carvings) // columns)
    figure = canvas(0.8 + rows * (0.85 + 0.27 * most))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(carvings) :]:
        axes.remove()
    for axes, each, label in zip(grid, carvings, labels_of(carvings), strict=False):
        _dots(axes, each, label)
    healed = next((place for place, each in enumerate(carvings) if each.healed), 0)
    legend_below(figure, grid[healed])
    return figure


def caption_carved_losses(carvings: Sequence[Carving]) -> str:
    """The target's losses beside the others' and beside chance."""
    told = [
        f"{label}: {_target_and_others(each)}"
        for label, each in zip(labels_of(carvings), carvings, strict=True)
    ]
    return (
        "Loss in nats per response token on held-out instances, for each functionality; the target "
        f"is bold on a yellow band. {'. '.join(told)}. Doing nothing is the diamond, the whole "
        "model; the cross is chance: as many random units kept, a mean over several draws."
    )


@styled
def draw_sizes(carvings: Sequence[Carving]) -> Figure:
    """Parameters, and FLOPs for a token, as shares of the whole model's."""
    figure = canvas(1.1 + 0.42 * len(carvings))
    panels = figure.subplots(1, 2, sharey=True)
    places = list(range(len(carvings)))
    for axes, (field, title) in zip(panels, _SIZES.items(), strict=True):
        pairs = [getattr(each, field) for each in carvings]
        shares = [100 * after / before for before, after in pairs]
        axes.barh(places, [100.0] * len(pairs), color=_BEFORE, height=0.72, label="whole model")
        axes.barh(places, shares, color=_AFTER, height=0.44, label="carved")
        for place, ((before, after), share) in enumerate(zip(pairs, shares, strict=True)):
            text = f"{percent(share / 100)}: {amount(after)} of {amount(before)}"
            axes.text(103, place, text, va="center", fontsize=8)
        axes.set(title=title, xlim=(0, 230), xlabel="% of the whole model")
        axes.spines["bottom"].set_bounds(0, 100)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks(places, labels_of(carvings))
    panels[0].set_ylim(len(carvings) - 0.4, -0.6)
    legend_below(figure, panels[0])
    return figure


def caption_sizes(carvings: Sequence[Carving]) -> str:
    """What is left of parameters and FLOPs."""
    left = {
        field: [after / before for before, after in (getattr(each, field) for each in carvings)]
        for field in _SIZES
    }
    return (
        "Parameters, and floating-point operations for a token, before and after, in percent of "
        f"the whole model. Of the parameters {percent_spread(left['parameters'])} are left, of the "
        f"operations {percent_spread(left['flops'])}. Doing nothing leaves 100 %, and as many "
        "random units leave about as much as the chosen ones: sizes say nothing about the choice. "
        "Operations are counted, not timed."
    )


_SIZES = {"parameters": "parameters", "flops": "FLOPs for a token"}


def rises(carving: Carving, field: str = "after") -> dict[str, float]:
    """How much the loss of each functionality lies above the whole model's, in nats."""
    losses = getattr(carving, field)
    return {name: losses[name] - loss for name, loss in carving.before.items()}


def _parts(carvings: Sequence[Carving]) -> dict[str, str]:
    """What layers have: words for it, and the end of the document's fields."""
    parts = {"neurons": "neurons", "key-value heads": "kv_heads"}
    layers = [part for each in carvings for part in each.layers]
    return {
        name: word for name, word in parts.items() if any(getattr(p, f"of_{word}") for p in layers)
    } or {"neurons": "neurons"}


def _shares(carvings: Sequence[Carving], layers: Sequence[int], word: str) -> NDArray[np.float64]:
    values = np.full((len(carvings), len(layers)), np.nan)
    for row, each in enumerate(carvings):
        for part in each.layers:
            share = _share(part, word)
            if share is not None and not part.skipped:
                values[row, layers.index(part.layer)] = 100 * share
    return values


def _share(part: LayerKept, word: str) -> float | None:
    of: int = getattr(part, f"of_{word}")
    kept: int = getattr(part, word)
    return kept / of if of else None


def _cells(values: NDArray[np.float64]) -> Cells:
    return Cells(lambda share: f"{share:.0f}", np.zeros(values.shape, dtype=np.bool_))


def _mark_skipped(axes: Axes, carvings: Sequence[Carving], layers: Sequence[int]) -> None:
    for row, each in enumerate(carvings):
        for part in each.layers:
            if part.skipped:
                place = (layers.index(part.layer) + 0.5, row + 0.5)
                axes.text(*place, _LEFT_OUT, ha="center", va="center", fontsize=11, color=INK)


def _kept(each: Carving) -> str:
    shares = [s for part in each.layers if (s := _share(part, "neurons")) is not None]
    heads = [s for part in each.layers if (s := _share(part, "kv_heads")) is not None]
    skipped = sum(part.skipped for part in each.layers)
    told = [
        f"{percent(mean(values))} of the {name}"
        + (f" ({percent_spread(values)} over layers)" if max(values) > min(values) else "")
        for name, values in (("neurons", shares), ("key-value heads", heads))
        if values
    ]
    whole = f"{count(skipped, 'layer')} of {len(each.layers)} left out" if skipped else ""
    return ", ".join([*told, *([whole] if whole else [])])


def _dots(axes: Axes, each: Carving, label: str) -> None:
    names = list(each.before)
    places = list(range(len(names)))
    values = []
    for field, role in ROLES.items():
        losses = getattr(each, field)
        if losses is not None:
            points = [losses[name] for name in names]
            values += points
            axes.scatter(
                points, places, c=role.colour, edgecolors=role.edge, marker=role.marker, s=38,
                linewidths=0.8, label=role.label, zorder=3,
            )  # fmt: skip
    axes.hlines(
        places, [each.before[n] for n in names], [each.after[n] for n in names], color=_AFTER,
        linewidth=1.6, zorder=2,
    )  # fmt: skip
    axes.set_yticks(places, [short(name) for name in names])
    if each.target in names:
        target = names.index(each.target)
        axes.axhspan(target - 0.45, target + 0.45, color="#fbf3c4", zorder=0)
        axes.get_yticklabels()[target].set_fontweight("bold")
    axes.set(title=label, ylim=(len(names) - 0.4, -0.6), xlabel="loss, nats per token")
    axes.grid(visible=False, axis="y")
    loss_axis(axes, values, "x")


def _target_and_others(each: Carving) -> str:
    after, random = rises(each), rises(each, "random")
    others = [name for name in after if name != each.target]
    told = []
    if each.target in after:
        told.append(
            f"the target's loss changes by {nats(after[each.target])} nats "
            f"(random units: {nats(random[each.target])})"
        )
    if others:
        told.append(
            f"that of the {'others' if told else 'functionalities'} by "
            f"{nats(mean([after[name] for name in others]))} on average "
            f"(random units: {nats(mean([random[name] for name in others]))})"
        )
    return ", ".join(told)
