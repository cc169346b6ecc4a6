"""``brickwork model``: what a model is made of, and what can be plugged in where."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import click
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from brickwork.cli.console import emit
from brickwork.cli.options import model_options, output_options

_FORMS = {
    "gated": "gated",
    "fused_gated": "gated, in one map",
    "vanilla": "vanilla",
    "moe_gated": "gated experts",
}


@click.group()
def model() -> None:
    """What a model is made of."""


@model.command()
@click.argument("name", metavar="MODEL")
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option("--fingerprint", is_flag=True, help="Read all weights and give their fingerprint.")
@model_options
@output_options
def show(name: str, revision: str | None, fingerprint: bool, as_json: bool, **how: Any) -> None:
    """Show the anatomy of MODEL: a folder, a Hub id, or `reference`, the embedded model.

    Only the configuration is read, unless the fingerprint is asked for.
    """
    from brickwork.model.anatomy import anatomy
    from brickwork.model.load import load_model, outline_model
    from brickwork.reference.paths import resolve_model

    where = resolve_model(name)
    # The embedded model's folder has another name than the one it is known by.
    call = name if where != name else ""
    if fingerprint:
        loaded = load_model(
            where, device=how["device"], dtype=how["dtype"], revision=revision, name=call
        )
    else:
        loaded = outline_model(where, dtype=how["dtype"], revision=revision, name=call)
    document = anatomy(loaded, fingerprint=fingerprint)
    emit(document, as_json, _render(document))


def _render(document: dict[str, Any]) -> Callable[[Console], None]:
    def render(console: Console) -> None:
        console.print(_facts(document))
        if document["layers"] is None:
            unknown = (
                f"No row describes the family {document['family']!r}: its layers, heads and "
                "neurons are unknown, its linear maps are not."
            )
            console.print(Text(unknown))
        else:
            console.print(_layers(document["layers"]))
        console.print(_parameters(document["parameters"]))
        console.print(_sites(document["sites"]))

    return render


def _facts(document: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    positions = document["positions"]
    longest = positions["longest"]
    facts = {
        "model": document["name"],
        "family": document["family"],
        "layers": "unknown" if document["layers"] is None else len(document["layers"]),
        "hidden": document["hidden"],
        "vocabulary": document["vocabulary"],
        "embeddings": "tied" if document["tied_embeddings"] else "not tied",
        "positions": positions["kind"] + (f", up to {longest}" if longest else ""),
        "parameters": f"{document['parameters']['total']:,}",
        "size": f"{decimal(document['bytes'])} as {document['dtype']}",
    }
    facts |= document["fingerprint"] or {"fingerprint": "not taken (--fingerprint)"}
    facts.pop("name", None)
    for fact, value in facts.items():
        # A name from a file could hold markup.
        table.add_row(f"[bold]{fact}[/]", Text(str(value)))
    return table


def _layers(layers: list[dict[str, Any]]) -> Table:
    """One row for each run of equal layers."""
    table = Table("layers", "heads", "kv heads", "head dim", "sees", "FFN", "neurons")
    for _, run in groupby(layers, key=lambda layer: {**layer, "layer": None}):
        alike = list(run)
        first, last = alike[0], alike[-1]["layer"]
        experts = first["experts"]
        table.add_row(
            str(last) if len(alike) == 1 else f"{first['layer']}-{last}",
            str(first["heads"]),
            str(first["kv_heads"]),
            str(first["head_dim"]),
            "all tokens" if first["window"] is None else f"{first['window']} tokens",
            _FORMS[first["ffn"]],
            f"{first['neurons']:,}"
            + (f" in {experts} experts, {first['experts_per_token']} at a time" if experts else ""),
        )
    return table


def _parameters(counts: dict[str, int]) -> Table:
    table = Table("part", "parameters", "share")
    for part, count in counts.items():
        if count and part != "total":
            table.add_row(part, f"{count:,}", f"{count / counts['total']:.1%}")
    return table


def _sites(kinds: dict[str, Any]) -> Table:
    table = Table("site", "how many", "forms that fit", "for example")
    for kind, found in kinds.items():
        if found["addresses"]:
            middle = Text(found["addresses"][len(found["addresses"]) // 2])
            table.add_row(kind, str(len(found["addresses"])), ", ".join(found["forms"]), middle)
    return table
