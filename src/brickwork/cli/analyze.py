"""``brickwork analyze``: which parts of a model do what, as JSON, figures and a report."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.inputs import data_name, open_model, read_labelled
from brickwork.cli.options import model_options, output_options

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.measure.study import Study

_COUNT = click.IntRange(min=1)


class ShardType(click.ParamType[tuple[int, int]]):
    """K/N: the k-th of n parts of the work."""

    name = "K/N"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        """The two numbers."""
        match = re.fullmatch(r"([0-9]+)/([0-9]+)", str(value))
        k, n = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= k <= n:
            self.fail(
                f"{value!r} is no part of a whole; write 1/4 for the first of four.", param, ctx
            )
        return k, n


@click.command()
@click.argument("model")
@click.option(
    "--data", required=True, help="Labelled instances: JSONL, a folder, a Hub id, or `reference`."
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True,
    help="Folder for the results; what is there of the same analysis is taken up.",
)  # fmt: skip
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option("--data-revision", help="Branch, tag or commit of a data set on the Hub.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option(
    "--evaluation",
    type=_COUNT,
    help="Instances of each functionality that losses are measured on, at most "
    "(default: a fifteenth, no more than 40).",
)
@click.option("--source", help="Where an instance comes from: a field, or FIELD:REGEX.")
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option(
    "--share",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.05,
    help="Share of the neurons that is functional.",
)
@click.option(
    "--scope",
    type=click.Choice(["layer", "model"]),
    default="layer",
    help="Take away the best neurons of every layer, or of the whole model.",
)
@click.option("--permutations", type=_COUNT, default=20, help="Permuted labellings for the null.")
@click.option(
    "--rows",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    help="Number format of the activations on disk.",
)
@click.option("--shard", type=ShardType(), help="Collect one part of the activations, and stop.")
@click.option("--dry-run", is_flag=True, help="Say what it will cost; write nothing.")
@model_options
@output_options
def analyze(model: str, data: str, out: Path, as_json: bool, **options: Any) -> None:
    """Find out which neurons, heads and layers of MODEL a functionality needs.

    MODEL is a folder, a Hub id, or `reference`, the embedded model; so is the data `reference`
    its probe set. OUT gets analysis.json, scores.safetensors, figures and report.html.

    \b
    Examples:
      brickwork analyze reference --data reference -o analysis
      brickwork analyze ./my-model --data tasks.jsonl -o analysis --source task:^[a-z]+
      brickwork analyze Qwen/Qwen3-0.6B --data BAAI/Infinity-Instruct \\
        --mapping infinity-instruct --instances 1000 -o analysis --dry-run
    """  # fmt: skip
    from brickwork.measure.analysis import analyze_study, collect_activations
    from brickwork.report.extra import require_report
    from brickwork.report.html import write_report

    if options["dry_run"]:
        _estimate(_study(model, data, out, options), as_json, options)
        return
    if options["shard"] is None:
        require_report()
    study = _study(model, data, out, options)
    if options["shard"] is not None:
        collect_activations(study, dtype=options["rows"], shard=options["shard"])
        emit({"out": str(out), "shard": list(options["shard"])}, as_json, _render_shard(out))
        return
    analysis = analyze_study(study, command=_command(), dtype=options["rows"])
    files = write_report(analysis, out)
    document = {
        "out": str(out),
        "report": str(out / "report.html"),
        "files": [str(path.relative_to(out)) for path in files],
        "seconds": analysis.seconds,
        "peak_memory": analysis.peak_memory,
        "findings": [finding.model_dump() for finding in analysis.findings],
    }
    emit(document, as_json, lambda console: _render(console, document))


def _study(model: str, data: str, out: Path, options: dict[str, Any]) -> "Study":
    """The study that the options ask for, on an outline of the model for a dry run."""
    from brickwork.measure.instances import default_evaluation, with_sources
    from brickwork.measure.results import Settings
    from brickwork.measure.study import open_study

    instances = read_labelled(data, options)
    rule, evaluation = options["source"], options["evaluation"]
    loaded = open_model(model, options, outline=options["dry_run"], tokenizer=True)
    return open_study(
        loaded,
        with_sources(instances, rule) if rule else instances,
        Settings(
            share=options["share"], scope=options["scope"],
            evaluation=evaluation or default_evaluation(instances),
            permutations=options["permutations"], resamples=1000, seed=options["seed"],
        ),
        out,
        name=data_name(data),
        longest=options["longest"],
        watch=progress,
    )  # fmt: skip


def _command() -> str:
    """The command line as it was given, with names in the place of paths."""
    import shlex

    context = click.get_current_context()
    words = ["brickwork", context.info_name or "analyze"]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        given = context.get_parameter_source(parameter.name or "")
        if given is not click.core.ParameterSource.COMMANDLINE or parameter.name == "as_json":
            continue
        text = _without_place(value)
        words += [text] if isinstance(parameter, click.Argument) else [parameter.opts[-1], text]
    return shlex.join(words)


def _without_place(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    path = Path(str(value)).expanduser()
    return path.resolve().name if isinstance(value, Path) or path.exists() else str(value)


def _estimate(study: "Study", as_json: bool, options: dict[str, Any]) -> None:
    from brickwork.measure.estimate import estimate

    found = estimate(study, device=options["device"])
    document = {
        "model": study.loaded.name,
        "instances": sum(f.localisation + f.evaluation for f in study.facts.functions),
        "functionalities": study.functions,
        "seconds": {**found.seconds, "total": sum(found.seconds.values())},
        "disk": found.disk,
        "memory": found.memory,
    }
    emit(document, as_json, lambda console: _render_estimate(console, document))


def _render_estimate(console: "Console", document: dict[str, Any]) -> None:
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    line = f"{document['model']}: {document['instances']:,} instances of "
    console.print(Text(line + ", ".join(document["functionalities"])))
    table = Table("step", "time")
    for step, seconds in document["seconds"].items():
        table.add_row(step, _duration(seconds))
    console.print(table)
    console.print(
        f"disk {decimal(document['disk'])}, memory about {decimal(document['memory'])}; times are "
        "of a rehearsal on this machine, about right to a third"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _render_shard(out: Path) -> Any:
    return lambda console: console.print(
        f"This part of the activations is in {out}. When all parts are there, run the same "
        "command without --shard.",
        markup=False,
    )


def _render(console: "Console", document: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("finding", "verdict", "evidence")
    for finding in document["findings"]:
        table.add_row(*(Text(finding[name]) for name in ("name", "verdict", "evidence")))
    console.print(table)
    total = _duration(sum(document["seconds"].values()))
    console.print(
        f"{total}, {document['peak_memory'] / 2**30:.2f} GiB; report: {document['report']}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
