"""Figures of section 4.3: how few neurons a token needs, and what masking the others costs."""

from collections.abc import Sequence
from itertools import takewhile
from math import ceil, log10
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from brickwork.measure.results import Analysis, Indicator, LayerSparsity, MaskedLoss
from brickwork.report.numbers import change, count, mean, percent
from brickwork.report.style import (
    FAINT,
    INK,
    Look,
    canvas,
    legend_below,
    legend_name,
    looks_of,
    styled,
)

BELOW = 0.2  # the paper's line
_KEPT = 0.05  # a perplexity that rises by no more is called kept
_EVEN = 60.0  # percent that an even axis shows well
_MOST_POWER = 6  # of ten, in percent: beyond a million there is nothing to see
INDICATORS: dict[Indicator, str] = {"activation": "activation", "magnitude": "output magnitude"}
MASKS: dict[Indicator, str] = {
    "activation": "weakest by activation",
    "magnitude": "weakest by output magnitude",
    "random": "control: any, at random",
}


@styled
def draw_distribution(analysis: Analysis) -> Figure:
    """The cumulative distribution of both normalised indicators, one line for each layer."""
    sparsity = analysis.sparsity
    figure = canvas(3.5)
    panels = figure.subplots(1, 2, sharey=True)
    colours = _layer_colours(len(sparsity.layers))
    for axes, indicator in zip(panels, INDICATORS, strict=True):
        for layer, colour in zip(sparsity.layers, colours, strict=True):
            axes.plot(sparsity.edges, getattr(layer, indicator), color=colour, linewidth=1.3)
        share = mean(_below(sparsity.layers, indicator))
        axes.axvline(BELOW, color=INK, linestyle="--", linewidth=0.9)
        axes.annotate(
            f"{percent(share)} lie below {BELOW}\n(mean of the layers)",
            (BELOW, share),
            xytext=(0.42, 0.1),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8},
        )
        axes.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1, zorder=1)
        axes.set(title=INDICATORS[indicator], xlim=(0, 1), ylim=(0, 1.02))
        axes.set_xlabel("indicator divided by the token's largest")
    panels[0].set_ylabel("share at or below")
    _layer_bar(figure, panels, [layer.layer for layer in sparsity.layers])
    return figure


def caption_distribution(analysis: Analysis) -> str:
    """How much lies below the line, over layers, and what an even spread would give."""
    layers = analysis.sparsity.layers
    said = []
    for indicator, words in INDICATORS.items():
        below = _below(layers, indicator)
        said.append(
            f"{percent(mean(below))} of the normalised {words}s (range over "
            f"{count(len(layers), 'layer')}: {percent(min(below))} to {percent(max(below))})"
        )
    return (
        f"{' and '.join(said)} lie below {BELOW}. For comparison: values spread evenly between "
        f"zero and the largest (dotted line) would leave {percent(BELOW)} below it, and neurons "
        "that were all equally active none."
    )


@styled
def draw_masking(analysis: Analysis) -> Figure:
    """Rise of the response perplexity with the masked share, for each indicator and by chance."""
    figure = canvas(3.9)
    drawn = {name: steps for name in MASKS if (steps := _steps(analysis, name))}
    panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for axes, (indicator, steps) in zip(panels, drawn.items(), strict=True):
        for name, look in looks_of(analysis).items():
            _rise_line(axes, steps, name, look)
        axes.axhline(0.0, color=INK, linewidth=0.8)
        axes.set(title=MASKS[indicator], xlabel="masked share of neurons, %", xlim=(-3, 93))
    panels[0].set_ylabel("increase of the response perplexity, %")
    _rise_axis(
        panels[0], [100 * rise for step in analysis.sparsity.masked for rise in _rises(step)]
    )
    legend_below(figure, panels[0])
    return figure


def caption_masking(analysis: Analysis) -> str:
    """How much can be masked before any perplexity rises, and what masking at random does."""
    said = []
    for indicator, words in INDICATORS.items():
        steps = _steps(analysis, indicator)
        if steps:
            kept = list(takewhile(lambda step: max(_rises(step), default=0.0) <= _KEPT, steps))
            free = kept[-1].ratio if kept else 0.0
            said.append(
                f"By {words}, {percent(free)} of the neurons of each layer can be masked before "
                f"any functionality's perplexity rises by more than {percent(_KEPT)}; masking "
                f"{_cost(steps[-1])}."
            )
    said.append(_random_control(analysis))
    return " ".join(said)


def _random_control(analysis: Analysis) -> str:
    """What masking any neurons costs, beside as many of the weakest."""
    random = [step for step in _steps(analysis, "random") if step.ratio > 0]
    if not random:
        return (
            "The reference is the whole model (0 % masked). Masking as many random neurons was "
            "not measured, so the figure does not show how much any choice of neurons would reach."
        )
    most = random[-1]
    beside = [
        f"{change(median(_rises(step)))} by {words}"
        for indicator, words in INDICATORS.items()
        for step in _steps(analysis, indicator)
        if step.ratio == most.ratio and step.increase
    ]
    least = f"masking {_cost(random[0])}; " if len(random) > 1 else ""
    ratios = "; in the median of functionalities, masking as many of the weakest changes it by "
    return (
        f"Control, any neurons at random: {least}masking {_cost(most)}"
        f"{ratios + ' and '.join(beside) if beside else ''}."
    )


def _cost(step: MaskedLoss) -> str:
    """What masking a share does to the perplexity."""
    rises = _rises(step)
    if not rises:
        return f"{percent(step.ratio)} was not measured"
    return (
        f"{percent(step.ratio)} changes it by {change(median(rises))} in the median of "
        f"functionalities (at most {change(max(rises))})"
    )


def _below(layers: Sequence[LayerSparsity], indicator: Indicator) -> list[float]:
    return [getattr(layer, f"{indicator}_below") for layer in layers]


def _layer_colours(layers: int) -> list[tuple[float, float, float, float]]:
    places = [0.88 * place / max(layers - 1, 1) for place in range(layers)]
    return [mpl.colormaps["viridis"](place) for place in places]


def _layer_bar(figure: Figure, panels: Sequence[Axes], layers: Sequence[int]) -> None:
    if len(layers) < 2:
        return
    norm = BoundaryNorm([layer - 0.5 for layer in layers] + [layers[-1] + 0.5], len(layers))
    colours = ScalarMappable(norm, ListedColormap(_layer_colours(len(layers))))
    ticks = list(layers)[:: -(-len(layers) // 8)]
    bar = figure.colorbar(colours, ax=list(panels), label="layer", ticks=ticks, aspect=30)
    bar.ax.minorticks_off()


def _steps(analysis: Analysis, indicator: Indicator) -> list[MaskedLoss]:
    steps = [step for step in analysis.sparsity.masked if step.indicator == indicator]
    return sorted(steps, key=lambda step: step.ratio)


def _rises(step: MaskedLoss) -> list[float]:
    """Increases of all functionalities, as shares."""
    return [rise.value for rise in step.increase.values()]


def _rise_line(axes: Axes, steps: Sequence[MaskedLoss], name: str, look: Look) -> None:
    """One functionality's increases, with the interval of each."""
    points = [(100 * step.ratio, step.increase[name]) for step in steps if name in step.increase]
    shares = [share for share, _ in points]
    axes.plot(
        shares,
        [100 * rise.value for _, rise in points],
        color=look.colour,
        marker=look.marker,
        label=legend_name(name),
    )
    low, high = [100 * rise.low for _, rise in points], [100 * rise.high for _, rise in points]
    axes.fill_between(shares, low, high, color=look.colour, alpha=0.13, linewidth=0)


def _rise_axis(axes: Axes, percents: Sequence[float]) -> None:
    """Even where all is small; else even to 10 %, then by powers of ten, up to the largest."""
    low, high = min(percents, default=0.0), max(percents, default=0.0)
    if high <= _EVEN:
        return
    top = 10.0 ** min(ceil(log10(high)), _MOST_POWER)
    axes.set_yscale("symlog", linthresh=10.0, linscale=0.6)
    ticks = [10.0**power for power in range(1, round(log10(top)) + 1)]
    ticks = ticks[:: -(-len(ticks) // 6)]
    below = [-10.0] if low < -5 else []
    axes.set_yticks([*below, 0.0, *ticks])
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:+,.0f}" if value else "0")
    )
    axes.minorticks_off()
    axes.set_ylim(min(1.3 * low, -3.0), 1.3 * top)
