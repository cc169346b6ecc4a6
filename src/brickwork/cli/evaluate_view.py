"""How ``brickwork evaluate edits`` shows what it found."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from brickwork.measure.results import Interval
    from brickwork.update.evaluation_results import EditEvaluation

_LINES = 20  # facts that are named


def render(console: Console, found: "EditEvaluation", document: Mapping[str, Any]) -> None:
    """Every measure before and after, what is left out, and the facts that did not stick."""

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    table = Table("measure", "before", "after", "of")
    for row in (*_prompts(found), *_kept(found), *_texts(found)):
        table.add_row(*map(Text, row))
    console.print(table)
    for note in _notes(found):
        say(note)
    failed = found.failed
    say(f"{len(found.facts) - len(failed)} of {len(found.facts)} facts stick")
    for fact in failed[:_LINES]:
        say(f"did not stick: {fact.id}: {fact.target!r} was to be said, {fact.says!r} is")
    if len(failed) > _LINES:
        say(f"and {len(failed) - _LINES} more")
    if "out" in document:
        say(f"report: {document['out']}")


def _prompts(found: "EditEvaluation") -> Iterator[tuple[str, ...]]:
    from brickwork.update.evaluation_results import GROUPS

    for name, score in (("S", found.score), ("S, strict", found.strict_score)):
        if score is not None:
            yield name, _share(score.before), _share(score.after), f"{len(found.facts)} facts"
    for group in GROUPS:
        for form in ("lenient", "strict", "tokens", "magnitude"):
            one = getattr(found.group(group), form)
            if one is not None:
                show = _signed if form == "magnitude" else _share
                yield (
                    f"{group}, {form}",
                    show(one.before),
                    show(one.after),
                    f"{one.prompts} prompts",
                )


def _kept(found: "EditEvaluation") -> Iterator[tuple[str, ...]]:
    for name, kept in (("same subject", found.same_subject), ("other facts", found.others)):
        if kept.share is not None:
            yield f"{name}, kept", "", _share(kept.share), f"{kept.right} known"


def _texts(found: "EditEvaluation") -> Iterator[tuple[str, ...]]:
    if fluency := found.fluency:
        of = f"{fluency.texts} texts"
        yield "fluency, bits", _plain(fluency.before), _plain(fluency.after), of
    for name, loss in found.perplexity.items():
        yield f"perplexity, {name}", "", _percent(loss.rise), f"{loss.instances} instances"


def _notes(found: "EditEvaluation") -> Iterator[str]:
    from brickwork.update.evaluation_results import GROUPS

    for group in GROUPS:
        prompts = found.group(group)
        if prompts.without_rival:
            yield (
                f"{group}: {prompts.without_rival} prompts have no old answer to compare with, and "
                "count in the strict forms alone"
            )
        if prompts.left_out:
            yield f"{group}: {prompts.left_out} prompts left out, for they are edited themselves"
    if found.score is None:
        yield "no S: it takes paraphrases, neighbours and old answers, which --facts can name"


def _share(one: "Interval") -> str:
    return f"{100 * one.value:.1f} [{100 * one.low:.0f}, {100 * one.high:.0f}]"


def _percent(one: "Interval") -> str:
    return f"{100 * one.value:+.1f} % [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def _plain(one: "Interval") -> str:
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _signed(one: "Interval") -> str:
    return f"{one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"
