"""Figures of the controls beyond the paper: does the source explain it, do other scores agree."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from brickwork.measure.results import Analysis, SourceControl
from brickwork.report.numbers import count, mean, score, spread
from brickwork.report.style import (
    INK,
    canvas,
    layer_axis,
    legend_below,
    legend_name,
    looks_of,
    names_of,
    short,
    styled,
)

MOST_SOURCES = 60  # rows that are drawn; the table holds all


@styled
def draw_sources(analysis: Analysis) -> Figure:
    """Scores inside a source and where the neurons were chosen, each beside its chance."""
    rows, looks = shown_sources(analysis), looks_of(analysis)
    figure = canvas(1.0 + 0.26 * len(rows))
    axes = figure.subplots()
    places = list(range(len(rows)))
    within = [row.within for row in rows]
    colours = [looks[row.function].colour if row.function in looks else INK for row in rows]
    axes.hlines(places, [row.chance for row in rows], within, color=colours, linewidth=2.2)
    for values, colour, marker, label in (
        ([row.chance_elsewhere for row in rows], "#a8a8a8", "|", "chance elsewhere"),
        ([row.chance for row in rows], INK, "|", "chance within"),
        ([row.elsewhere for row in rows], "white", "D", "elsewhere (other sources)"),
        (within, colours, "o", "within the source"),
    ):
        points = axes.scatter(values, places, c=colour, marker=marker, s=42, label=label, zorder=3)
        if marker in "oD":
            points.set(edgecolor=INK, linewidth=0.8)
    axes.set_yticks(places, [f"{short(row.source, 34)} · {short(row.function)}" for row in rows])
    axes.set(xlim=(0, 1.02), ylim=(len(rows) - 0.4, -0.6), xlabel="mean score of the neurons")
    legend_below(figure, axes)
    return figure


def caption_sources(analysis: Analysis) -> str:
    """How far the neurons reach inside a source, beside what chance gives there."""
    rows = analysis.functionality.sources
    above = sum(row.within > row.chance for row in rows)
    cut = len(rows) - len(shown_sources(analysis))
    rest = f" The {cut} pairs with the fewest instances are not drawn." if cut else ""
    return (
        f"Inside one source, neurons chosen on all other sources score "
        f"{score(mean([row.within for row in rows]))} on average, against "
        f"{score(mean([row.chance for row in rows]))} by chance; where they were chosen they score "
        f"{score(mean([row.elsewhere for row in rows]))}, against "
        f"{score(mean([row.chance_elsewhere for row in rows]))} by chance. They beat chance in "
        f"{above} of {count(len(rows), 'pair')} of source and functionality.{rest}"
    )


def shown_sources(analysis: Analysis) -> list[SourceControl]:
    """The pairs that are drawn: those with most instances, by functionality."""
    rows = analysis.functionality.sources
    largest = sorted(rows, key=lambda row: -row.positives)[:MOST_SOURCES]
    order = {name: place for place, name in enumerate(names_of(analysis))}
    return sorted(largest, key=lambda row: (order.get(row.function, len(order)), row.source))


@styled
def draw_attribution(analysis: Analysis) -> Figure:
    """How far scores by activation agree with scores by gradient times activation."""
    layers, share = analysis.functionality.attribution, analysis.settings.share
    figure = canvas(3.2)
    left, right = figure.subplots(1, 2)
    for name, look in looks_of(analysis).items():
        for axes, field in ((left, "correlation"), (right, "overlap")):
            points = [
                (row.layer, getattr(row, field)[name])
                for row in layers
                if name in getattr(row, field)
            ]
            axes.plot(
                *_columns(points), color=look.colour, marker=look.marker, label=legend_name(name)
            )
    left.axhline(0, color=INK, linestyle=":", linewidth=1.1)
    right.axhline(share, color=INK, linestyle=":", linewidth=1.1)
    left.set_title("correlation of all neurons' scores")
    right.set_title("shared part of the functional neurons")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        layer_axis(axes, [row.layer for row in layers])
    legend_below(figure, left)
    return figure


def caption_attribution(analysis: Analysis) -> str:
    """The agreement over layers and functionalities, beside what chance gives."""
    layers = analysis.functionality.attribution
    correlations = [value for row in layers for value in row.correlation.values()]
    overlaps = [value for row in layers for value in row.overlap.values()]
    return (
        f"The two ways to score correlate at {score(mean(correlations))} on average "
        f"({spread(correlations)} over layers and functionalities; unrelated scores: 0) and share "
        f"{score(mean(overlaps))} of the functional neurons ({spread(overlaps)}; by chance: "
        f"{score(analysis.settings.share)}). Attribution was computed on "
        f"{count(analysis.functionality.attribution_instances, 'instance')}."
    )


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [place for place, _ in points], [value for _, value in points]
