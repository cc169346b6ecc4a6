"""Write the generated parts of the documentation: ``python docs/generate.py``."""

from pathlib import Path

from brickwork.brick.effects import EFFECTS
from brickwork.brick.forms import forms
from brickwork.model.architecture import architectures

TABLES = Path(__file__).parent / "reference" / "tables.md"
FAMILIES = (
    "Linear maps, norms and blocks are found in any decoder model; for these families every role "
    "has a name."
)
Rows = list[tuple[str, ...]]


def table(head: tuple[str, ...], rows: Rows) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables() -> str:
    """The tables of forms, effects and families, from the rows that the code runs by."""
    of_forms = [
        (
            f"`{f.name}`", f.meaning, f.effect, ", ".join(f.sites),
            "; ".join(" + ".join(f"{s} ({' '.join(a)})" for s, a in o.items()) for o in f.slots),
            f.peft or "-", f.source,
        )
        for f in forms().values()
    ]  # fmt: skip
    of_effects = [
        (f"`{name}`", row.meaning, "any" if row.weighted else "1", "yes" if row.primitive else "no")
        for name, row in EFFECTS.items()
    ]
    families = [(f"`{name}`",) for name in sorted(architectures())]
    parts = (
        "# Tables\n\nWritten by `python docs/generate.py`; do not edit.",
        "## Forms",
        table(("form", "meaning", "effect", "sites", "slots (axes)", "PEFT", "source"), of_forms),
        "## Effects",
        table(("effect", "meaning", "weight", "runs"), of_effects),
        "## Families",
        FAMILIES,
        table(("family",), families),
    )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    TABLES.write_text(tables(), encoding="utf-8")
