"""``brickwork partition``: the neurons of every FFN divided into groups of equal size."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.inputs import data_name, open_model, read_labelled
from brickwork.cli.options import OUT, model_options, output_options

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.brick.partition import Partition
    from brickwork.measure.evidence import Evidence
    from brickwork.model.load import LoadedModel

_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("model")
@click.option(
    "--method",
    default="clustering",
    help="clustering, coactivation, functionality, random or experts.",
)
@click.option("--groups", type=_COUNT, help="Groups of each layer; experts needs none.")
@click.option(
    "--shared",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    help="Share of the neurons that is in no group but always kept: resident ones.",
)
@click.option("--data", help="Labelled instances: JSONL, a folder, a Hub id, or `reference`.")
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--data-revision", help="Branch, tag or commit of a data set on the Hub.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option(
    "--analysis",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that `brickwork analyze` wrote for this model.",
)
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option(
    "-o", "--out", type=OUT, required=True,
    help="Folder for the partition; an older partition there is replaced.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say how it would be divided; write nothing.")
@model_options
@output_options
def partition(model: str, out: Path, as_json: bool, **options: Any) -> None:
    """Divide the neurons of every FFN of MODEL into groups of equal size.

    MODEL is a folder, a Hub id, or `reference`, the embedded model; so is the data `reference`
    its probe set. OUT gets partition.json and partition.safetensors.

    \b
    Examples:
      brickwork partition reference --groups 16 -o parts
      brickwork partition reference --method coactivation --groups 16 --shared 0.1 \\
        --data reference --instances 20 -o parts
      brickwork partition reference --method functionality --groups 14 \\
        --analysis analysis -o parts
    """  # fmt: skip
    from brickwork.brick.partition import require_place, write_partition
    from brickwork.measure.partition import make_partition

    require_place(out)
    evidence = _evidence(options)
    loaded = open_model(model, options, outline=options["dry_run"])
    if options["dry_run"]:
        document = _plan(loaded, evidence, options)
        emit(document, as_json, lambda console: _render(console, document))
        return
    made = make_partition(
        loaded,
        options["method"],
        groups=options["groups"],
        shared=options["shared"],
        seed=options["seed"],
        evidence=evidence,
        watch=progress,
    )
    write_partition(made, out)
    document = {"out": str(out), "hash": made.hash, **_found(loaded, made)}
    emit(document, as_json, lambda console: _render(console, document))


def _evidence(options: dict[str, Any]) -> "Evidence":
    from brickwork.measure.evidence import Evidence

    data: str | None = options["data"]
    if data is None:
        return Evidence(analysis=options["analysis"])
    return Evidence(
        instances=read_labelled(data, options),
        data=data_name(data),
        analysis=options["analysis"],
        longest=options["longest"],
    )


def _plan(loaded: "LoadedModel", evidence: "Evidence", options: dict[str, Any]) -> dict[str, Any]:
    """What the partition would be in numbers."""
    from brickwork.measure.coactivation import WIDTH
    from brickwork.measure.partition import divisions, find_method, require_evidence

    row = find_method(options["method"])
    plan = divisions(loaded.model, row.name, options["groups"], options["shared"])
    require_evidence(row, options["shared"], evidence)
    neurons = sum(division.experts * division.neurons for division in plan.values())
    return {
        "model": loaded.name,
        "method": row.name,
        "instances": len(evidence.instances),
        "sketch_bytes": 4 * WIDTH * neurons if row.needs == "activations" else 0,
        "layers": [
            {
                "layer": layer,
                "groups": division.groups,
                "size": division.size,
                "shared": division.experts * division.shared,
                "best": [],
                "heads": _head_groups(loaded, layer),
            }
            for layer, division in plan.items()
        ],
    }


def _found(loaded: "LoadedModel", made: "Partition") -> dict[str, Any]:
    from brickwork.measure.groups import best_functions

    return {
        "model": loaded.name,
        "method": made.spec.method,
        "functions": list(made.spec.functions),
        "layers": [
            {
                "layer": layer,
                "groups": made.groups(layer),
                "size": len(made.members(layer)[0]),
                "shared": len(made.shared(layer)),
                "best": best_functions(made, layer),
                "heads": _head_groups(loaded, layer),
            }
            for layer in made.owners
        ],
    }


def _head_groups(loaded: "LoadedModel", layer: int) -> list[list[int]]:
    from brickwork.measure.partition import head_groups

    return [heads.tolist() for heads in head_groups(loaded.model, layer)]


def _render(console: "Console", document: dict[str, Any]) -> None:
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "layer", "groups", "neurons each", "shared", "head groups", "served best by groups"
    )
    for row in document["layers"]:
        heads = f"{len(row['heads'])} of {len(row['heads'][0])}"
        numbers = (str(row[name]) for name in ("layer", "groups", "size", "shared"))
        table.add_row(*numbers, heads, Text(_served(row["best"])))
    console.print(table)
    if "out" in document:
        line = f"{document['model']} divided by {document['method']}: {document['out']}"
    else:
        line = f"{document['model']} would be divided so by {document['method']}"
        if document["sketch_bytes"]:
            line += (
                f"; {document['instances']:,} instances to run, "
                f"{decimal(document['sketch_bytes'])} of memory beside the model"
            )
    console.print(line, markup=False, soft_wrap=True)


def _served(best: list[str]) -> str:
    """Each functionality with the groups that serve it best, as ``Coding 0-3 7``."""
    return ", ".join(
        f"{name} {_ranges([i for i, other in enumerate(best) if other == name])}"
        for name in dict.fromkeys(best)
    )


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
