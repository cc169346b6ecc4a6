"""The page on a search over recipes: the front of what nothing beats, and every trial."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from brickwork.combine.search_results import SearchResult, TrialRow
from brickwork.report.html import Plate, plate_of, render, style_sheet, write_page
from brickwork.report.selection import Listing
from brickwork.report.style import FAINT, INK, canvas, legend_below, short, styled
from brickwork.report.tables import Cell, Table

SEARCH_PAGE, SEARCH_FIGURES = "search.html", "search-figures"
_TEMPLATE = "selection.html.j2"
_FRONT, _METHOD, _PARENT = "#0072B2", "#D55E00", "#009E73"
_TRIALS_SHOWN = 500


def write_search_report(result: SearchResult, folder: Path) -> list[Path]:
    """Write ``search.html`` and its figure, and return their paths.

    Args:
        result: the document; nothing else is read.
        folder: made if it is missing. The figure goes to ``search-figures`` in it.
    """
    plates = [
        plate_of(
            "front", "What was tried, and what nothing beats", caption_front(result),
            draw_front(result),
        )
    ]  # fmt: skip
    content = search_page(result, plates)
    return write_page(folder, SEARCH_PAGE, content=content, plates=plates, figures=SEARCH_FIGURES)


@styled
def draw_front(result: SearchResult) -> Figure:
    """All trials grey, the front marked, parents and single methods beside; search, held-out."""
    figure = canvas(4.6)
    panels = figure.subplots(1, 2)
    for axes, held_out in zip(panels, (False, True), strict=True):
        axes.set_title("on held-out instances" if held_out else "on the instances searched on")
        for kind, label, look in (
            ("trial", "trial", {"color": FAINT, "marker": "o", "alpha": 0.45}),
            ("front", "front", {"color": _FRONT, "marker": "o"}),
            ("method", "single method, equal weights", {"color": _METHOD, "marker": "s"}),
            ("parent", "parent alone", {"color": _PARENT, "marker": "^"}),
        ):
            points = [_point(result, row, held_out) for row in result.rows if kind == _group(row)]
            found = [point for point in points if point is not None]
            axes.plot(
                [x for x, _ in found], [y for _, y in found], linestyle="none", label=label, **look
            )
        two = len(result.objectives) > 1
        axes.set_xlabel(_axis(result.objectives[0]) if two else "trial")
        axes.set_ylabel(_axis(result.objectives[1 if two else 0]))
        if not two and (best := best_method(result)) is not None:
            value = _values(best, held_out)
            if value is not None:
                axes.axhline(value[result.objectives[0]], color=INK, linestyle=":", linewidth=1.0)
    legend_below(figure, panels[0], columns=4)
    return figure


def caption_front(result: SearchResult) -> str:
    """What is drawn, and the best trial beside the best single method."""
    axes = " and ".join(map(_axis, result.objectives[:2]))
    more = f" (of {len(result.objectives)} objectives)" if len(result.objectives) > 2 else ""
    return (
        f"Every point is one way to combine, by {axes}{more}; lower is better. Grey: trials; blue: "
        "the front, which no trial beats in all objectives. Only the front, parents and single "
        f"methods were measured on held-out instances. {_comparison(result)}"
    )


def search_page(result: SearchResult, plates: Sequence[Plate]) -> str:
    """The whole page; every name in it is escaped."""
    facts = [
        ("Base", result.base),
        ("Fingerprint of the base", result.fingerprint),
        ("Combined", ", ".join(result.operands)),
        ("Data", result.data),
        ("Instances searched on", f"{result.instances:,}"),
        ("Held-out instances", f"{result.held_out:,}"),
        ("Sampler", result.sampler),
        ("Seed", result.seed),
        ("Brickwork", result.brickwork),
    ]
    measured = [row for row in result.rows if row.held_out is not None]
    trials = [row for row in result.rows if row.kind == "trial"][:_TRIALS_SHOWN]
    tables = (
        Listing("measured", "The front, parents and single methods",
                "Objectives on the instances searched on, and on held-out ones.",
                _table(result, measured)),
        Listing("trials", "All trials", "In order; failed ones with the reason.",
                _table(result, trials)),
    )  # fmt: skip
    return render(
        _TEMPLATE,
        title=f"Ways to combine {', '.join(result.operands)}",
        look=style_sheet(),
        opening=list(_opening(result)),
        limits=list(_limits(result)),
        plates=plates,
        tables=tables,
        facts=facts,
    )


def best_method(result: SearchResult) -> TrialRow | None:
    """The single method that is best in the first objective on the instances searched on."""
    rows = [row for row in result.rows if row.kind == "method" and row.values is not None]
    return min(rows, key=lambda row: (row.values or {})[result.objectives[0]], default=None)


def best_trial(result: SearchResult) -> TrialRow | None:
    """The trial that is best in the first objective on the instances searched on."""
    rows = [row for row in result.rows if row.kind == "trial" and row.values is not None]
    return min(rows, key=lambda row: (row.values or {})[result.objectives[0]], default=None)


def _opening(result: SearchResult) -> Iterator[str]:
    trials = [row for row in result.rows if row.kind == "trial"]
    failed = sum(row.values is None for row in trials)
    yield (
        f"{len(trials)} ways to combine {len(result.operands)} parts were tried, of which {failed} "
        f"failed; {sum(row.front for row in trials)} are on the front."
    )
    yield _comparison(result)


def _comparison(result: SearchResult) -> str:
    name = result.objectives[0]
    trial, method = best_trial(result), best_method(result)
    if trial is None or method is None or trial.held_out is None or method.held_out is None:
        return "Too little succeeded for the best trial and the best method to be compared."
    ours, theirs = trial.held_out[name], method.held_out[name]
    word = "better than" if ours < theirs else "no better than"
    return (
        f"Chosen by {_axis(name)} on the instances searched on, the best trial ({trial.method}) "
        f"reaches {ours:.4g} on held-out ones, {word} the best single method ({method.label}) "
        f"with {theirs:.4g}."
    )


def _limits(result: SearchResult) -> Iterator[str]:
    yield (
        "A search finds what fits its instances by luck, too: judge by the held-out column alone, "
        f"and remember that it rests on {result.held_out:,} instances."
    )
    yield "The front is that of the instances searched on; on others some of it may be beaten."


def _table(result: SearchResult, rows: Sequence[TrialRow]) -> Table:
    columns = (
        "what", "method", "parameters", "rank", *map(_axis, result.objectives),
        *(f"held-out {_axis(name)}" for name in result.objectives), "note",
    )  # fmt: skip
    return Table(
        columns,
        [
            (
                Cell(short(row.label, 40), title=row.label),
                Cell(row.method),
                Cell(short(_written(row), 60), title=_written(row)),
                Cell("" if row.rank is None else str(row.rank)),
                *(_cell(row.values, name) for name in result.objectives),
                *(_cell(row.held_out, name) for name in result.objectives),
                Cell("on the front" if row.front else short(row.reason, 60), title=row.reason),
            )
            for row in rows
        ],
    )


def _cell(values: dict[str, float] | None, name: str) -> Cell:
    if values is None:
        return Cell("not measured")
    return Cell(f"{values[name]:.4g}", values[name])


def _written(row: TrialRow) -> str:
    blocks = [
        ", ".join(f"{name} {_short(value)}" for name, value in block.items())
        for block in row.parameters
    ]
    return " | ".join(blocks)


def _short(value: object) -> str:
    if isinstance(value, list):
        return "[" + " ".join(map(_short, value)) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _group(row: TrialRow) -> str:
    return "front" if row.front else row.kind


def _values(row: TrialRow, held_out: bool) -> dict[str, float] | None:
    return row.held_out if held_out else row.values


def _point(result: SearchResult, row: TrialRow, held_out: bool) -> tuple[float, float] | None:
    values = _values(row, held_out)
    if values is None:
        return None
    first = values[result.objectives[0]]
    if len(result.objectives) > 1:
        return first, values[result.objectives[1]]
    return float(row.number), first


def _axis(objective: str) -> str:
    if objective == "size":
        return "bytes"
    name = objective.removeprefix("loss").removeprefix(":")
    return f"loss on {name}, nats per token" if name else "mean loss, nats per token"
