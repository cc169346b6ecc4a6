"""How ``brickwork edit`` shows what it did, or would do."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.filesize import decimal

_LINES = 12  # of each kind


def render(console: Console, document: Mapping[str, Any]) -> None:
    """What was asked, what was left out and why, and what each edit came to."""

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    for word in ("skipped", "failed"):
        _some(say, [f"{word} {one['id']}: {one['reason']}" for one in document[word]])
    _some(say, [f"note {id}: {note}" for id, note in document["notes"].items()])
    gone = document["replaced"]
    _some(say, [f"the fact {fact!r} of {edit} gives way to the new one" for edit, fact in gone])
    olds = [(one, one["old"]) for one in document["conflicts"]]
    still = [one for one, old in olds if [old["edit"], old["fact"]] not in gone]
    _some(say, [f"{one['kind']}: {one['advice']}" for one in still])
    if "site" in document:
        say(f"site {document['site']}{', found by causal tracing' if document['located'] else ''}")
        if document["note"]:
            say(document["note"])
    if document.get("dry_run"):
        _render_plan(say, document)
        return
    _render_edits(say, document)
    if document["ledger"]:
        say(f"ledger: {document['ledger']}")
    if "baked" in document:
        say(f"checkpoint: {document['baked']['out']}")


def _render_edits(say: Any, document: Mapping[str, Any]) -> None:
    held = document["holds"]
    for edit in document["edits"][:_LINES]:
        said = sum(held[fact] for fact in edit["facts"])
        say(
            f"edit {edit['id']}: the model now says {said} of its {len(edit['facts'])} facts; "
            f"{edit['seconds']:.2f} s"
        )
    if len(document["edits"]) > _LINES:
        say(f"and {len(document['edits']) - _LINES} edits more")
    old = {True: "says the old answer still", False: "says neither it nor the old answer"}
    lost = [id for id, said in held.items() if not said]
    whys = {id: old[said] for id, said in document["says_old"].items()}
    _some(say, [f"{id}: taught, but the model {whys.get(id, 'does not say it')}" for id in lost])
    if lost:
        say(
            "what it says instead: brickwork evaluate edits; to try another --site or --method, "
            "take the edit back first: brickwork ledger revoke"
        )
    taught = sum(len(edit["facts"]) for edit in document["edits"])
    before = f", and {len(held) - taught} before" if len(held) > taught else ""
    say(
        f"{taught} of {document['asked']} facts taught by {document['method']}{before}; the model "
        f"says {sum(held.values())} of them"
    )


def _render_plan(say: Any, document: Mapping[str, Any]) -> None:
    say(
        f"{len(document['facts'])} of {document['asked']} facts would be taught by "
        f"{document['method']}, in {len(document['edits'])} edits"
    )
    if document.get("statistics_bytes"):
        size = decimal(document["statistics_bytes"])
        say(f"statistics of that place are measured once, and take {size}")


def _some(say: Any, lines: list[str]) -> None:
    for line in lines[:_LINES]:
        say(line)
    if len(lines) > _LINES:
        say(f"and {len(lines) - _LINES} more")
