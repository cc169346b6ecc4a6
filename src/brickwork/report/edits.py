"""The page on edits: whether they hold, how far they reach, and what else they change."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from brickwork.errors import DataError
from brickwork.measure.results import Interval
from brickwork.report.document import invalid, read_document
from brickwork.report.html import Plate, plate_of, render, style_sheet, write_page
from brickwork.report.numbers import (
    change_interval,
    count,
    interval,
    percent,
    percent_interval,
)
from brickwork.report.selection import Listing
from brickwork.report.style import INK, canvas, legend_below, short, styled
from brickwork.report.tables import Cell, Table
from brickwork.update.evaluation_results import (
    EVALUATION_FILE,
    FORMAT,
    GROUPS,
    EditEvaluation,
    FactOutcome,
    evaluation_problems,
)

PAGE, FIGURES = "evaluation.html", "evaluation-figures"
WHAT = "an evaluation of edits"
_BEFORE, _AFTER = "#8a8a8a", "#0072B2"
_NAMED = 12  # facts in the opening

# A line of the figure: its name, and the shares before and after.
_Row = tuple[str, Interval | None, Interval]


def read_edit_evaluation(folder: Path) -> EditEvaluation:
    """The document in a folder, checked to be one that a page can be drawn from.

    Raises:
        DataError: if it is missing, damaged, of another format, or contradicts itself.
    """
    return read_document(
        folder / EVALUATION_FILE, EditEvaluation, evaluation_problems, format=FORMAT, what=WHAT
    )


def write_edit_report(evaluation: EditEvaluation, folder: Path) -> list[Path]:
    """Write ``evaluation.html`` and its figures, and return their paths, the page's first.

    Args:
        evaluation: the document; nothing else is read.
        folder: made if it is missing.

    Raises:
        DataError: if the document contradicts itself.
    """
    if problems := list(evaluation_problems(evaluation)):
        raise DataError(invalid("the document", WHAT, problems))
    plates = list(_plates(evaluation))
    content = render(
        "selection.html.j2",
        title=f"{count(len(evaluation.facts), 'fact')} taught to {evaluation.model or 'a model'}",
        look=style_sheet(),
        opening=list(_opening(evaluation)),
        limits=list(_limits(evaluation)),
        plates=plates,
        tables=tuple(_tables(evaluation)),
        facts=_facts(evaluation),
    )
    return write_page(folder, PAGE, content=content, plates=plates, figures=FIGURES)


def _plates(evaluation: EditEvaluation) -> Iterator[Plate]:
    yield plate_of(
        "shares", "Before and after", caption_shares(evaluation), draw_shares(evaluation)
    )
    if evaluation.perplexity:
        yield plate_of(
            "perplexity", "Everything else", caption_perplexity(evaluation),
            draw_perplexity(evaluation),
        )  # fmt: skip


def _tables(evaluation: EditEvaluation) -> Iterator[Listing]:
    yield Listing(
        "measures", "All measures",
        "Shares in percent, differences of probabilities, bits and nats, each with its 95 % "
        "interval.",
        measures_table(evaluation),
    )  # fmt: skip
    yield Listing(
        "facts", "Fact by fact",
        "Those that did not stick first. Probabilities are of the new answer, for each token; the "
        "shares of other wordings and neighbours are strict ones.",
        facts_table(evaluation),
    )  # fmt: skip


@styled
def draw_shares(evaluation: EditEvaluation) -> Figure:
    """Every share with its interval, before and after."""
    rows = list(_share_rows(evaluation))
    figure = canvas(1.3 + 0.34 * len(rows))
    axes = figure.subplots()
    for place, (_, before, after) in enumerate(rows):
        for one, colour, marker, shift in (
            (before, _BEFORE, "D", -0.14), (after, _AFTER, "o", 0.14),
        ):  # fmt: skip
            if one is not None:
                axes.plot(
                    [100 * one.low, 100 * one.high], [place + shift] * 2, color=colour, zorder=2
                )
                axes.scatter(
                    [100 * one.value], [place + shift], c=colour, marker=marker, s=32,
                    edgecolors=INK, linewidths=0.6, zorder=3,
                    label={"D": "without the edits", "o": "with them"}[marker]
                    if place == 0 else None,
                )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-2, 102), xlabel="share, %")
    axes.grid(visible=False, axis="y")
    legend_below(figure, axes)
    return figure


def _share_rows(evaluation: EditEvaluation) -> Iterator[_Row]:
    for group in GROUPS:
        for form in ("lenient", "strict"):
            one = getattr(evaluation.group(group), form)
            if one is not None:
                yield f"{group}, {form}", one.before, one.after
    for name, kept in (("same subject", evaluation.same_subject), ("others", evaluation.others)):
        if kept.share is not None:
            yield f"{name}, kept", None, kept.share


def caption_shares(evaluation: EditEvaluation) -> str:
    """What the forms mean, and S."""
    told = ""
    if evaluation.score is not None:
        told = (
            f" S, the harmonic mean of the lenient three, is "
            f"{percent_interval(evaluation.score.after)}; without the edits it was "
            f"{percent_interval(evaluation.score.before)}."
        )
    return (
        "Lenient: the right answer is likelier than its rival, for each token. Strict: the model "
        "would say it. Right is the new answer for the prompts of the facts (efficacy) and their "
        "other wordings (paraphrase), and the old answer for other subjects of the same relation "
        "(neighbourhood), for other relations of the subject and for other facts (kept: of those "
        f"that were right before).{told} Lines are 95 % intervals."
    )


@styled
def draw_perplexity(evaluation: EditEvaluation) -> Figure:
    """By how much the perplexity of each functionality rose."""
    names = list(evaluation.perplexity)
    figure = canvas(1.1 + 0.34 * len(names))
    axes = figure.subplots()
    for place, name in enumerate(names):
        rise = evaluation.perplexity[name].rise
        axes.plot([100 * rise.low, 100 * rise.high], [place] * 2, color=_AFTER, zorder=2)
        axes.scatter([100 * rise.value], [place], c=_AFTER, s=36, edgecolors=INK, zorder=3)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set(ylim=(len(names) - 0.4, -0.6), xlabel="rise of the perplexity, %")
    axes.grid(visible=False, axis="y")
    return figure


def caption_perplexity(evaluation: EditEvaluation) -> str:
    """The functionality that suffers most."""
    worst = max(evaluation.perplexity, key=lambda name: evaluation.perplexity[name].rise.value)
    rise = evaluation.perplexity[worst].rise
    return (
        "By what share of itself the perplexity of the responses rose, on the same instances. "
        f"Most of all {worst}: {change_interval(rise)}. Lines are 95 % bootstrap intervals."
    )


def measures_table(evaluation: EditEvaluation) -> Table:
    """Every measure before and after."""
    told = (*_prompt_lines(evaluation), *_other_lines(evaluation))
    rows = [tuple(map(Cell, line)) for line in told]
    return Table(("measure", "without", "with the edits", "of"), rows)


def _prompt_lines(evaluation: EditEvaluation) -> Iterator[tuple[str, str, str, str]]:
    for name, score in (("S", evaluation.score), ("S, strict", evaluation.strict_score)):
        if score is not None:
            yield name, percent_interval(score.before), percent_interval(score.after), ""
    for group in GROUPS:
        for form in ("lenient", "strict", "tokens", "magnitude"):
            one = getattr(evaluation.group(group), form)
            if one is not None:
                show = interval if form == "magnitude" else percent_interval
                of = f"{count(one.prompts, 'prompt')}, {count(one.facts, 'fact')}"
                yield f"{group}, {form}", show(one.before), show(one.after), of


def _other_lines(evaluation: EditEvaluation) -> Iterator[tuple[str, str, str, str]]:
    for name, kept in (("same subject", evaluation.same_subject), ("others", evaluation.others)):
        if kept.share is not None:
            of = f"{kept.still} of {kept.right} that were right, of {count(kept.prompts, 'prompt')}"
            yield f"{name}, kept", "", percent_interval(kept.share), of
    if fluency := evaluation.fluency:
        of = f"{count(fluency.texts, 'text')}, change {interval(fluency.change)}"
        yield "fluency, bits", interval(fluency.before), interval(fluency.after), of
    for name, loss in evaluation.perplexity.items():
        of = f"{count(loss.instances, 'instance')}, perplexity {change_interval(loss.rise)}"
        before, after = (interval(one, "{:.3f}") for one in (loss.before, loss.after))
        yield f"nats, {short(name)}", before, after, of


def facts_table(evaluation: EditEvaluation) -> Table:
    """Every fact, those that did not stick first."""
    columns = (
        "fact", "prompt", "old answer", "new answer", "sticks", "before", "after", "other wordings",
        "neighbours", "says instead",
    )  # fmt: skip
    rows = [_fact_row(fact) for fact in sorted(evaluation.facts, key=lambda fact: fact.stuck)]
    return Table(columns, rows)


def _fact_row(fact: FactOutcome) -> tuple[Cell, ...]:
    *_, line = fact.prompt.splitlines()
    texts = (fact.id, line, fact.target_true, fact.target)
    shares = (fact.probability_before, fact.probability_after, fact.paraphrase, fact.neighbourhood)
    return (
        *(Cell(short(text, 48), title=text) for text in texts),
        Cell("yes" if fact.stuck else "no"),
        *(Cell("") if x is None else Cell(percent(x), x) for x in shares),
        Cell(short(fact.says, 32), title=fact.says),
    )


def _opening(evaluation: EditEvaluation) -> Iterator[str]:
    failed, facts = evaluation.failed, evaluation.facts
    yield (
        f"Of {count(len(facts), 'fact')} the model says {len(facts) - len(failed)} with the edits; "
        f"without them it said {sum(fact.said_before for fact in facts)}."
    )
    if failed:
        names = ", ".join(short(fact.id, 40) for fact in failed[:_NAMED])
        more = len(failed) - _NAMED
        yield f"Did not stick: {names}{f', and {more} more' if more > 0 else ''}."
    rises = [loss.rise.value for loss in evaluation.perplexity.values()]
    if rises:
        certain = [n for n, loss in evaluation.perplexity.items() if loss.rise.low > 0]
        yield (
            f"{count(len(certain), 'functionality')} of {len(rises)} certainly got worse"
            + (f": {', '.join(certain)}." if certain else ".")
        )


def _limits(evaluation: EditEvaluation) -> Iterator[str]:
    yield (
        "Intervals of shares are Wilson's, for as many trials as there are facts; other intervals "
        "are of a bootstrap over facts, texts or instances. None of them knows how the facts were "
        "chosen."
    )
    yield "The lenient form forgives an answer that the model would never give: read both."
    for group in GROUPS:
        prompts = evaluation.group(group)
        if prompts.strict is None:
            yield f"There are no prompts for {group}, so nothing is known of it."
        if prompts.without_rival:
            yield (
                f"{group}: {count(prompts.without_rival, 'prompt')} without a known old answer "
                "count in the strict forms alone."
            )
        if prompts.left_out:
            yield (
                f"{group}: {count(prompts.left_out, 'prompt')} left out, for they ask for what is "
                "edited itself."
            )
    if len(evaluation.facts) < 30:
        yield f"{count(len(evaluation.facts), 'fact')} tell little about others."


def _facts(evaluation: EditEvaluation) -> Sequence[tuple[str, object]]:
    return [
        ("Model", evaluation.model),
        ("Prompts", "as they are" if evaluation.raw else "as instructions in the chat template"),
        ("Data", evaluation.data or "none"),
        ("Seed", evaluation.seed),
        ("Brickwork", evaluation.brickwork),
    ]
