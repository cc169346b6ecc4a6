"""Figures of section 4.4: functionality scores of neurons, heads and layers, beside their nulls."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brickwork.measure.results import Analysis, FunctionScores, LayerScores
from brickwork.report.maps import Cells, grid, heat_map, layer_labels, share_scale
from brickwork.report.numbers import count, interval, mean, percent, score, spread
from brickwork.report.style import (
    FAINT,
    INK,
    Look,
    across,
    canvas,
    layer_axis,
    legend_below,
    looks_of,
    names_of,
    short,
    styled,
)

_CHANCE = 0.05  # a best unit with a larger p is not told from shuffled labels


def draw_neuron_scores(analysis: Analysis) -> Figure:
    """Best, best 5 per mille and mean neuron of each layer, one panel for each functionality."""
    return _score_panels(analysis, analysis.functionality.neurons, per_mille=True)


def draw_head_scores(analysis: Analysis) -> Figure:
    """Best and mean head of each layer, one panel for each functionality."""
    return _score_panels(analysis, analysis.functionality.heads, per_mille=False)


def caption_neuron_scores(analysis: Analysis) -> str:
    """The best neuron for each functionality, beside what the best is under shuffled labels."""
    return _score_caption(analysis, analysis.functionality.neurons, "neuron")


def caption_head_scores(analysis: Analysis) -> str:
    """The best head for each functionality, beside what the best is under shuffled labels."""
    return _score_caption(analysis, analysis.functionality.heads, "head")


@styled
def draw_significant(analysis: Analysis) -> Figure:
    """The share of neurons above the null, and how alike two halves of the instances score."""
    names, layers = names_of(analysis), analysis.functionality.neurons
    above = 100 * grid(_by_function(layers, "above_null"), names).T
    above /= np.array([max(layer.units, 1) for layer in layers])
    halves = grid(_by_function(layers, "split_half"), names).T
    figure = canvas(2 * (1.0 + 0.27 * len(names)))
    upper, lower = figure.subplots(2, 1)
    numbers = [str(layer.layer) for layer in layers]
    for axes, values, scale, form, label in (
        (upper, above, share_scale(float(above.max(initial=0))), "{:.1f}", "% of the neurons"),
        (lower, halves, share_scale(1.0), "{:.2f}", "correlation"),
    ):
        cells = Cells(form.format, np.zeros(values.shape, dtype=np.bool_))
        mesh = heat_map(axes, values, rows=names, columns=numbers, scale=scale, cells=cells)
        axes.set_xticks(np.arange(len(layers)) + 0.5, layer_labels([n.layer for n in layers]))
        figure.colorbar(mesh, ax=axes, label=label, aspect=12)
    upper.set_title("neurons that score above the null")
    lower.set(title="correlation of all neurons' scores on two halves", xlabel="layer")
    return figure


def caption_significant(analysis: Analysis) -> str:
    """How many neurons of each functionality beat the null, and how stable scores are."""
    layers = analysis.functionality.neurons
    said = []
    for name in names_of(analysis):
        rows = [layer for layer in layers if name in layer.functions]
        units = sum(layer.units for layer in rows)
        above = sum(layer.functions[name].above_null for layer in rows)
        said.append(f"{name} {above:,} of {units:,}")
    halves = [value for row in _pairs(layers) if (value := row.split_half) is not None]
    stable = f"{score(float(np.median(halves)))} in the median" if halves else "not measured"
    return (
        f"Neurons above the null, over all layers: {'; '.join(said)}. The null is strict: under "
        "shuffled labels, 95 of 100 layers hold no such neuron at all. Split-half correlation: "
        f"{stable}; scores that were only noise would correlate at 0."
    )


@styled
def draw_layer_scores(analysis: Analysis) -> Figure:
    """How well the change that a whole layer makes tells each functionality."""
    names, layers = names_of(analysis), analysis.functionality.layers
    best = [{name: row.best.value for name, row in layer.functions.items()} for layer in layers]
    limits = [{name: row.null.best_95 for name, row in layer.functions.items()} for layer in layers]
    values = grid(best, names).T
    strong = values > grid(limits, names).T
    figure = canvas(1.1 + 0.3 * len(names))
    axes = figure.subplots()
    numbers = [str(layer.layer) for layer in layers]
    cells = Cells(score, strong)
    mesh = heat_map(axes, values, rows=names, columns=numbers, scale=share_scale(1.0), cells=cells)
    axes.set_xticks(np.arange(len(layers)) + 0.5, layer_labels([n.layer for n in layers]))
    axes.set_xlabel("layer")
    figure.colorbar(mesh, ax=axes, label="functionality score", aspect=14)
    return figure


def caption_layer_scores(analysis: Analysis) -> str:
    """The range of whole layers' scores, and how many beat their null."""
    layers = analysis.functionality.layers
    pairs = _pairs(layers)
    above = sum(row.best.value > row.null.best_95 for row in pairs)
    return (
        f"Whole layers score {spread([row.best.value for row in pairs])}; under shuffled labels "
        f"a layer scores {score(mean([row.null.mean for row in pairs]))} on average over "
        f"functionalities, and 95 % score less than "
        f"{score(mean([row.null.best_95 for row in pairs]))}. {above} of "
        f"{count(len(pairs), 'pair')} of layer and functionality are above that of their own "
        "functionality (bold)."
    )


@styled
def _score_panels(analysis: Analysis, layers: Sequence[LayerScores], per_mille: bool) -> Figure:
    looks = looks_of(analysis)
    columns = min(4 if len(looks) not in (3, 5, 6) else 3, len(looks))
    down = -(-len(looks) // columns)
    figure = canvas(0.7 + (2.0 if per_mille else 1.6) * down)
    panels = figure.subplots(down, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(looks) :]:
        axes.remove()
    for axes, (name, look) in zip(panels.flat, looks.items(), strict=False):
        scored = [layer for layer in layers if name in layer.functions]
        if scored:
            _draw_null(axes, scored, name, per_mille)
        _draw_scores(axes, scored, name, look)
        if per_mille:
            _draw_per_mille(axes, scored, name, look)
        axes.set_title(short(name, 24), color=look.colour, fontweight="bold")
        layer_axis(axes, [layer.layer for layer in layers], ticks=6)
        axes.label_outer()
    panels[0, 0].set_ylim(0, 1.02)
    for axes in panels[:, 0]:
        axes.set_ylabel("score")
    for axes in panels.flat[max(len(looks) - columns, 0) : len(looks)]:  # nothing stands below
        axes.tick_params(labelbottom=True)
    _neutral_legend(figure, panels[0, 0])
    return figure


def _draw_null(axes: Axes, layers: Sequence[LayerScores], name: str, per_mille: bool) -> None:
    places = across([layer.layer for layer in layers])
    nulls = [layer.functions[name].null for layer in layers] * (len(places) // len(layers))
    axes.fill_between(
        places,
        [null.best for null in nulls],
        [null.best_95 for null in nulls],
        color="#bdbdbd",
        linewidth=0,
        label="null: best, mean to 95 %",
    )
    if per_mille:
        values = [null.per_mille for null in nulls]
        axes.plot(places, values, color=FAINT, ls="--", lw=1.1, label="null: best 5 ‰")
    means = [null.mean for null in nulls]
    axes.plot(places, means, color=FAINT, ls=":", lw=1.1, label="null: single")


def _draw_scores(axes: Axes, layers: Sequence[LayerScores], name: str, look: Look) -> None:
    numbers = [layer.layer for layer in layers]
    rows = [layer.functions[name] for layer in layers]
    low, high = [row.best.low for row in rows], [row.best.high for row in rows]
    axes.vlines(numbers, low, high, color=look.colour, linewidth=1)
    best = [row.best.value for row in rows]
    axes.plot(numbers, best, color=look.colour, marker="o", markersize=4, label="best")
    means = [row.mean for row in rows]
    axes.plot(numbers, means, color=look.colour, marker=".", linewidth=1, alpha=0.75, label="mean")


def _draw_per_mille(axes: Axes, layers: Sequence[LayerScores], name: str, look: Look) -> None:
    axes.plot(
        [layer.layer for layer in layers],
        [layer.functions[name].per_mille for layer in layers],
        color=look.colour,
        linestyle="--",
        marker="s",
        markersize=3,
        label="best 5 ‰",
    )


def _neutral_legend(figure: Figure, axes: Axes) -> None:
    """A legend whose lines have no functionality's colour, for the panels have one each."""
    legend_below(figure, axes)
    for legend in figure.legends:
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            if handle is not None and not text.get_text().startswith("null"):
                handle.set(color=INK)


def _score_caption(analysis: Analysis, layers: Sequence[LayerScores], unit: str) -> str:
    said = []
    for name in names_of(analysis):
        rows = [(row.functions[name], row) for row in layers if name in row.functions]
        if rows:
            best, layer = max(rows, key=lambda row: row[0].best.value)
            said.append(f"{name} {interval(best.best)} in layer {layer.layer} (null {_null(best)})")
    pairs = _pairs(layers)
    sure = sum(row.best_p <= _CHANCE for row in pairs)
    chosen, whole = (
        score(mean(values))
        for values in ([row.other_half for row in pairs], [row.best.value for row in pairs])
    )
    return (
        f"Best {unit} for each functionality, with its 95 % interval and, as null, the layer's "
        f"best for as many instances under shuffled labels (mean, 95 % bound): {'; '.join(said)}. "
        f"In {sure} of {count(len(pairs), 'pair')} of layer and functionality the best {unit} "
        f"beats at least {percent(1 - _CHANCE)} of the shuffles; by chance about "
        f"{_CHANCE * len(pairs):.1f} would. The best {unit} of one half of the instances scores "
        f"{chosen} on the other half on average, the best on all of them {whole}: the difference "
        "is the luck of choosing."
    )


def _null(row: FunctionScores) -> str:
    return f"{score(row.null.best)}, {score(row.null.best_95)}"


def _pairs(layers: Sequence[LayerScores]) -> list[FunctionScores]:
    return [row for layer in layers for row in layer.functions.values()]


def _by_function(layers: Sequence[LayerScores], field: str) -> list[dict[str, float | None]]:
    return [
        {name: getattr(row, field) for name, row in layer.functions.items()} for layer in layers
    ]
