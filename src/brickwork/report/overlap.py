"""Figures of section 4.6: whether functionalities have neurons of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brickwork.measure.results import Analysis, OverlapMatrix
from brickwork.report.maps import Cells, heat_map, share_scale
from brickwork.report.numbers import count, mean, percent, percent_interval, percent_spread
from brickwork.report.style import INK, across, canvas, layer_axis, legend_below, styled


@dataclass(frozen=True)
class Branch:
    """A cluster of the dendrogram: the row that it hangs at, and its height."""

    place: float
    height: float


@styled
def draw_overlap(analysis: Analysis) -> Figure:
    """The pooled overlap of every two functionalities, and their tree beside it."""
    overlap = analysis.overlap
    order, joints = tree(overlap.linkage, len(overlap.functions))
    values = 100 * np.array(overlap.pooled.values, dtype=np.float64)[np.ix_(order, order)]
    np.fill_diagonal(values, np.nan)  # a set shares all with itself: 1 would drown the rest
    names = [overlap.functions[place] for place in order]
    figure = canvas(max(2.3, 1.2 + 0.36 * len(names)))
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    null = overlap.pooled.null
    strong = (values < 100 * null.low) | (values > 100 * null.high)
    most = float(np.nanmax(values, initial=100 * max(overlap.independent, null.high)))
    mesh = heat_map(
        left, values, rows=names, columns=names, scale=share_scale(most), cells=Cells(_cell, strong)
    )
    bar = figure.colorbar(mesh, ax=left, aspect=18)
    left.set_title("shared part of the functional neurons, %")
    bar.ax.axhline(100 * null.value, color=INK, linewidth=2)
    _draw_tree(right, joints, len(names))
    return figure


def caption_overlap(analysis: Analysis) -> str:
    """The range of all pairs, beside the null and two independent sets."""
    overlap, pairs = analysis.overlap, pair_values(analysis.overlap.pooled)
    null, null_mean = overlap.pooled.null, overlap.pooled.null_mean
    more = sum(value > null.high for value in pairs)
    less = sum(value < null.low for value in pairs)
    return (
        f"Two functionalities share {percent(mean(pairs))} of their functional neurons on average "
        f"({percent_spread(pairs)}), all layers together. Null: under shuffled labels the mean of "
        f"all pairs is {percent_interval(null_mean)} and a single pair shares "
        f"{percent_interval(null)}; two independent random sets would share "
        f"{percent(overlap.independent)}. Of {count(len(pairs), 'pair')}, {more} share more than "
        f"the 95 % range of single pairs and {less} less."
    )


@styled
def draw_overlap_layers(analysis: Analysis) -> Figure:
    """The mean overlap of all pairs in each layer, beside its null."""
    overlap, numbers = analysis.overlap, _numbers(analysis)
    figure = canvas(3.2)
    axes = figure.subplots()
    _draw_null(axes, numbers, overlap.layers)
    pairs = [pair_values(matrix) for matrix in overlap.layers]
    axes.vlines(
        numbers,
        [min(values, default=np.nan) for values in pairs],
        [max(values, default=np.nan) for values in pairs],
        color="#0072B2",
        alpha=0.35,
        linewidth=3,
        label="least to most of all pairs",
    )
    means = [mean(values) for values in pairs]
    axes.plot(numbers, means, color="#0072B2", marker="o", label="mean of all pairs")
    axes.axhline(overlap.independent, color=INK, linestyle=":", label="independent sets")
    axes.set_ylabel("shared part of the\nfunctional neurons")
    axes.set_ylim(bottom=0)
    layer_axis(axes, numbers)
    legend_below(figure, axes, columns=3)
    return figure


def caption_overlap_layers(analysis: Analysis) -> str:
    """How many layers share more or less than their null."""
    layers = analysis.overlap.layers
    means = [mean(pair_values(matrix)) for matrix in layers]
    nulls = [matrix.null_mean for matrix in layers]
    more = sum(value > null.high for value, null in zip(means, nulls, strict=True))
    less = sum(value < null.low for value, null in zip(means, nulls, strict=True))
    return (
        f"The mean overlap of all pairs is {percent_spread(means)} over "
        f"{count(len(layers), 'layer')}; shuffled labels give "
        f"{percent_spread([null.value for null in nulls])}, independent sets "
        f"{percent(analysis.overlap.independent)}. The mean lies above the 95 % range that the "
        f"mean of all pairs has under shuffled labels in {more} and below it in {less} of "
        f"{count(len(layers), 'layer')}."
    )


def _cell(value: float) -> str:
    return f"{value:.1f}" if value else "0"


def _draw_null(axes: Axes, numbers: Sequence[int], layers: Sequence[OverlapMatrix]) -> None:
    """The range of single pairs, for the bars, and the narrower one of their mean, for the line."""
    places = across(numbers)
    again = len(places) // len(layers)
    for nulls, colour, label in (
        ([matrix.null for matrix in layers], "#e6e6e6", "null: 95 % of single pairs"),
        ([matrix.null_mean for matrix in layers], "#b5b5b5", "null: 95 % of the mean"),
    ):
        low, high = [null.low for null in nulls * again], [null.high for null in nulls * again]
        axes.fill_between(places, low, high, color=colour, label=label, linewidth=0)


def pair_values(matrix: OverlapMatrix) -> list[float]:
    """The overlap of every two functionalities, each pair once."""
    return [matrix.values[a][b] for a, b in combinations(range(len(matrix.values)), 2)]


def tree(
    linkage: Sequence[Sequence[float]], size: int
) -> tuple[list[int], list[tuple[Branch, Branch, float]]]:
    """The order of the leaves that lets no two branches cross, and the joints of the tree.

    Args:
        linkage: scipy's form: two clusters, the height of their joint and its leaves, for each
            joint; leaves are 0 to ``size - 1`` and every joint makes the next cluster.
        size: leaves.
    """
    order = _leaves(linkage, size, size + len(linkage) - 1) if linkage else list(range(size))
    branches = [Branch(order.index(leaf), 0.0) for leaf in range(size)]
    joints = []
    for first, second, height, _ in linkage:
        upper, lower = branches[int(first)], branches[int(second)]
        joints.append((upper, lower, height))
        branches.append(Branch((upper.place + lower.place) / 2, height))
    return order, joints


def _leaves(linkage: Sequence[Sequence[float]], size: int, cluster: int) -> list[int]:
    if cluster < size:
        return [cluster]
    first, second, *_ = linkage[cluster - size]
    return [leaf for part in (first, second) for leaf in _leaves(linkage, size, int(part))]


def _draw_tree(axes: Axes, joints: Sequence[tuple[Branch, Branch, float]], size: int) -> None:
    for upper, lower, height in joints:
        axes.plot(
            [upper.height, height, height, lower.height],
            [upper.place + 0.5, upper.place + 0.5, lower.place + 0.5, lower.place + 0.5],
            color=INK,
            linewidth=1.3,
        )
    lowest = min((height for *_, height in joints), default=1.0)
    highest = max((height for *_, height in joints), default=1.0)
    margin = max(0.25 * (highest - lowest), 0.002)
    axes.set(ylim=(size, 0), xlim=(lowest - margin, highest + margin / 8), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.set(xlabel="1 - shared part", title="which are alike")
    axes.spines["left"].set_visible(False)


def _numbers(analysis: Analysis) -> list[int]:
    """Numbers of the layers, which the overlap's list leaves to the scores'."""
    layers = analysis.functionality.neurons
    if len(layers) == len(analysis.overlap.layers):
        return [layer.layer for layer in layers]
    return list(range(len(analysis.overlap.layers)))
