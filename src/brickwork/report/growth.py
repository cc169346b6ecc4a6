"""The page on a continued training: how the loss of each functionality went, step by step."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brickwork.errors import DataError
from brickwork.grow.curve import CURVE_FILE, FORMAT, Curve, curve_problems
from brickwork.report.document import invalid, read_document
from brickwork.report.factor_axes import loss_axis
from brickwork.report.html import Plate, plate_of, render, style_sheet, write_page
from brickwork.report.numbers import amount, count, percent
from brickwork.report.router_lines import nats
from brickwork.report.selection import Listing
from brickwork.report.style import INK, canvas, legend_below, legend_name, looks, short, styled
from brickwork.report.tables import Cell, Table

PAGE, FIGURES = "training.html", "training-figures"
WHAT = "a training"
_WINDOW = 0.05  # of the steps, over which the loss of batches is averaged


def read_curve(folder: Path) -> Curve:
    """The document in a folder, checked to be one that a page can be drawn from.

    Raises:
        DataError: if it is missing, damaged, of another format, or contradicts itself.
    """
    return read_document(folder / CURVE_FILE, Curve, curve_problems, format=FORMAT, what=WHAT)


def write_curve_report(curve: Curve, folder: Path) -> list[Path]:
    """Write ``training.html`` and its figures, and return their paths, the page's first.

    Args:
        curve: the document; nothing else is read.
        folder: made if it is missing.

    Raises:
        DataError: if the document contradicts itself.
    """
    if problems := list(curve_problems(curve)):
        raise DataError(invalid("the document", WHAT, problems))
    plates = list(_plates(curve))
    note = "Nats per response token, step by step."
    tables = [Listing("table", "All losses", note, losses_table(curve))]
    content = render(
        "selection.html.j2",
        title=f"{curve.model or 'A model'}, trained for {count(len(curve.training), 'step')}",
        look=style_sheet(),
        opening=list(_opening(curve)),
        limits=list(_limits(curve)),
        plates=plates,
        tables=tuple(tables if curve.losses else ()),
        facts=_facts(curve),
    )
    return write_page(folder, PAGE, content=content, plates=plates, figures=FIGURES)


def _plates(curve: Curve) -> Iterator[Plate]:
    if curve.losses:
        yield plate_of(
            "losses", "Loss of each functionality", caption_losses(curve), draw_losses(curve)
        )
        yield plate_of("changes", "Won and lost", _CAPTION_CHANGES, draw_changes(curve))
    yield plate_of("batches", "Loss of the batches", _CAPTION_BATCHES, draw_batches(curve))


@styled
def draw_losses(curve: Curve) -> Figure:
    """A line for each functionality."""
    figure = canvas(3.8)
    axes = figure.subplots()
    for (name, losses), look in zip(curve.losses.items(), looks(len(curve.losses)), strict=True):
        axes.plot(
            curve.steps, losses, color=look.colour, marker=look.marker, label=legend_name(name)
        )
    axes.set(xlabel="step", ylabel="nats per response token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss_axis(axes, [loss for own in curve.losses.values() for loss in own])
    legend_below(figure, axes, columns=4)
    return figure


def caption_losses(curve: Curve) -> str:
    """What fell and what rose most."""
    changes = {name: curve.change(name) for name in curve.losses}
    best, worst = min(changes, key=lambda n: changes[n]), max(changes, key=lambda n: changes[n])
    told = f"{best} changed by {nats(changes[best])} nats"
    if best != worst:
        told += f", {worst} by {nats(changes[worst])}"
    return f"Mean loss on watched instances, none of them trained on. From first to last, {told}."


@styled
def draw_changes(curve: Curve) -> Figure:
    """For each functionality how far its loss went, and where it ended."""
    names = list(curve.losses)
    figure = canvas(1.2 + 0.34 * len(names))
    axes = figure.subplots()
    for place, (name, look) in enumerate(zip(names, looks(len(names)), strict=True)):
        moved = [loss - curve.losses[name][0] for loss in curve.losses[name]]
        axes.plot([min(moved), max(moved)], [place, place], color=look.colour, linewidth=2)
        axes.scatter(
            [moved[-1]], [place], c=look.colour, marker=look.marker, s=44, edgecolors=INK,
            linewidths=0.6, zorder=3,
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="change of the loss, nats per response token")
    axes.grid(visible=False, axis="y")
    return figure


_CAPTION_CHANGES = (
    "How far each loss moved from where it was before the training: the mark is the end, the line "
    "all that was on the way. Left of zero is learned, right of it forgotten."
)


@styled
def draw_batches(curve: Curve) -> Figure:
    """The loss of every batch, and a running mean."""
    figure = canvas(3.0)
    axes = figure.subplots()
    steps = range(1, len(curve.training) + 1)
    axes.plot(steps, curve.training, color="#c9d3dc", linewidth=0.8, label="each batch")
    axes.plot(steps, running_mean(curve.training), color=looks(1)[0].colour, label="running mean")
    axes.set(xlabel="step", ylabel="loss of the batch, nats")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes)
    return figure


_CAPTION_BATCHES = (
    "The loss that was trained on, of the replayed instances too. Its running mean is over a "
    "twentieth of the steps."
)


def running_mean(values: tuple[float, ...]) -> list[float]:
    """The mean of each value and those before it, over a twentieth of them.

    >>> running_mean((4.0, 2.0))
    [4.0, 2.0]
    """
    wide = max(1, round(_WINDOW * len(values)))
    parts = (values[max(0, end - wide) : end] for end in range(1, len(values) + 1))
    return [sum(part) / len(part) for part in parts]


def losses_table(curve: Curve) -> Table:
    """A row for each step at which losses were measured."""
    rows = [
        (
            Cell(f"{step:,}", step),
            *(Cell(f"{losses[place]:.3f}", losses[place]) for losses in curve.losses.values()),
        )
        for place, step in enumerate(curve.steps)
    ]
    return Table(("step", *(short(name) for name in curve.losses)), rows)


def _opening(curve: Curve) -> Iterator[str]:
    part = "All" if curve.trained == curve.parameters else percent(curve.trained / curve.parameters)
    replayed = (
        f"{percent(curve.share)} of every batch came from {count(curve.replayed, 'older instance')}"
        if curve.share
        else "nothing older was replayed"
    )
    yield (
        f"{part} of its {amount(curve.parameters)} numbers were trained on "
        f"{count(curve.sequences, 'instance')}; {replayed}."
    )
    risen = [name for name in curve.losses if curve.change(name) > 0]
    if risen:
        most = max(risen, key=curve.change)
        yield (
            f"At {len(risen)} of {count(len(curve.losses), 'functionality')} the loss is higher "
            f"than before, most at {most} ({nats(curve.change(most))} nats)."
        )
    elif curve.losses:
        yield "No watched functionality is worse than before."


def _limits(curve: Curve) -> Iterator[str]:
    yield (
        "A loss on given answers is not the quality of answers that the model would write itself."
    )
    few = [name for name, number in curve.instances.items() if number < 30]
    if few:
        yield f"Fewer than 30 instances were watched of {', '.join(few)}: changes may be luck."


def _facts(curve: Curve) -> list[tuple[str, object]]:
    return [
        ("Numbers trained", f"{curve.trained:,} of {curve.parameters:,}"),
        ("Watched", ", ".join(f"{n}: {c:,}" for n, c in curve.instances.items()) or "nothing"),
        *((name.replace("_", " ").capitalize(), value) for name, value in curve.recipe.items()),
        ("Brickwork", curve.brickwork),
    ]
