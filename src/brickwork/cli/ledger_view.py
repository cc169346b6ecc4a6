"""How ``brickwork ledger`` shows the edits of a model."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

_FACTS = 12  # of one edit


def render(console: Console, document: Mapping[str, Any]) -> None:
    """The edits in their order with their facts, and what was revoked."""
    if document["edits"]:
        names = [Column(name, no_wrap=True) for name in ("edit", "state", "where")]
        table = Table(*names, "fact", "prompt", "answer")
        for edit in document["edits"]:
            for row in _rows(edit):
                table.add_row(*map(Text, row))
        console.print(table)
    else:
        console.print("no edits")
    for line in document["revoked"]:
        what = "" if line["whole"] else f"{', '.join(line['facts'])} of "
        console.print(f"revoked: {what}{line['id']} ({line['when'][:10]})", markup=False)


def _rows(edit: Mapping[str, Any]) -> list[tuple[str, ...]]:
    layers = ",".join(map(str, edit["layers"]))
    first = (edit["id"], edit["state"], f"layers.{layers}@{edit['place']}")
    rows: list[tuple[str, ...]] = []
    for number, fact in enumerate(edit["facts"][:_FACTS]):
        head = ("", "", "") if number else first
        # What stands around a prompt is the same in all.
        *_, prompt = fact["prompt"].splitlines()
        rows.append((*head, fact["id"], prompt, _change(fact)))
    more = len(edit["facts"]) - _FACTS
    return [*rows, ("", "", "", f"and {more} more", "", "")] if more > 0 else rows


def _change(fact: Mapping[str, Any]) -> str:
    old = f"{fact['target_true']} → " if fact["target_true"] else ""
    return f"{old}{fact['target']}"
