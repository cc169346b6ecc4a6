"""``brickwork statistics``: measure what Fisher-weighted and RegMean merges weigh by."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.inputs import data_name, open_model, read_labelled
from brickwork.cli.options import OUT, model_options, output_options, written_flags

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.measure.merge_statistics import Measurement
    from brickwork.model.load import LoadedModel

_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("model")
@click.option(
    "--data", required=True, help="Labelled instances: JSONL, a folder, a Hub id, or `reference`."
)
@click.option(
    "--kind", type=click.Choice(["fisher", "gram"]), required=True,
    help="fisher: squared gradients, for the method `fisher`; gram: inputs, for `regmean`.",
)  # fmt: skip
@click.option(
    "--labels", type=click.Choice(["given", "sampled"]), default="given",
    help="For fisher: the answers of the data, or tokens drawn from the model.",
)  # fmt: skip
@click.option("--tokens", type=_COUNT, help="For gram: after how many it is enough.")
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--data-revision", help="Branch, tag or commit of a data set on the Hub.")
@click.option("--function", "functions", multiple=True, help="Only these functionalities.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option("-o", "--out", type=OUT, required=True, help="Folder for the statistics.")
@click.option("--dry-run", is_flag=True, help="Say what it would take; measure nothing.")
@model_options
@output_options
def statistics(model: str, out: Path, as_json: bool, **options: Any) -> None:
    """Measure on MODEL what a merge may weigh it by.

    MODEL is a folder, a Hub id, or `reference`, the embedded model. OUT gets statistics.json and
    statistics.safetensors, one tensor for each parameter, which a merge recipe names.

    \b
    Examples:
      brickwork statistics reference --data reference --kind fisher --instances 5 -o fisher
      brickwork statistics ./my-model --data mine.jsonl --kind gram --tokens 100000 -o gram
    """  # fmt: skip
    from brickwork.brick.durable import require_free
    from brickwork.errors import ConfigurationError, DataError, UnknownNameError
    from brickwork.measure.instances import content_hash, encode_instances
    from brickwork.measure.merge_statistics import Measurement, collect_statistics

    require_free(out, "a folder of statistics", DataError)
    foreign = "labels" if options["kind"] == "gram" else "tokens"
    if idle := written_flags((foreign,)):
        raise ConfigurationError(
            f"{idle[0]} has no effect on statistics of the kind {options['kind']}; leave it out."
        )
    found = read_labelled(options["data"], options)
    known = {i.functionality for i in found}
    for name in options["functions"]:
        if name not in known:
            raise UnknownNameError("functionality of the data", name, known)
    kept = [i for i in found if not options["functions"] or i.functionality in options["functions"]]
    loaded = open_model(model, options, outline=options["dry_run"], tokenizer=True)
    measurement = Measurement(
        options["kind"], labels=options["labels"], tokens=options["tokens"], seed=options["seed"],
        data=data_name(options["data"]), data_sha256=content_hash(kept),
    )  # fmt: skip
    config = loaded.model.config.get_text_config()
    longest = min(options["longest"], getattr(config, "max_position_embeddings", 1 << 30))
    sequences = [s for s in encode_instances(loaded, kept, longest).sequences if s is not None]
    document = _plan(loaded, measurement, len(sequences))
    if not options["dry_run"]:
        with progress("measuring", len(sequences)) as advance:
            spec = collect_statistics(loaded, sequences, measurement, out, advance=advance)
        document = {"out": str(out), **spec.model_dump(mode="json")}
    emit(document, as_json, lambda console: _render(console, document))


def _plan(loaded: "LoadedModel", measurement: "Measurement", instances: int) -> dict[str, Any]:
    from brickwork.measure.merge_statistics import statistics_bytes

    return {
        "model": loaded.name,
        "kind": measurement.kind,
        "instances": instances,
        "bytes": statistics_bytes(loaded.model, measurement.kind),
    }


def _render(console: "Console", document: dict[str, Any]) -> None:
    from rich.filesize import decimal

    if "out" not in document:
        line = (
            f"statistics of the kind {document['kind']} of {document['model']} on "
            f"{document['instances']:,} instances would take at most {decimal(document['bytes'])} "
            "of disk, and as much memory as is free of that"
        )
    else:
        line = (
            f"statistics of the kind {document['kind']} of {document['base']['name']}, measured on "
            f"{document['instances']:,} instances ({document['tokens']:,} tokens): "
            f"{document['out']}"
        )
    console.print(line, markup=False, soft_wrap=True)
