"""The page on a check before merging: how updates stand to each other, and what methods keep."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from brickwork.measure.interference_results import FORMAT, INTERFERENCE_FILE, Interference, Pair
from brickwork.report.document import read_document
from brickwork.report.html import render, style_sheet, write_page
from brickwork.report.maps import Cells, Scale, grid, heat_map
from brickwork.report.selection import Listing, Picture
from brickwork.report.style import canvas, legend_below, short, styled
from brickwork.report.tables import Cell, Table

PAGE, FIGURES = "interference.html", "interference-figures"
_TEMPLATE = "selection.html.j2"
_MARKERS = "os^DvPX<>ph"
_PANELS = ("cosine", "outputs", "inputs")


def read_interference(folder: Path) -> Interference:
    """A check's document, read without trust.

    Args:
        folder: where ``interference.json`` lies.

    Raises:
        DataError: if the file is missing, is not JSON, is of another format, lacks a field or
            contradicts itself.
    """
    return read_document(
        folder / INTERFERENCE_FILE, Interference, _contradictions, format=FORMAT, what="a check"
    )


def write_interference_report(found: Interference, folder: Path) -> list[Path]:
    """Write ``interference.html`` and its figures, and return their paths.

    Args:
        found: the document; nothing else is read.
        folder: made if it is missing. Figures go to ``interference-figures`` in it.
    """
    pictures = [
        Picture("pairs", "Every two, layer by layer", draw_pairs, caption_pairs),
        Picture("kept", "What each method keeps", draw_kept, caption_kept),
    ]
    drawable = [p for p in pictures if p.name != "pairs" or any(pair.sites for pair in found.pairs)]
    plates = [picture.plate(found) for picture in drawable]
    tables = [
        Listing("verdicts", "Verdicts", "Over all sites; in brackets what chance gives.",
                _pairs_table(found)),
        Listing("methods", "What each method keeps", "Kept share and, in brackets, the cosine of "
                "the merged update with the brick's own.", _kept_table(found)),
        *([Listing("neurons", "Neurons in common", "Share of each brick's change of the FFNs that "
                   "falls on the neurons of a functionality; chance in brackets.",
                   _neurons_table(found))] if found.neurons else []),
    ]  # fmt: skip
    facts = [
        ("Compared", ", ".join(found.names)), ("Base", found.base), ("Kind", found.kind),
        ("Principal directions", found.rank or "all that an update has"),
        ("Rows read", found.rows), ("Seed", found.seed), ("Brickwork", found.brickwork),
    ]  # fmt: skip
    content = render(
        _TEMPLATE,
        title=f"Do {' and '.join(found.names)} get into each other's way?",
        look=style_sheet(), opening=list(_opening(found)), limits=list(_limits(found)),
        plates=plates, tables=tables, facts=facts,
    )  # fmt: skip
    return write_page(folder, PAGE, content=content, plates=plates, figures=FIGURES)


@styled
def draw_pairs(found: Interference) -> Figure:
    """Cosine and overlaps of each pair over the layers, means over the sites of a layer."""
    lines = sum(bool(pair.sites) for pair in found.pairs)
    figure = canvas(6.4 + 0.22 * max(0, lines // 3 - 3))  # a legend of many pairs needs its rows
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for axes, field in zip(panels, _PANELS, strict=True):
        for place, pair in enumerate(pair for pair in found.pairs if pair.sites):
            layers, values, expected = _by_layer(pair, field)
            label = f"{short(pair.a, 14)}, {short(pair.b, 14)}"
            marker = _MARKERS[place % len(_MARKERS)]
            (line,) = axes.plot(layers, values, marker=marker, label=label)
            axes.plot(layers, expected, linestyle=":", color=line.get_color(), linewidth=1.0)
        axes.set_ylabel(field)
        axes.set_ylim((-1.05, 1.05) if field == "cosine" else (-0.03, 1.05))
    panels[-1].set_xlabel("layer")
    legend_below(figure, panels[0], columns=3)
    return figure


def caption_pairs(found: Interference) -> str:
    """What the lines are."""
    told = "; ".join(
        f"{pair.a} and {pair.b}: cosine {pair.numbers.cosine.value:+.3f}, outputs "
        f"{pair.numbers.outputs.value:.2f} (chance {pair.numbers.outputs.expected:.2f})"
        for pair in found.pairs
        if pair.numbers
    )
    return (
        "Cosine of the updates, and overlap of the principal directions that they write to "
        f"(outputs) and read (inputs), means over each layer's sites. {told}. Dotted: what chance "
        "gives. A layer of -1 stands for all that lies outside the layers."
    )


@styled
def draw_kept(found: Interference) -> Figure:
    """Methods by rows, updates by columns."""
    figure = canvas(1.0 + 0.32 * len(found.kept))
    values = grid([row.kept for row in found.kept], found.names)
    mesh = heat_map(
        figure.subplots(), values,
        rows=[row.method for row in found.kept], columns=found.names,
        scale=Scale("RdBu", TwoSlopeNorm(0.0, -1.0, 1.0)),
        cells=Cells(lambda share: f"{share:.2f}", np.zeros(values.shape, dtype=np.bool_)),
    )  # fmt: skip
    figure.colorbar(mesh, ax=figure.axes[0], label="kept share", aspect=20)
    return figure


def caption_kept(found: Interference) -> str:
    """What a kept share is."""
    best = max(found.kept, key=lambda row: min(row.kept.values()))
    return (
        "Share of each update that a merge by the method would keep: 1 is all of it, 0 none, below "
        f"0 it is turned round. The method that keeps most of the one that loses most is "
        f"{best.method} ({min(best.kept.values()):.2f}). An average of n updates that have nothing "
        "in common keeps 1/n of each."
    )


def _by_layer(pair: Pair, field: str) -> tuple[list[int], list[float], list[float]]:
    values: dict[int, list[tuple[float, float]]] = {}
    for site in pair.sites:
        match = re.search(r"\.([0-9]+)(?:\.|$)", site.site)
        number = getattr(site.numbers, field)
        values.setdefault(int(match[1]) if match else -1, []).append(
            (number.value, number.expected)
        )
    layers = sorted(values)
    means = [np.mean(values[layer], axis=0).tolist() for layer in layers]
    return layers, [mean[0] for mean in means], [mean[1] for mean in means]


def _opening(found: Interference) -> Iterator[str]:
    for pair in found.pairs:
        yield f"{pair.a} and {pair.b}: {pair.verdict}. {pair.advice[:1].upper()}{pair.advice[1:]}."
    limits = found.thresholds
    yield (
        f"Redundant from a cosine of {limits.redundant:g}, contradicting from "
        f"{limits.contradicting:g}, colliding from a cosine, or an overlap of outputs above "
        f"chance, of {limits.colliding:g}; else independent."
    )


def _limits(found: Interference) -> Iterator[str]:
    yield (
        "They compare weights, not behaviour: two updates that share no direction in any matrix "
        "can still change one answer. Measure losses after merging."
    )
    yield "A kept share says nothing of a rank that the result may be cut to."
    if found.rows == "some":
        yield (
            "Signs were counted, and methods tried, on a part of the rows; their thresholds are "
            "those of the rows that were read."
        )
    for name, reason in found.left_out.items():
        yield f"{name} was not tried: {reason}."


def _pairs_table(found: Interference) -> Table:
    columns = (
        "pair", "verdict", "cosine", "sign conflicts", "weighted by size", "inputs", "outputs",
        "length ratio", "sites in common", "of one alone",
    )  # fmt: skip
    return Table(columns, [_pair_row(pair) for pair in found.pairs])


def _pair_row(pair: Pair) -> tuple[Cell, ...]:
    head = (Cell(f"{pair.a}, {pair.b}"), Cell(pair.verdict))
    tail = (
        Cell(str(len(pair.sites)), len(pair.sites)),
        Cell(f"{pair.only_a}, {pair.only_b}", pair.only_a + pair.only_b),
    )
    numbers = pair.numbers
    if numbers is None:
        return (*head, *[Cell("-", 0.0)] * 6, *tail)
    both = (numbers.conflicts, numbers.weighted)
    return (
        *head,
        Cell(f"{numbers.cosine.value:+.3f} (0)", numbers.cosine.value),
        *(Cell(f"{s.value:.1%} (50%)", s.value) if s else Cell("-", 0.0) for s in both),
        *(Cell(f"{n.value:.3f} ({n.expected:.3f})", n.value)
          for n in (numbers.inputs, numbers.outputs)),
        Cell(f"{numbers.ratio:.2f}", numbers.ratio),
        *tail,
    )  # fmt: skip


def _kept_table(found: Interference) -> Table:
    rows = [
        (
            Cell(row.method),
            Cell(", ".join(f"{name} {value:g}" for name, value in row.parameters.items())),
            *(Cell(f"{row.kept[n]:.3f} ({row.cosine[n]:.2f})", row.kept[n]) for n in found.names),
        )
        for row in found.kept
    ]
    return Table(("method", "settings", *found.names), rows)


def _neurons_table(found: Interference) -> Table:
    pairs = [f"{pair.a}, {pair.b}: both" for pair in found.pairs]
    rows = [
        (
            Cell(row.function),
            *(Cell(f"{row.energy[n]:.1%} ({row.share:.0%})", row.energy[n]) for n in found.names),
            *(Cell(f"{share:.2%} ({row.both_expected:.2%})", share) for share in row.both),
        )
        for row in found.neurons
    ]
    return Table(("functionality", *found.names, *pairs), rows)


def _contradictions(found: Interference) -> Iterator[str]:
    names = set(found.names)
    if len(names) != len(found.names) or len(names) < 2:
        yield f"names: should be two or more, all different, but are {found.names}"
    if not found.kept:
        yield "kept: names no method, so there is nothing to draw"
    for place, pair in enumerate(found.pairs):
        if not {pair.a, pair.b} <= names:
            yield f"pairs.{place}: compares {pair.a!r} and {pair.b!r}, not all among the names"
    for place, row in enumerate(found.kept):
        if set(row.kept) != names or set(row.cosine) != names:
            yield f"kept.{place}: should have one number for each name"
    for place, own in enumerate(found.neurons):
        yield from _neuron_contradictions(f"neurons.{place}", own.energy, own.both, found)


def _neuron_contradictions(
    here: str, energy: dict[str, float], both: Sequence[float], found: Interference
) -> Iterator[str]:
    if set(energy) != set(found.names) or len(both) != len(found.pairs):
        yield f"{here}: should have a share for each name and each pair"
