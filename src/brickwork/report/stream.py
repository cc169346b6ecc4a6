"""The page on a stream of tasks: what each strategy learned, forgot, and added."""

from collections.abc import Iterator, Sequence
from math import fsum
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from brickwork.errors import DataError
from brickwork.grow.stream_measures import (
    average,
    backward_transfer,
    forward_transfer,
    gain_share,
    gains,
)
from brickwork.grow.stream_results import (
    FORMAT,
    STREAM_FILE,
    Served,
    StreamResult,
    StreamStudy,
    study_problems,
)
from brickwork.report.document import invalid, read_document
from brickwork.report.html import Plate, plate_of, render, style_sheet, write_page
from brickwork.report.maps import Cells, Scale, heat_map
from brickwork.report.numbers import amount, count, interval, percent
from brickwork.report.selection import Listing
from brickwork.report.style import INK, canvas, legend_below, looks, short, styled
from brickwork.report.tables import Cell, Table

PAGE, FIGURES = "stream.html", "stream-figures"
WHAT = "a study of a stream of tasks"
_ACROSS = 2  # maps beside each other
_SEEN = 0.05  # nats: smaller changes have no number in a map


def read_stream(folder: Path) -> StreamStudy:
    """The document in a folder, checked to be one that a page can be drawn from.

    Raises:
        DataError: if it is missing, damaged, of another format, or contradicts itself.
    """
    return read_document(
        folder / STREAM_FILE, StreamStudy, study_problems, format=FORMAT, what=WHAT
    )


def write_stream_report(study: StreamStudy, folder: Path) -> list[Path]:
    """Write ``stream.html`` and its figures, and return their paths, the page's first.

    Args:
        study: the document; nothing else is read.
        folder: made if it is missing.

    Raises:
        DataError: if the document contradicts itself.
    """
    if problems := list(study_problems(study)):
        raise DataError(invalid("the document", WHAT, problems))
    plates = list(_plates(study))
    content = render(
        "selection.html.j2",
        title=f"{count(len(study.tasks), 'task')} learned by {study.model or 'a model'}",
        look=style_sheet(),
        opening=list(_opening(study)),
        limits=list(_limits(study)),
        plates=plates,
        tables=tuple(_tables(study)),
        facts=_facts(study),
    )
    return write_page(folder, PAGE, content=content, plates=plates, figures=FIGURES)


def _plates(study: StreamStudy) -> Iterator[Plate]:
    if study.functionalities:
        yield plate_of(
            "balance", "Learned and forgotten", caption_balance(study), draw_balance(study)
        )
    yield plate_of("curves", "Task after task", caption_curves(study), draw_curves(study))
    yield plate_of("matrices", "Every task after every task", _CAPTION_MATRICES, draw_maps(study))


@styled
def draw_balance(study: StreamStudy) -> Figure:
    """What the tasks gained against what the base lost, a point for each strategy."""
    figure = canvas(4.2)
    axes = figure.subplots()
    for one, look in zip(study.results, looks(len(study.results)), strict=True):
        assert one.overall is not None, "there are functionalities"
        change, gain = one.overall.change, _mean_gain(one)
        axes.plot([change.low, change.high], [gain, gain], color=look.colour, zorder=2)
        axes.scatter(
            [change.value], [gain], c=look.colour, marker=look.marker, s=48, edgecolors=INK,
            linewidths=0.6, zorder=3, label=short(one.label, 28),
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(
        xlabel="rise of the loss on the base's own functionalities, nats per token",
        ylabel="fall of the loss on the tasks,\nnats per token",
    )
    legend_below(figure, axes, columns=4)
    return figure


def caption_balance(study: StreamStudy) -> str:
    """Where the best place is, and who forgets most."""
    worst = max(study.results, key=_forgotten)
    return (
        "At the end of the stream. Up: the tasks are learned; right: the base's own "
        f"functionalities are forgotten, by {worst.label} most. Lines are 95 % bootstrap intervals."
    )


@styled
def draw_curves(study: StreamStudy) -> Figure:
    """The mean loss of all tasks, and of the base's functionalities, after each task."""
    figure = canvas(3.8)
    parts = [("tasks", "losses")]
    if study.functionalities:
        parts.append(("the base's functionalities", "base_losses"))
    panels = np.atleast_1d(figure.subplots(1, len(parts)))
    steps = range(len(study.tasks) + 1)
    for axes, (title, field) in zip(panels, parts, strict=True):
        for one, look in zip(study.results, looks(len(study.results)), strict=True):
            means = [fsum(row) / len(row) for row in getattr(one, field)]
            axes.plot(
                steps, means, color=look.colour, marker=look.marker, label=short(one.label, 28)
            )
        axes.set_title(title)
        axes.set_xticks(steps, ["before", *(short(task.name, 12) for task in study.tasks)])
        axes.tick_params(axis="x", rotation=30)
    panels[0].set_ylabel("nats per response token")
    legend_below(figure, panels[0], columns=4)
    return figure


def caption_curves(study: StreamStudy) -> str:
    """What stands still."""
    still = [o.label for o in study.results if all(r == o.base_losses[0] for r in o.base_losses)]
    told = f" To the last bit unchanged on the right: {', '.join(still)}." if still else ""
    return (
        "Mean losses before the stream and after each task, with the tasks that are yet to come "
        f"counted in.{told if study.functionalities else ''}"
    )


_CAPTION_MATRICES = (
    "By how many nats per token each loss has changed since before the stream: rows are the state "
    "after a task, columns what is measured; the tasks first, then the base's functionalities. "
    "Blue is learned, red is forgotten. Bold: the task that has just been learned."
)


@styled
def draw_maps(study: StreamStudy) -> Figure:
    """A map for each strategy, all with one scale."""
    maps = [_changes(one) for one in study.results]
    most = max(float(np.abs(values).max()) for values in maps) or 1.0
    scale = Scale("RdBu_r", Normalize(-most, most))
    tall = -(-len(maps) // _ACROSS)
    figure = canvas(0.6 + tall * (1.1 + 0.24 * len(study.tasks)))
    panels = figure.subplots(tall, _ACROSS, squeeze=False).ravel()
    rows = [task.name for task in study.tasks]
    columns = [*rows, *study.functionalities]
    strong = np.zeros((len(rows), len(columns)), dtype=np.bool_)
    strong[range(len(rows)), range(len(rows))] = True
    for axes, one, values in zip(panels, study.results, maps, strict=False):
        cells = Cells(lambda value: f"{value:+.1f}" if abs(value) >= _SEEN else "", strong)
        heat_map(axes, values, rows=rows, columns=columns, scale=scale, cells=cells)
        axes.set_title(short(one.label, 40))
        axes.tick_params(axis="x", labelsize=6.5, rotation=40)
        axes.tick_params(axis="y", labelsize=7)
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    return figure


def _tables(study: StreamStudy) -> Iterator[Listing]:
    yield Listing(
        "strategies", "Strategies",
        "At the end of the stream. Loss in nats per response token and share of right answers, the "
        "mean over tasks; backward transfer is by how much tasks got worse since they were "
        "learned, forward transfer by how much before.",
        strategies_table(study),
    )  # fmt: skip
    yield Listing("tasks", "Tasks", "Losses at the end of the stream.", tasks_table(study))
    if study.functionalities:
        yield Listing(
            "base", "The base's own functionalities",
            "Rise of the loss in nats per response token, with its 95 % interval.",
            base_table(study),
        )  # fmt: skip
    if any(one.served for one in study.results):
        yield Listing(
            "routes", "Who answers",
            "Prompts by what they were sent to, at the end of the stream.", routes_table(study),
        )  # fmt: skip


def strategies_table(study: StreamStudy) -> Table:
    """One line for each strategy."""
    oracle = study.result("oracle")
    columns = (
        "strategy", "loss", "right", "of the oracle's gain", "backward transfer",
        "forward transfer", "base's loss rose by", "numbers added", "FLOPs added", "seconds",
    )  # fmt: skip
    return Table(columns, [_strategy_row(one, oracle, study) for one in study.results])


def _strategy_row(
    one: StreamResult, oracle: StreamResult | None, study: StreamStudy
) -> tuple[Cell, ...]:
    cost = one.costs[-1]
    share = gain_share(one.losses, oracle.losses) if oracle else None
    seconds = fsum(step.seconds for step in one.costs)
    transfers = [backward_transfer(one.losses), forward_transfer(one.losses)]
    return (
        Cell(one.label),
        Cell(f"{average(one.losses):.3f}", average(one.losses)),
        Cell(percent(average(one.accuracies)), average(one.accuracies)),
        Cell("") if share is None else Cell(_tenths(share), share),
        *(Cell("") if value is None else Cell(f"{value:+.3f}", value) for value in transfers),
        Cell(interval(one.overall.change, "{:+.4f}") if one.overall else ""),
        Cell(f"{amount(cost.parameters)} ({percent(cost.parameters / study.parameters)})"),
        Cell(percent(cost.flops / study.flops), cost.flops / study.flops),
        Cell(f"{seconds:.0f}", seconds),
    )


def tasks_table(study: StreamStudy) -> Table:
    """One line for each task, with the loss under every strategy."""
    columns = (
        "task", "functionality", "training examples", "test examples", "before",
        *(one.label for one in study.results),
    )  # fmt: skip
    rows = []
    for place, task in enumerate(study.tasks):
        before = study.results[0].losses[0][place]
        losses = [one.losses[-1][place] for one in study.results]
        numbers = [Cell(f"{n:,}", n) for n in (task.train, task.test)]
        rows.append(
            (
                Cell(short(task.name, 34), title=task.text),
                Cell(task.functionality),
                *numbers,
                *(Cell(f"{loss:.3f}", loss) for loss in (before, *losses)),
            )
        )
    return Table(columns, rows)


def base_table(study: StreamStudy) -> Table:
    """One line for each functionality, with its rise under every strategy."""
    rows = [
        (
            Cell(name),
            Cell(interval(study.results[0].base[name].before, "{:.3f}")),
            *(Cell(interval(one.base[name].change, "{:+.3f}")) for one in study.results),
        )
        for name in study.functionalities
    ]
    columns = ("functionality", "before", *(one.label for one in study.results))
    return Table(columns, rows)


def routes_table(study: StreamStudy) -> Table:
    """Where prompts went, for every strategy that sends them."""
    columns = ("strategy", "prompts of", "number", "own brick", "another brick", "the base alone")
    rows = []
    for one in study.results:
        for name, served in one.served.items():
            shares = (served.own, served.other, served.none)
            numbers = [Cell(str(n), n) for n in (served.prompts, *shares)]
            rows.append((Cell(one.label), Cell(short(name, 34)), *numbers))
    return Table(columns, rows)


def _opening(study: StreamStudy) -> Iterator[str]:
    oracle = study.result("oracle")
    yield (
        f"{study.model or 'The model'} learned {count(len(study.tasks), 'task')} one after the "
        f"other in {count(len(study.results), 'way')}: "
        f"{', '.join(short(task.name, 34) for task in study.tasks)}."
    )
    for one in study.results:
        told = f"{one.label}: the loss on the tasks fell by {_mean_gain(one):.2f} nats"
        if oracle and one is not oracle:
            told += f", {_tenths(gain_share(one.losses, oracle.losses))} of the oracle's gain"
        if one.overall:
            told += f"; that on the base's own rose by {interval(one.overall.change, '{:+.4f}')}"
        yield f"{told}."


def _limits(study: StreamStudy) -> Iterator[str]:
    yield (
        "Intervals are of a bootstrap over instances; none of them knows how tasks, their order "
        "and the seed were chosen."
    )
    yield (
        "Tasks whose instructions are made from templates are told apart easily, by a router more "
        "than anyone: instructions in a user's own words may be sent elsewhere."
    )
    for one in study.results:
        own = [served for name, served in one.served.items() if name in one.base]
        if own:
            yield (
                f"{one.label}: {_sum(own, 'other')} of {_sum(own, 'prompts')} prompts of the "
                f"base's own functionalities were sent to a brick; of the {one.untouched} others "
                f"{one.moved} have another loss than before, by any bit."
            )


def _facts(study: StreamStudy) -> Sequence[tuple[str, object]]:
    return [
        ("Model", study.model),
        ("Parameters of the base", f"{study.parameters:,}"),
        ("Operations of the base for each token", f"{study.flops:,}"),
        ("Training and data", study.data or "not said"),
        ("Seed", study.seed),
        ("Brickwork", study.brickwork),
    ]


def _tenths(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _sum(served: Sequence[Served], field: str) -> int:
    return sum(getattr(one, field) for one in served)


def _mean_gain(one: StreamResult) -> float:
    own = gains(one.losses)
    return fsum(own) / len(own)


def _forgotten(one: StreamResult) -> float:
    return one.overall.change.value if one.overall else 0.0


def _changes(one: StreamResult) -> NDArray[np.float64]:
    """Of all losses since before the stream: a row after each task."""
    rows = [[*a, *b] for a, b in zip(one.losses, one.base_losses, strict=True)]
    values = np.array(rows, dtype=np.float64)
    found: NDArray[np.float64] = values[1:] - values[0]
    return found
