"""How ``brickwork stitch`` shows a family: costs, losses, and what each member answers."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def render_plan(console: Console, document: Mapping[str, Any]) -> None:
    """What every member will cost."""
    table = Table("member", "parameters", "FLOPs for a token")
    for member in document["members"]:
        name = document.get(member["name"], member["name"])
        table.add_row(Text(name), *_costs(member))
    console.print(table)
    _print_key(console, document["front"], document["back"])


def render(console: Console, document: Mapping[str, Any]) -> None:
    """The curve as a table, and where things were written."""
    names = {"front": document["front"]["name"], "back": document["back"]["name"]}
    tuned = document["tune_steps"] > 0
    table = Table(
        "member", "parameters", "FLOPs for a token", "explained",
        *(["untuned loss"] if tuned else []), "loss", "from the line",
    )  # fmt: skip
    for member in document["members"]:
        share, before = member["explained"], member["untuned"]
        mean = f"{sum(before.values()) / len(before):.3f}" if before else ""
        table.add_row(
            Text(names.get(member["name"], member["name"])),
            *_costs(member),
            "" if share is None else f"{100 * share:.1f} %",
            *([mean] if tuned else []),
            f"{member['loss']:.3f}",
            f"{member['from_line']:+.3f}" if member["name"] not in names else "",
        )
    console.print(table)
    _print_key(console, names["front"], names["back"])
    console.print(
        f"mean loss in nats per response token on {sum(document['measured_on'].values())} held-out "
        "instances; the line is one of the two models at random, at the same cost",
        markup=False,
    )
    for name, text in document.get("answers", {}).items():
        console.print(Text(f"{names.get(name, name)}: {text}"), soft_wrap=True)
    for place, word in (("out", "maps"), ("report", "report")):
        if place in document:
            console.print(f"{word}: {document[place]}", markup=False, soft_wrap=True)


def _costs(member: Mapping[str, Any]) -> tuple[str, str]:
    """In millions, so that a row fits on a line."""
    return f"{member['parameters'] / 1e6:,.2f} M", f"{member['flops'] / 1e6:,.2f} M"


def _print_key(console: Console, front: str, back: str) -> None:
    console.print(f"F:B is F blocks of {front}, then {back} from its block B on", markup=False)
