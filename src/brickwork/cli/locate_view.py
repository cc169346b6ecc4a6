"""How ``brickwork locate`` shows where facts are recalled."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def render(console: Console, document: Mapping[str, Any]) -> None:
    """The best layer of every place and kind, the site to edit, and neurons."""
    tracing = document["tracing"]
    for fact in tracing["facts"] if len(tracing["facts"]) <= 3 else []:
        told = f"{fact['prompt']} -> {fact['answer']}"
        console.print(Text(told.replace("\n", " ")), soft_wrap=True)
    facts = tracing["facts"]
    clean, corrupted = (sum(f[key] for f in facts) / len(facts) for key in ("clean", "corrupted"))
    console.print(
        f"{len(facts)} traced: the answer's probability is {clean:.3f}, with noise on the subject "
        f"{corrupted:.3f}; best layers, and how much of it they bring back:",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    console.print(_places(tracing["averages"]))
    for id, reason in list(tracing["skipped"].items())[:8]:
        console.print(f"left out: {id}: {reason}", markup=False, soft_wrap=True)
    if len(tracing["skipped"]) > 8:
        console.print(f"and {len(tracing['skipped']) - 8} more left out")
    if document["site"]:
        console.print(f"site to edit: {document['site']}", markup=False)
    if document["note"]:
        console.print(f"note: {document['note']}", markup=False, soft_wrap=True)
    for found in document["neurons"]:
        _print_neurons(console, found, document["addresses"][found["id"]])
    if "out" in document:
        console.print(f"report: {document['out']}", markup=False, soft_wrap=True)


def _places(averages: list[dict[str, Any]]) -> Table:
    kinds = list(dict.fromkeys(row["kind"] for row in averages))
    places = list(dict.fromkeys(row["place"] for row in averages))
    table = Table("place", *kinds)
    for place in places:
        best = [
            max(
                (row for row in averages if row["place"] == place and row["kind"] == kind),
                key=lambda row: row["effect"]["value"],
            )
            for kind in kinds
        ]
        table.add_row(place, *(Text(f"{b['effect']['value']:.3f} {b['address']}") for b in best))
    return table


def _print_neurons(console: Console, found: Mapping[str, Any], addresses: list[str]) -> None:
    told = " ".join(addresses) or "no neuron counts in enough wordings"
    console.print(f"neurons of {found['id']}: {told}", markup=False, soft_wrap=True)
    check = found["check"]
    console.print(
        f"  the answer has {check['before']:.3f}; with them silent {check['silent']:.3f}, with as "
        f"many random ones silent {check['random_silent']:.3f}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
