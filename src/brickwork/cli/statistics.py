"""``brickwork statistics``: measure what merges weigh by, and what edits leave alone."""

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
    from brickwork.model.train import Encoded

_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("model")
@click.option(
    "--data", required=True,
    help="Labelled instances: JSONL, a folder, a Hub id, or `reference`. For gram also plain text: "
    "FILE.txt or FILE.txt.gz, documents parted by <|endoftext|>, else by blank lines.",
)  # fmt: skip
@click.option(
    "--kind", type=click.Choice(["fisher", "gram"]), required=True,
    help="fisher: squared gradients, for `fisher`; gram: inputs, for `regmean` and for edits.",
)  # fmt: skip
@click.option(
    "--labels", type=click.Choice(["given", "sampled"]), default="given",
    help="For fisher: the answers of the data, or tokens drawn from the model.",
)  # fmt: skip
@click.option("--tokens", type=_COUNT, help="For gram: after how many it is enough.")
@click.option(
    "--site", "sites", multiple=True, metavar="ADDRESS",
    help="For gram: only this linear map, such as layers.3.mlp.down; may be repeated.",
)  # fmt: skip
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
    """Measure on MODEL what a merge may weigh it by, and what an edit shall leave alone.

    MODEL is a folder, a Hub id, or `reference`, the embedded model. OUT gets statistics.json and
    statistics.safetensors, one tensor for each parameter, which a merge recipe or an edit names.

    \b
    Examples:
      brickwork statistics reference --data reference --kind fisher --instances 5 -o fisher
      brickwork statistics ./my-model --data mine.jsonl --kind gram --tokens 100000 -o gram
      brickwork statistics ./my-model --data texts.txt.gz --kind gram --site layers.4.mlp.down -o c4
    """  # fmt: skip
    from brickwork.brick.durable import require_free
    from brickwork.errors import ConfigurationError, DataError
    from brickwork.measure.merge_statistics import Measurement, collect_statistics
    from brickwork.measure.passages import is_plain_text

    require_free(out, "a folder of statistics", DataError)
    foreign = ("labels",) if options["kind"] == "gram" else ("tokens", "sites")
    if idle := written_flags(foreign):
        raise ConfigurationError(
            f"{idle[0]} has no effect on statistics of the kind {options['kind']}; leave it out."
        )
    plain = is_plain_text(options["data"])
    if plain:
        _require_gram(options)
    sequences_of = _passages if plain else _instances
    loaded = open_model(model, options, outline=options["dry_run"], tokenizer=True)
    sequences, sha256 = sequences_of(loaded, options)
    measurement = Measurement(
        options["kind"], labels=options["labels"], tokens=options["tokens"], seed=options["seed"],
        data=data_name(options["data"]), data_sha256=sha256, sites=tuple(options["sites"]),
    )  # fmt: skip
    document = _plan(loaded, measurement, len(sequences))
    if not options["dry_run"]:
        with progress("measuring", len(sequences)) as advance:
            spec = collect_statistics(loaded, sequences, measurement, out, advance=advance)
        document = {"out": str(out), **spec.model_dump(mode="json")}
    emit(document, as_json, lambda console: _render(console, document))


def _require_gram(options: dict[str, Any]) -> None:
    from brickwork.errors import ConfigurationError

    if options["kind"] != "gram":
        raise ConfigurationError(
            f"statistics of the kind {options['kind']} need instances with a response, and "
            f"{data_name(options['data'])} is plain text; name labelled instances, or --kind gram."
        )
    if idle := written_flags(("mapping", "data_revision", "functions", "instances")):
        raise ConfigurationError(f"{idle[0]} has no effect on plain text; leave it out.")


def _passages(loaded: "LoadedModel", options: dict[str, Any]) -> "tuple[list[Encoded], str]":
    """The passages of a text file, as many as are needed, and its sha256."""
    from brickwork.measure.passages import encode_passages, read_passages

    longest = _longest(loaded, options)
    found = read_passages(Path(options["data"]).expanduser(), longest)
    tokens, seed = options["tokens"], options["seed"]
    return encode_passages(loaded, found.texts, longest, tokens=tokens, seed=seed), found.sha256


def _instances(loaded: "LoadedModel", options: dict[str, Any]) -> "tuple[list[Encoded], str]":
    """Labelled instances as sequences, and the sha256 of what was chosen."""
    from brickwork.errors import UnknownNameError
    from brickwork.measure.instances import content_hash, encode_instances

    found = read_labelled(options["data"], options)
    known = {i.functionality for i in found}
    for name in options["functions"]:
        if name not in known:
            raise UnknownNameError("functionality of the data", name, known)
    kept = [i for i in found if not options["functions"] or i.functionality in options["functions"]]
    encoded = encode_instances(loaded, kept, _longest(loaded, options))
    return [s for s in encoded.sequences if s is not None], content_hash(kept)


def _longest(loaded: "LoadedModel", options: dict[str, Any]) -> int:
    config = loaded.model.config.get_text_config()
    longest: int = min(options["longest"], getattr(config, "max_position_embeddings", 1 << 30))
    return longest


def _plan(loaded: "LoadedModel", measurement: "Measurement", instances: int) -> dict[str, Any]:
    from brickwork.measure.merge_statistics import statistics_bytes

    return {
        "model": loaded.name,
        "kind": measurement.kind,
        "instances": instances,
        "bytes": statistics_bytes(loaded.model, measurement.kind, measurement.sites),
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
