"""``brickwork grow task``: learn tasks one after the other, and measure what is forgotten."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.inputs import data_name, open_model
from brickwork.cli.options import OUT, model_options, output_options

if TYPE_CHECKING:
    from brickwork.cli.grow_task_inputs import Stream
    from brickwork.cli.grow_task_kit import Kit
    from brickwork.grow.stream_results import StreamResult, StreamStudy
    from brickwork.model.load import LoadedModel

_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("model")
@click.option(
    "--task", "asked", multiple=True, required=True, metavar="NAME=FILE",
    help="A task, in the order of learning: JSONL with prompt and response.",
)  # fmt: skip
@click.option(
    "--strategy", "names", multiple=True, default=("bricks",), metavar="NAME",
    help="How: bricks, oracle, full, lora, blocks, o-lora, progressive. Several are compared.",
)  # fmt: skip
@click.option(
    "--set", "settings", multiple=True, metavar="OPTION=VALUE",
    help="Of a single strategy: replay=0.25, blocks=4, ...",
)  # fmt: skip
@click.option(
    "--router", type=click.Choice(["retrieval", "classifier"]), default="retrieval",
    help="Who picks the brick: as `brickwork run` does; or a classifier, trained on all prompts.",
)  # fmt: skip
@click.option(
    "--consolidate", type=click.FloatRange(-1, 1, min_open=True), metavar="COSINE",
    help="Afterwards, merge bricks that are as alike as this into one, and measure every task.",
)  # fmt: skip
@click.option("--data", help="What the base can do: labelled instances (for `reference`: its own).")
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option("--steps", type=_COUNT, default=100, help="Batches for each task.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=2e-3,
              help="Learning rate at most; whole models want less than LoRAs.")  # fmt: skip
@click.option("--batch", type=_COUNT, default=2048, help="Padded tokens of a batch.")
@click.option("--rank", type=_COUNT, default=16, help="Of each brick, a LoRA.")
@click.option(
    "--evaluation", type=_COUNT, default=40,
    help="Instances of each task and functionality to measure on, at most a fifth of it.",
)  # fmt: skip
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option("--store", type=click.Path(path_type=Path, file_okay=False),
              help="Store that gets the bricks; is made if it is not there.")  # fmt: skip
@click.option("-o", "--out", type=OUT, help="Folder for bricks and measures; new.")
@click.option("--report", type=OUT, help="Folder for a page with figures.")
@click.option("--dry-run", is_flag=True, help="Say what would be learned; learn nothing.")
@model_options
@output_options
def task(model: str, asked: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Teach MODEL tasks one after the other: a brick for each, and a router that picks or abstains.

    MODEL is a folder, a Hub id, or `reference`; it stays as it is. After each task all tasks and
    all functionalities of --data are measured, on prompts that nothing was learned from. Other
    strategies change copies of the model, for comparison. OUT/bricks has the bricks, and
    OUT/stream.json what was measured.

    \b
    Examples:
      brickwork grow task reference --task sums=sums.jsonl --task verbs=verbs.jsonl -o stream
      brickwork grow task reference --task sums=sums.jsonl --task verbs=verbs.jsonl \\
        --strategy bricks --strategy full --store ./store --report page -o stream
      brickwork grow task ./my-model --task law=law.jsonl --strategy full --set replay=0.25 \\
        --data mine.jsonl -o stream
    """  # fmt: skip
    from brickwork.cli.grow_task_inputs import read_stream
    from brickwork.cli.grow_task_view import describe, render

    data = options["data"] or ("reference" if model == "reference" else None)
    _require_sense(options, data)
    if options["dtype"] == "auto":
        options["dtype"] = "float32"  # what LoRAs are trained in
    loaded = open_model(model, options, outline=options["dry_run"], tokenizer=True)
    stream = read_stream(loaded, asked, data, options)
    document = describe(loaded, stream, options) | {"data": data and data_name(data)}
    if not options["dry_run"]:
        document |= _learned(loaded, stream, document["data"], options)
    emit(document, as_json, lambda console: render(console, document))


def _require_sense(options: dict[str, Any], data: str | None) -> None:
    """Refuse what contradicts itself before anything is loaded; parse the strategies' options."""
    from brickwork.brick.durable import require_free
    from brickwork.cli.edit_inputs import parse_settings
    from brickwork.errors import ConfigurationError, GrowthError
    from brickwork.grow.strategies import find_strategy
    from brickwork.report.extra import require_report

    names = options["names"]
    if options["settings"] and len(names) > 1:
        raise ConfigurationError(
            f"--set was given with {len(names)} strategies ({', '.join(names)}), each of which has "
            "options of its own; run one at a time, or leave it out."
        )
    options["settings"] = parse_settings(options["settings"])
    for name in names:
        find_strategy(name).parse(options["settings"])
    if options["consolidate"] is not None and not {"bricks", "oracle"} & set(names):
        raise ConfigurationError(
            f"bricks were to be consolidated, but {', '.join(names)} makes no brick for each task; "
            "choose --strategy bricks, or leave out --consolidate."
        )
    if data is None and ("replay" in options["settings"] or options["router"] == "classifier"):
        raise ConfigurationError(
            "replay and a classifier need examples of what the base can do; name labelled "
            "instances with --data."
        )
    if options["dry_run"]:
        return
    if options["out"] is None:
        raise ConfigurationError(
            "there is nowhere to write bricks and measures to; name a folder (-o), or ask for a "
            "--dry-run."
        )
    require_free(options["out"], "a stream of tasks", GrowthError)
    if options["report"] is not None:
        require_report()


def _learned(
    loaded: "LoadedModel", stream: "Stream", data: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Learn by each strategy, write what came of it, and say it in short."""
    from brickwork.cli.grow_task_kit import Kit
    from brickwork.cli.grow_task_view import told
    from brickwork.grow.stream import write_study

    total = len(stream.tasks) * options["steps"] * len(options["names"])
    with progress("learning", total) as advance:
        kit = Kit(loaded, stream, options, advance)
        results = [_run(kit, stream, name, options) for name in options["names"]]
    study = _study(loaded, stream, results, data or "", options["seed"])
    write_study(study, options["out"])
    merged = kit.consolidated(options["consolidate"], options["out"])
    kit.write(options["out"])
    found = told(study) | merged | {"bricks": kit.kept(options["store"]), "routing": kit.routing}
    if options["report"] is not None:
        from brickwork.report.stream import write_stream_report

        found |= {"report": str(write_stream_report(study, options["report"])[0])}
    return found


def _run(kit: "Kit", stream: "Stream", name: str, options: Mapping[str, Any]) -> "StreamResult":
    from brickwork.grow.stream import run_stream

    return run_stream(
        kit.context(), stream.tasks, strategy=name, options=options["settings"],
        background=stream.background,
    )  # fmt: skip


def _study(
    loaded: "LoadedModel",
    stream: "Stream",
    results: "Sequence[StreamResult]",
    data: str,
    seed: int,
) -> "StreamStudy":
    from brickwork import __version__
    from brickwork.grow.stream import facts_of
    from brickwork.grow.stream_results import StreamStudy
    from brickwork.model.cost import token_flops

    return StreamStudy(
        brickwork=__version__,
        model=loaded.name,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        flops=token_flops(loaded.model),
        data=data,
        seed=seed,
        tasks=[facts_of(task) for task in stream.tasks],
        functionalities=list(stream.background),
        results=list(results),
    )
