"""What ``brickwork grow`` says of a growth: what the model will be, and what it keeps."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from brickwork.grow.growth import GrownWeights
    from brickwork.grow.recipe import GrownModel
    from brickwork.model.weights import Weights


def describe(
    grown: "GrownModel", old: "Weights", name: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The growth in numbers; no weight is read for it.

    Args:
        grown: as planned.
        old: weights that it is to be grown from.
        name: of the old model.
        options: ``out`` and ``dry_run``.
    """
    from brickwork.cli.grow_check import stages_of
    from brickwork.grow.recipe import sizes_of

    return {
        "out": None if options["out"] is None else str(options["out"]),
        "dry_run": options["dry_run"],
        "model": name,
        "steps": [
            {
                "part": step.part,
                "by": step.name,
                "options": dict(step.options),
                "keeps": step.keeps,
                "changes": _changes(stage),
            }
            for step, stage in zip(grown.steps, stages_of(grown.weights), strict=True)
        ],
        "before": asdict(sizes_of(old)),
        "after": asdict(sizes_of(grown.weights)),
        "notes": list(grown.notes),
        "equivalence": None,
    }


def _changes(stage: "GrownWeights") -> dict[str, Any]:
    """What becomes of axes, layers and configuration."""
    from brickwork.model.parts import layers_of

    growth = stage.growth
    found: dict[str, Any] = {
        kind: {"before": len(spread.fresh) - sum(spread.fresh), "after": len(spread.fresh)}
        for kind, spread in growth.spreads.items()
    }
    if growth.layers is not None:
        new = [place for place, one in enumerate(growth.layers) if one.fresh]
        found["layers"] = {
            "before": layers_of(stage.old.outline), "after": len(growth.layers), "new": new,
        }  # fmt: skip
    if growth.replaced is not None:
        found["family"] = growth.replaced.model_type
    return found | {"configuration": dict(growth.config)}


def render(console: "Console", document: Mapping[str, Any]) -> None:
    """The same for a person."""

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    for step in document["steps"]:
        say(f"{step['part']} by {step['by']}: keeps {step['keeps']}")
        for line in _lines(step["changes"]):
            say(f"  {line}")
    console.print(sizes_table(document["before"], document["after"]))
    for note in document["notes"]:
        say(f"note: {note}")
    if found := document["equivalence"]:
        say(equivalence_line(found))
    word = "model, not written (dry run)" if document["dry_run"] else "model"
    if document["out"]:
        say(f"{word}: {document['out']}")


def sizes_table(before: Mapping[str, int], after: Mapping[str, int]) -> "Table":
    """Parameters, bytes and FLOPs of two models, side by side."""
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("", "before", "after", "times")
    words = {"parameters": "parameters", "bytes": "weights", "token_flops": "FLOPs of a token"}
    for key, word in words.items():
        shown = (decimal(n) if key == "bytes" else f"{n:,}" for n in (before[key], after[key]))
        table.add_row(word, *shown, f"{after[key] / before[key]:.2f}")
    return table


def equivalence_line(found: Mapping[str, Any]) -> str:
    """What was measured of the old and the new model's logits, in a sentence."""
    measured = "no number" if found["difference"] is None else f"{found['difference']:.2g}"
    largest = "no number" if found["largest"] is None else f"{found['largest']:.3g}"
    return (
        f"logits differ by {measured} at most (largest: {largest}) over {found['tokens']} tokens; "
        f"{found['same_answers']:.0%} of the texts are continued alike"
    )


def _lines(changes: Mapping[str, Any]) -> list[str]:
    lines = [f"{what}: {_change(how)}" for what, how in changes.items() if what != "configuration"]
    if changes["configuration"]:
        lines.append(
            ", ".join(f"{key} = {value}" for key, value in changes["configuration"].items())
        )
    return lines


def _change(how: Any) -> str:
    if isinstance(how, str):
        return how
    new = f", new: {', '.join(map(str, how['new']))}" if "new" in how else ""
    return f"{how['before']:,} -> {how['after']:,}{new}"
