"""How ``brickwork carve`` shows what it kept, what that costs, and what it saves."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

_WORDS = {
    "before": "full model",
    "kept": "carved",
    "random": "random units",
    "compensated": "compensated",
    "healed": "healed",
}


def render_plan(console: Console, document: Mapping[str, Any]) -> None:
    """Sizes before and after, and how much every layer keeps."""
    _print_layers(console, document)
    _print_sizes(console, document["size"])
    if document["units"] in ("neurons", "groups"):
        console.print(
            "for uniform widths; a global budget is padded to its widest layer, which nobody "
            "knows before need is measured",
            markup=False,
        )


def render(console: Console, document: Mapping[str, Any]) -> None:
    """What was kept where, losses on every functionality, and sizes."""
    _print_layers(console, document)
    losses: Mapping[str, Mapping[str, float]] = document["losses"]
    columns = list(next(iter(losses.values())))
    table = Table("nats per response token", *(_WORDS[column] for column in columns))
    for name, own in sorted(losses.items(), key=lambda pair: pair[0] != document["for"]):
        label = f"{name} (kept)" if name == document["for"] else name
        table.add_row(Text(label), *(f"{own[column]:.3f}" for column in columns))
    console.print(table)
    console.print(
        f"chosen by {document['method']} on {document['chosen_on']} instances; losses are of "
        f"{sum(document['measured_on'].values())} others",
        markup=False,
    )
    if "size" in document:
        _print_sizes(console, document["size"])
    for place, word in (("out", "checkpoint"), ("brick", "brick"), ("report", "report")):
        if place in document:
            console.print(f"{word}: {document[place]}", markup=False, soft_wrap=True)


def _print_layers(console: Console, document: Mapping[str, Any]) -> None:
    """Layers that keep as many one after the other in one line."""
    table = Table("layers", f"{document['units']} kept", "of")
    runs = groupby(document["layers"], key=lambda row: (row["kept"], row["of"]))
    for (kept, total), rows in runs:
        numbers = [row["layer"] for row in rows]
        table.add_row(_range(numbers), str(kept), str(total))
    console.print(table)


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _print_sizes(console: Console, size: Mapping[str, Any]) -> None:
    before, after = size["before"], size["after"]
    console.print(
        f"{before['parameters']:,} -> {after['parameters']:,} parameters, "
        f"{decimal(before['bytes'])} -> {decimal(after['bytes'])}, "
        f"{before['flops_per_token']:,} -> {after['flops_per_token']:,} FLOPs per token "
        f"(x {after['flops_per_token'] / before['flops_per_token']:.2f})",
        markup=False,
        soft_wrap=True,
    )
    if size.get("kept_parameters", after["parameters"]) != after["parameters"]:
        console.print(
            f"{size['kept_parameters']:,} parameters are kept; the rest pads the narrower layers "
            "with zeros",
            markup=False,
        )
