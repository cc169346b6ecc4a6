"""The page on a family of stitched models: what each costs and loses, beside the two it is from."""

import math
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from brickwork.combine.stitch_results import (
    FORMAT,
    STITCH_FILE,
    StitchedMember,
    Stitching,
    stitching_problems,
)
from brickwork.errors import DataError
from brickwork.report.document import invalid, read_document
from brickwork.report.html import plate_of, render, style_sheet, write_page
from brickwork.report.numbers import amount, count, percent_spread
from brickwork.report.router_lines import nats
from brickwork.report.selection import Listing
from brickwork.report.style import INK, canvas, legend_below, short, styled
from brickwork.report.tables import Cell, Table

PAGE, FIGURES = "stitching.html", "stitching-figures"
WHAT = "a family of stitched models"
_COLOURS = {"ends": "white", "stitched": "#0072B2", "untuned": "#8a8a8a"}


def read_stitching_report(folder: Path) -> Stitching:
    """The document in a folder, checked to be one that a page can be drawn from.

    Raises:
        DataError: if it is missing, damaged, of another format, or contradicts itself.
    """
    return read_document(
        folder / STITCH_FILE, Stitching, stitching_problems, format=FORMAT, what=WHAT
    )


def write_stitching_report(stitching: Stitching, folder: Path) -> list[Path]:
    """Write ``stitching.html`` and its figures, and return their paths.

    Args:
        stitching: the document; nothing else is read.
        folder: made if it is missing.

    Raises:
        DataError: if the document contradicts itself.
    """
    if problems := list(stitching_problems(stitching)):
        raise DataError(invalid("the document", WHAT, problems))
    plates = [
        plate_of("curve", "Cost against loss", caption_curve(stitching), draw_curve(stitching)),
        plate_of(
            "explained", "What the maps explain", caption_explained(stitching),
            draw_explained(stitching),
        ),
    ]  # fmt: skip
    content = render(
        "selection.html.j2",
        title=f"Models between {stitching.front.name} and {stitching.back.name}",
        look=style_sheet(),
        opening=list(_opening(stitching)),
        limits=list(_limits(stitching)),
        plates=plates,
        tables=(
            Listing(
                "members", "All members",
                "F:B is F blocks of the front, then the back from its block B on. Losses in nats "
                "per response token.",
                members_table(stitching),
            ),
        ),
        facts=_facts(stitching),
    )  # fmt: skip
    return write_page(folder, PAGE, content=content, plates=plates, figures=FIGURES)


def _facts(stitching: Stitching) -> list[tuple[str, object]]:
    return [
        *(
            (f"The {side}", f"{model.name}, {model.weights}")
            for side, model in (("front", stitching.front), ("back", stitching.back))
        ),
        ("Data", stitching.data),
        ("Fitted on", f"{stitching.fitted_on:,} instances, {stitching.fitted_tokens:,} tokens"),
        ("Measured on", ", ".join(f"{n}: {c:,}" for n, c in stitching.measured_on.items())),
        ("Ridge", f"{stitching.ridge:g}"),
        ("Steps of tuning", stitching.tune_steps),
        ("Seed", stitching.seed),
        ("Brickwork", stitching.brickwork),
    ]


@styled
def draw_curve(stitching: Stitching) -> Figure:
    """Every member by its operations for a token and its mean loss; a line between the two ends."""
    figure = canvas(4.4)
    axes = figure.subplots()
    ends = [*stitching.of("front"), *stitching.of("back")]
    axes.plot(
        [_mega(m) for m in ends], [m.loss for m in ends], color=INK, linestyle="--", linewidth=1,
        label="one of the two at random", zorder=1,
    )  # fmt: skip
    stitched = sorted(stitching.of("stitched"), key=lambda m: m.flops)
    untuned = [m for m in stitched if m.untuned]
    if untuned:
        axes.scatter(
            [_mega(m) for m in untuned], [_mean(m.untuned or {}) for m in untuned], marker="x",
            c=_COLOURS["untuned"], s=34, label="stitched, as fitted", zorder=2,
        )  # fmt: skip
    axes.plot([_mega(m) for m in stitched], [m.loss for m in stitched], color="#b9d6e8", zorder=1)
    for members, name, marker in ((stitched, "stitched", "o"), (ends, "ends", "D")):
        label = {"stitched": "stitched, tuned" if untuned else "stitched", "ends": "the two models"}
        axes.scatter(
            [_mega(m) for m in members], [m.loss for m in members], c=_COLOURS[name],
            edgecolors=INK, marker=marker, s=46, linewidths=0.8, label=label[name], zorder=3,
        )  # fmt: skip
    for member in stitching.members:
        axes.annotate(
            _label(stitching, member), (_mega(member), member.loss), xytext=(5, 6),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    axes.margins(x=0.12, y=0.15)
    axes.set(xlabel="million operations for a token", ylabel="mean loss, nats per response token")
    legend_below(figure, axes, columns=4)
    return figure


def caption_curve(stitching: Stitching) -> str:
    """How far the members lie from the line between the two models."""
    told = [
        f"{member.name} {nats(member.loss - stitching.mixed_loss(member.flops))}"
        for member in stitching.of("stitched")
    ]
    return (
        "Mean loss over functionalities on held-out instances, against multiplications and "
        "additions in linear maps for a token. Diamonds are the two models as they are. The dashed "
        "line is what costs nothing to have: to ask one of the two at random, now and then. "
        f"Distance from it in nats: {'; '.join(told)}. Below it a stitched model is worth having."
    )


@styled
def draw_explained(stitching: Stitching) -> Figure:
    """For every stitch the share of variance that its map explains."""
    stitched = stitching.of("stitched")
    figure = canvas(1.2 + 0.34 * len(stitched))
    axes = figure.subplots()
    for field, label, colour, marker in (
        ("explained", "of all channels together", "#0072B2", "o"),
        ("explained_median", "of the median channel", "#D55E00", "s"),
    ):
        found = [(getattr(m, field), n) for n, m in enumerate(stitched)]
        known = [(100 * share, n) for share, n in found if share is not None]
        axes.scatter(
            [share for share, _ in known], [n for _, n in known], c=colour, edgecolors=INK,
            marker=marker, s=40, linewidths=0.8, label=label, zorder=3,
        )  # fmt: skip
    axes.set_yticks(range(len(stitched)), [member.name for member in stitched])
    axes.set(ylim=(len(stitched) - 0.4, -0.6), xlabel="variance explained, %")
    axes.axvline(100, color=INK, linewidth=0.8, linestyle="--")
    axes.grid(visible=False, axis="y")
    legend_below(figure, axes)
    return figure


def caption_explained(stitching: Stitching) -> str:
    """The least and the most that maps explain."""
    shares = [m.explained for m in stitching.of("stitched") if m.explained is not None]
    told = f" It is {percent_spread(shares)}." if shares and min(shares) >= 0 else ""
    return (
        "Share of the variance of the back's residual stream that the map from the front's "
        f"explains on held-out tokens, as it was fitted.{told} A map that says the mean always "
        "explains 0 %; a model stitched to itself, 100 %. Channels with large variance decide the "
        "whole; the median channel does not depend on them."
    )


def members_table(stitching: Stitching) -> Table:
    """Every member with its cost and its losses."""
    names = list(stitching.measured_on)
    columns = (
        "member", "parameters", "operations for a token", "mean loss", "from the line",
        "variance explained", *(short(name) for name in names),
    )  # fmt: skip
    rows = []
    for member in stitching.members:
        apart = member.loss - stitching.mixed_loss(member.flops)
        share = member.explained
        rows.append(
            (
                Cell(_label(stitching, member)),
                Cell(f"{member.parameters:,}", member.parameters),
                Cell(f"{member.flops:,}", member.flops),
                Cell(f"{member.loss:.3f}", member.loss),
                Cell(nats(apart), apart),
                Cell("") if share is None else Cell(f"{100 * share:.1f}", share),
                *(Cell(f"{member.losses[name]:.3f}", member.losses[name]) for name in names),
            )
        )
    return Table(columns, rows)


def _opening(stitching: Stitching) -> Iterator[str]:
    stitched = stitching.of("stitched")
    yield (
        f"{count(len(stitched), 'model')} of two: the first blocks of {stitching.front.name}, a "
        f"linear map, and the last blocks of {stitching.back.name}. The maps were fitted on "
        f"{amount(stitching.fitted_tokens)} tokens"
        + (
            f" and tuned for {count(stitching.tune_steps, 'step')}."
            if stitching.tune_steps
            else "."
        )
    )
    better = [m for m in stitched if m.loss < stitching.mixed_loss(m.flops)]
    if better:
        best = min(better, key=lambda m: m.loss - stitching.mixed_loss(m.flops))
        gain = nats(best.loss - stitching.mixed_loss(best.flops))
        yield (
            f"{count(len(better), 'member')} of {len(stitched)} lose less than asking one of the "
            f"two models at random at the same cost; most of all {best.name}, by {gain} nats."
        )
    else:
        yield (
            "None of them loses less than asking one of the two models at random at the same cost: "
            "this family is not worth having. Tune the maps for longer, or take models that are "
            "closer to one another."
        )


def _limits(stitching: Stitching) -> Iterator[str]:
    yield "A loss on given answers is not the quality of answers that a model would write itself."
    yield (
        "Operations are counted, not timed, and those of attention that grow with the text are "
        "left out."
    )
    few = [name for name, number in stitching.measured_on.items() if number < 30]
    if few:
        yield (
            f"Of {count(len(few), 'functionality')} there are fewer than 30 instances; differences "
            f"there may be luck: {', '.join(few)}."
        )
    yield (
        "Parameters are those that one member needs; the whole family needs those of the two "
        "models, and the maps, once."
    )


def _label(stitching: Stitching, member: StitchedMember) -> str:
    names = {"front": stitching.front.name, "back": stitching.back.name}
    return short(names.get(member.kind) or member.name, 24)


def _mega(member: StitchedMember) -> float:
    return member.flops / 1e6


def _mean(losses: dict[str, float]) -> float:
    return math.fsum(losses.values()) / len(losses)
