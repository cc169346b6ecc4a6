"""The page on a merge: what base, parents and child lose, and what the child keeps of a gain."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from brickwork.errors import DataError
from brickwork.measure.tradeoff import (
    FORMAT,
    LEAST_GAIN,
    TRADEOFF_FILE,
    Member,
    Role,
    Tradeoff,
    best_parents,
    kept_gains,
    rises,
)
from brickwork.report.document import invalid, read_document
from brickwork.report.factor_axes import loss_axis
from brickwork.report.html import plate_of, render, style_sheet, write_page
from brickwork.report.numbers import count, mean, percent
from brickwork.report.router_lines import nats
from brickwork.report.selection import Listing
from brickwork.report.style import INK, canvas, legend_below, short, styled
from brickwork.report.tables import Cell, Table

PAGE, FIGURES = "tradeoff.html", "tradeoff-figures"
WHAT = "a comparison of a merge with its parents"
_LOOKS: Mapping[Role, tuple[str, str]] = {
    "base": ("white", "D"), "parent": ("#c9d3dc", "s"), "child": ("#0072B2", "o"),
}  # fmt: skip
_CHILD_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def read_tradeoff(folder: Path) -> Tradeoff:
    """The document in a folder, checked to be one that a page can be drawn from.

    Raises:
        DataError: if it is missing, damaged, of another format, or contradicts itself.
    """
    return read_document(
        folder / TRADEOFF_FILE, Tradeoff, tradeoff_problems, format=FORMAT, what=WHAT
    )


def tradeoff_problems(tradeoff: Tradeoff) -> Iterator[str]:
    """What cannot be true of any merge, by field."""
    names = set(tradeoff.instances)
    if not names:
        yield "instances: names no functionality, so there is nothing to draw"
    if not tradeoff.of("child"):
        yield "members: none is a child"
    if len(tradeoff.of("base")) > 1:
        yield "members: more than one is the base"
    for place, member in enumerate(tradeoff.members):
        if set(member.losses) != names:
            yield f"members.{place}.losses: are of {sorted(member.losses)}, not {sorted(names)}"
        for name, loss in member.losses.items():
            if not (math.isfinite(loss) and loss >= 0):
                yield f"members.{place}.losses.{name}: should be at least 0, is {loss}"


def write_tradeoff_report(tradeoff: Tradeoff, folder: Path) -> list[Path]:
    """Write ``tradeoff.html`` and its figures, and return their paths.

    Args:
        tradeoff: the document; nothing else is read.
        folder: made if it is missing.

    Raises:
        DataError: if the document contradicts itself.
    """
    if problems := list(tradeoff_problems(tradeoff)):
        raise DataError(invalid("the document", WHAT, problems))
    plates = [
        plate_of("losses", "Losses of base, parents and child", caption_losses(tradeoff),
                 draw_losses(tradeoff)),
    ]  # fmt: skip
    if any(kept_gains(tradeoff, child) for child in tradeoff.of("child")):
        plates.append(
            plate_of("kept", "What is kept of the parents' gains", caption_kept(tradeoff),
                     draw_kept(tradeoff))
        )  # fmt: skip
    content = render(
        "selection.html.j2",
        title=f"A merge by {tradeoff.method}",
        look=style_sheet(),
        opening=list(_opening(tradeoff)),
        limits=list(_limits(tradeoff)),
        plates=plates,
        tables=(Listing("rows", "All losses", "Nats per response token.", losses_table(tradeoff)),),
        facts=[
            ("Method", tradeoff.method),
            ("Data", tradeoff.data),
            ("Instances", ", ".join(f"{n}: {c:,}" for n, c in tradeoff.instances.items())),
            ("Seed", tradeoff.seed),
            ("Brickwork", tradeoff.brickwork),
        ],
    )
    return write_page(folder, PAGE, content=content, plates=plates, figures=FIGURES)


@styled
def draw_losses(tradeoff: Tradeoff) -> Figure:
    """One line for each functionality, a mark for each member."""
    names = list(tradeoff.instances)
    figure = canvas(1.3 + 0.42 * len(names) + _legend_room(len(tradeoff.members)))
    axes = figure.subplots()
    places = list(range(len(names)))
    values = []
    children = tradeoff.of("child")
    for member in tradeoff.members:
        colour, marker = _LOOKS[member.role]
        if member.role == "child":
            colour = _CHILD_COLOURS[children.index(member) % len(_CHILD_COLOURS)]
        points = [member.losses[name] for name in names]
        values += points
        axes.scatter(
            points, places, c=colour, edgecolors=INK, marker=marker, s=44, linewidths=0.8,
            label=f"{member.role}: {short(member.name, 24)}", zorder=3 + (member.role == "child"),
        )  # fmt: skip
    axes.set_yticks(places, [short(name) for name in names])
    axes.set(ylim=(len(names) - 0.4, -0.6), xlabel="loss, nats per response token")
    axes.grid(visible=False, axis="y")
    loss_axis(axes, values, "x")
    legend_below(figure, axes, columns=3)
    return figure


def caption_losses(tradeoff: Tradeoff) -> str:
    """How far each child lies from the best parents."""
    told = [
        f"{child.name} lies {nats(mean(list(rises(tradeoff, child).values())))} nats above the "
        f"best parent of each {tradeoff.by} on average"
        for child in tradeoff.of("child")
        if rises(tradeoff, child)
    ]
    return (
        f"Loss in nats per response token on the same instances, for each {tradeoff.by}. "
        f"{'; '.join(told)}{'.' if told else ''} The diamond is the base, where there is one."
    )


@styled
def draw_kept(tradeoff: Tradeoff) -> Figure:
    """For each functionality at which a parent gains, the share of it that each child keeps."""
    children = tradeoff.of("child")
    shares = {child.name: kept_gains(tradeoff, child) for child in children}
    names = [name for name in tradeoff.instances if name in shares[children[0].name]]
    room = max(0.5, 0.1 * len(children))  # a bar must stay visible
    figure = canvas(1.2 + room * len(names) + _legend_room(len(children)))
    axes = figure.subplots()
    height = 0.8 / len(children)
    for row, child in enumerate(children):
        places = [place - 0.4 + (row + 0.5) * height for place in range(len(names))]
        axes.barh(
            places, [100 * shares[child.name][name] for name in names], height=0.9 * height,
            color=_CHILD_COLOURS[row % len(_CHILD_COLOURS)], label=short(child.name, 24),
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axvline(100, color=INK, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="kept of the best parent's gain, %")
    axes.grid(visible=False, axis="y")
    legend_below(figure, axes, columns=3)
    return figure


def _legend_room(entries: int) -> float:
    """Inches for what a legend of three columns has beyond two rows."""
    return 0.22 * max(0, math.ceil(entries / 3) - 2)


def caption_kept(tradeoff: Tradeoff) -> str:
    """The least and the mean share of every child."""
    told = []
    for child in tradeoff.of("child"):
        kept = kept_gains(tradeoff, child)
        least = min(kept, key=lambda name: kept[name])
        told.append(
            f"{child.name} keeps {percent(mean(list(kept.values())))} on average, least of {least} "
            f"({percent(kept[least])})"
        )
    return (
        "How much of the best parent's gain over the base the child has, in percent of it: 100 "
        "(dashed) is as good as that parent, 0 as good as the base, less is worse than the base. "
        f"{'; '.join(told)}. Where no parent gains {LEAST_GAIN} nats there is no bar."
    )


def losses_table(tradeoff: Tradeoff) -> Table:
    """Every loss; the best of each column is marked."""
    names = list(tradeoff.instances)
    best = {name: min(m.losses[name] for m in tradeoff.members) for name in names}
    rows = [
        (
            Cell(short(member.name, 40), title=member.name),
            Cell(member.role),
            *(_loss(member.losses[name], best[name]) for name in names),
            Cell(f"{(total := mean(list(member.losses.values()))):.3f}", total),
        )
        for member in tradeoff.members
    ]
    return Table(("member", "role", *(short(name) for name in names), "mean"), rows)


def _loss(value: float, best: float) -> Cell:
    return Cell(f"{value:.3f}{' *' if value == best else ''}", value)


def _opening(tradeoff: Tradeoff) -> Iterator[str]:
    parents, children = tradeoff.of("parent"), tradeoff.of("child")
    yield (
        f"{count(len(parents), 'parent')} became one by {tradeoff.method}, and "
        f"{'all were' if len(children) == 1 else 'every result was'} measured on the same "
        f"{sum(tradeoff.instances.values()):,} instances of {tradeoff.data}."
    )
    for child in children:
        yield _verdict(tradeoff, child)


def _verdict(tradeoff: Tradeoff, child: Member) -> str:
    kept, best = kept_gains(tradeoff, child), best_parents(tradeoff)
    if kept:
        worse = [name for name, share in kept.items() if share < 0]
        told = f"{child.name} keeps {percent(mean(list(kept.values())))} of its parents' gains"
        if not worse:
            return f"{told}, and is nowhere worse than the base."
        return f"{told}; at {_listed(worse)} it is worse than the base."
    above = [name for name, rise in rises(tradeoff, child).items() if rise > LEAST_GAIN]
    if not best:
        return f"{child.name} has no parents to be compared with."
    if not above:
        return f"{child.name} is as good as the best parent at every {tradeoff.by}."
    return f"{child.name} is worse than the best parent at {_listed(above)}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _limits(tradeoff: Tradeoff) -> Iterator[str]:
    yield (
        "A loss on given answers is not the quality of answers that the model would write itself."
    )
    few = [name for name, number in tradeoff.instances.items() if number < 30]
    if few:
        yield f"Of {_listed(few)} there are fewer than 30 instances: differences there may be luck."
    yield "If parents were trained on these instances, their losses are too low, and the child's."
