"""How ``brickwork grow branches`` shows what it did, or would do."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table


def render(console: Console, document: Mapping[str, Any]) -> None:
    """Costs, then the loss of everyone in every domain, and what decided between branches."""

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    cost, by = document["cost"], document["by"]
    for name, domain in document["domains"].items():
        say(
            f"{name}: {domain['train']:,} texts ({domain['train_tokens']:,} tokens) to train on, "
            f"{domain['measured']:,} to measure on"
        )
    base, joined = cost["base"], cost["joined"]
    say(
        f"{by}: {joined['parameters']:,} parameters (base {base['parameters']:,}), "
        f"{joined['flops_per_token']:,} FLOPs a token (base {base['flops_per_token']:,})"
    )
    say(
        f"{decimal(cost['bytes_to_write'])} of weights to write, "
        f"{cost['training_flops']:.3g} FLOPs of training at most"
    )
    if "joined" not in document:
        return
    _losses(console, document)
    shares = {"posterior": "domain of a text, when its response begins", "routing": "expert"}
    for key, meaning in shares.items():
        if key in document:
            _shares(console, document[key], meaning)
    say(f"written: {document['out']}")


def _losses(console: Console, document: Mapping[str, Any]) -> None:
    domains = list(document["domains"])
    table = Table("loss", *domains, "mean")
    rows = {"base": document["base"]}
    rows |= {f"branch {name}": own for name, own in document["branches"].items()}
    for name, own in (rows | document["joined"]).items():
        mean = sum(own.values()) / len(own)
        table.add_row(name, *(f"{own[domain]:.4f}" for domain in domains), f"{mean:.4f}")
    console.print(table)


def _shares(console: Console, shares: Mapping[str, Mapping[str, float]], meaning: str) -> None:
    table = Table("texts of", *next(iter(shares.values())), title=f"share of each {meaning}")
    for name, own in shares.items():
        table.add_row(name, *(f"{share:.3f}" for share in own.values()))
    console.print(table)
