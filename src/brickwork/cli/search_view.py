"""What ``brickwork search`` shows a person."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def render_plan(console: "Console", document: dict[str, Any]) -> None:
    """What would be done."""
    console.print(
        f"{document['tries']:,} candidates of {', '.join(document['operands'])} would be tried"
        + (f", chosen along {document['axes']} axes" if document["axes"] else "")
        + f", each on {document['instances']:,} instances; {document['held_out']:,} are held out",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def render_learned(console: "Console", document: dict[str, Any]) -> None:
    """The weights, and losses beside those of no learning."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table("weights", "learned on", "held out", box=SIMPLE)
    for name, loss in document["search"].items():
        table.add_row(Text(name), f"{loss:.4f}", f"{document['held_out'][name]:.4f}")
    console.print(table)
    for name, weights in document["weights"].items():
        console.print(f"{name}: {' '.join(f'{w:.3f}' for w in weights)}", markup=False)
    made = [document[key] for key in ("configuration", "brick") if key in document]
    console.print(
        f"losses are nats per response token; written: {', '.join(made) or document['out']}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def render_search(console: "Console", document: dict[str, Any]) -> None:
    """The front, parents and single methods."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    names = document["objectives"]
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for head in ("what", *(column for name in names for column in (name, "held out"))):
        table.add_column(Text(head), overflow="fold")
    for row in document["rows"]:
        if row["held_out"] is not None and row["values"] is not None:
            numbers = (f"{row[side][n]:.4g}" for n in names for side in ("values", "held_out"))
            what = row["label"] + (f", {row['method']}" if row["kind"] == "trial" else "")
            table.add_row(Text(what + (" *" if row["front"] else "")), *numbers)
    console.print(table)
    failed = sum(row["values"] is None for row in document["rows"])
    console.print(
        f"* no trial is better in all objectives; {failed} failed; all trials: "
        f"{document['report']}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
