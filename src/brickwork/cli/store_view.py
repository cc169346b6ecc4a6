"""How bricks of a store look on a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from brickwork.cli.console import emit

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick
    from brickwork.store.entry import Entry


def show_plan(bricks: Sequence["Brick"], known: Mapping[str, "Entry"], as_json: bool) -> None:
    """Print what adding the bricks would do; ``known`` holds the store's entries by hash."""
    rows: list[dict[str, Any]] = []
    grid = _grid("name", "form", "size", "sites", "hash", "")
    for brick in bricks:
        spec, entry = brick.spec, known.get(brick.hash)
        state = f"is there as {entry.reference}" if entry else "new"
        rows.append(
            {
                "name": spec.name,
                "form": spec.form,
                "bytes": brick.bytes,
                "sites": len(spec.sites),
                "hash": brick.hash,
                "known_as": entry.reference if entry else None,
            }
        )
        size, sites = decimal(brick.bytes), str(len(spec.sites))
        grid.add_row(spec.name, spec.form, size, sites, brick.hash[:12], state)
    emit({"would_add": rows}, as_json, lambda console: console.print(grid))


def show_entries(entries: Sequence["Entry"], as_json: bool, headline: str) -> None:
    """Print entries, for a person under a headline."""
    document = {"bricks": [entry.document() for entry in entries]}

    def render(console: Console) -> None:
        if headline:
            console.print(plain(headline))
        if entries:
            console.print(table(entries))

    emit(document, as_json, render)


def table(entries: Sequence["Entry"], scores: Sequence[float] | None = None) -> Table:
    """One row for each entry, the score in front where there is one."""
    grid = _grid(*(["score"] if scores else []), "brick", "form", "size", "base", "for", "tags")
    for number, entry in enumerate(entries):
        function, base = entry.spec.function, entry.spec.base
        purpose = function.text or ", ".join(function.labels)
        grid.add_row(
            *([f"{scores[number]:.3g}"] if scores else []),
            plain(entry.reference + (" (removed)" if entry.deleted else "")),
            plain(entry.form),
            decimal(entry.bytes),
            plain(base.name or base.weights[:8]),
            plain(purpose if len(purpose) <= 60 else f"{purpose[:57]}..."),
            plain(", ".join(entry.tags)),
        )
    return grid


def facts(document: dict[str, Any]) -> Table:
    """All that ``store show`` says, one fact to a row."""
    spec, grid = document["spec"], _grid("", "")
    rows = {
        "brick": document["reference"] + (" (removed)" if document["deleted"] else ""),
        "hash": f"sha256:{document['hash']}",
        "form": f"{spec['form']} at {len(spec['sites'])} sites, {decimal(document['bytes'])}",
        "for": spec["function"]["text"],
        "labels": ", ".join(spec["function"]["labels"]),
        "exemplars": "\n".join(spec["function"]["exemplars"][:5]),
        "base": f"{spec['base']['name']} ({spec['base']['architecture']}, "
        f"weights {spec['base']['weights'][:12]})",
        "made by": spec["lineage"]["method"],
        "from data": spec["lineage"]["data"],
        "ancestors": ", ".join(document["ancestors"]),
        "children": ", ".join(document["children"]),
        "unknown parents": ", ".join(hash_[:12] for hash_ in document["missing_parents"]),
        "measured": "\n".join(_metric(metric) for metric in spec["metrics"]),
        "licence": spec["licence"],
        "tags": ", ".join(document["tags"]),
        "added": document["created"],
        "folder": document["path"],
    }
    for field, value in rows.items():
        if value:
            grid.add_row(field, plain(value))
    grid.show_header = False
    return grid


def _metric(metric: dict[str, Any]) -> str:
    before = "" if metric["before"] is None else f"{metric['before']:.4g} -> "
    unit, data = metric["unit"], metric["data"]
    return f"{metric['name']} {before}{metric['after']:.4g} {unit}{f' ({data})' if data else ''}"


def _grid(*columns: str) -> Table:
    grid = Table(box=None, pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    return grid


def plain(text: str) -> Text:
    """The text as it is: a brick of somebody else's can neither style nor steer the terminal."""
    return Text(
        "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    )
