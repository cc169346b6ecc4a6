"""``brickwork router``: make routers that choose parts of FFNs for each token, and compare them."""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress, stderr_console
from brickwork.cli.inputs import data_name, open_model, read_labelled
from brickwork.cli.options import OUT, model_options, output_options

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.brick.brick import Brick
    from brickwork.brick.partition import Partition
    from brickwork.measure.instances import Instance
    from brickwork.measure.selection_results import RouterQuality
    from brickwork.model.load import LoadedModel
    from brickwork.model.train import Encoded

_COUNT = click.IntRange(min=1)
_SHARE = click.FloatRange(0, 1, min_open=True)
_LEVEL = click.Choice(["token", "prompt"])
_FOLDER = click.Path(path_type=Path, file_okay=False)


class ListType(click.ParamType[tuple[Any, ...]]):
    """Words or numbers with commas between them."""

    def __init__(self, item: type[str] | type[float]) -> None:
        self.name = "A,B,..."
        self._item = item

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        """The items, each once."""
        if isinstance(value, tuple):
            return value
        try:
            items = tuple(self._item(word.strip()) for word in value.split(",") if word.strip())
        except ValueError:
            self.fail(f"{value!r} is no list of numbers; write for example 0.1,0.5.", param, ctx)
        if not items:
            self.fail(f"{value!r} lists nothing; name some, or leave it out.", param, ctx)
        return tuple(dict.fromkeys(items))


@click.group()
def router() -> None:
    """Routers that choose which parts of FFNs each token needs."""


def _data_options(command: Any) -> Any:
    """Options that say what routers learn from, and how."""
    for option in (
        click.option("--rate", type=click.FloatRange(0, min_open=True), default=2.0,
                     help="How far a step can move a score."),
        click.option("--balance", type=click.FloatRange(0), default=0.0,
                     help="Weight of the loss that spreads tokens over groups."),
        click.option("--objective", default="share", help="What is learned: share, fire or best."),
        click.option("--width", type=_COUNT, help="Inner width of an MLP router."),
        click.option("--epochs", type=_COUNT, default=1, help="Passes over the data."),
        click.option("--longest", type=_COUNT, default=512,
                     help="Tokens after which a text is cut."),
        click.option("--instances", type=_COUNT,
                     help="Instances of each functionality (default: all)."),
        click.option("--mapping", help="How to read a data set: a shipped name, or a YAML file."),
        click.option("--data-revision", help="Branch, tag or commit of a data set on the Hub."),
        click.option("--revision", help="Branch, tag or commit of MODEL on the Hub."),
        click.option("--data", required=True,
                     help="Labelled instances: JSONL, a folder, a Hub id, or `reference`."),
    ):  # fmt: skip
        command = option(command)
    return command


@router.command()
@click.argument("model")
@click.option("--kind", required=True, help="How it comes to be: gate, mlp, threshold, ...")
@click.option("--partition", type=_FOLDER, help="Folder of the groups, for kinds with groups.")
@_data_options
@click.option("--density", type=_SHARE, default=0.2, help="Share of the neurons that is kept.")
@click.option("--level", type=_LEVEL, default="token", help="One choice for each of these.")
@click.option("-o", "--out", type=OUT, required=True, help="Folder of the brick.")
@click.option("--replace", is_flag=True, help="Put it in the place of a brick that is there.")
@model_options
@output_options
def train(model: str, kind: str, out: Path, as_json: bool, **options: Any) -> None:
    """Make a router for the dense FFNs of MODEL, as a brick.

    MODEL is a folder, a Hub id, or `reference`, the embedded model.

    \b
    Examples:
      brickwork router train reference --kind threshold --data reference -o threshold
      brickwork router train reference --kind gate --partition groups --data reference \\
        --density 0.3 -o gate
    """  # fmt: skip
    import torch

    from brickwork.brick.folder import write_brick
    from brickwork.brick.partition import read_partition
    from brickwork.errors import ConfigurationError
    from brickwork.route.router_training import find_training, train_router

    find_training(kind)
    if os.path.lexists(out) and not options["replace"]:
        raise ConfigurationError(
            f"a router was to be written to {str(out)!r}, which is there already; choose another "
            "folder, or ask to --replace it."
        )
    partition = None if options["partition"] is None else read_partition(options["partition"])
    loaded, pairs = _open(model, options)
    with progress("training", 1) as advance:
        brick = train_router(
            loaded, kind, sequences=[s for _, s in pairs], partition=partition,
            recipe=_recipe(options, density=options["density"], level=options["level"]),
            generator=torch.Generator().manual_seed(options["seed"]), advance=advance,
        )  # fmt: skip
    write_brick(brick, out, replace=options["replace"])
    document = {
        "out": str(out), "name": brick.spec.name, "hash": brick.hash, "bytes": brick.bytes,
        "layers": len(brick.spec.sites), "density": options["density"], "level": options["level"],
        "captured": brick.spec.metrics[0].after,
    }  # fmt: skip
    emit(document, as_json, lambda console: _render_brick(console, brick, out))


@router.command()
@click.argument("model")
@click.option("--partition", type=_FOLDER, multiple=True, help="Folder of groups; several may be.")
@click.option("--kinds", type=ListType(str), help="Routers and controls (default: all).")
@click.option("--densities", type=ListType(float), help="Shares (default: 0.1 to 1).")
@click.option("--level", type=_LEVEL, multiple=True, default=("token",), help="May be both.")
@click.option("--evaluation", type=_COUNT, help="Instances of each functionality to measure on.")
@_data_options
@click.option("-o", "--out", type=OUT, required=True, help="Folder for routers.json and a page.")
@model_options
@output_options
def compare(model: str, out: Path, as_json: bool, **options: Any) -> None:
    """Measure what routers and controls cost MODEL in loss, at several densities.

    \b
    Examples:
      brickwork router compare reference --partition groups --data reference -o comparison
      brickwork router compare reference --kinds threshold,magnitude --densities 0.1,0.3 \\
        --level token --level prompt --data reference -o comparison
    """  # fmt: skip
    import torch

    from brickwork.brick.partition import read_partition
    from brickwork.report.extra import require_report
    from brickwork.report.selection import write_router_report
    from brickwork.route.router_quality import (
        DENSITIES,
        KINDS,
        Contest,
        compare_routers,
        write_quality,
    )
    from brickwork.runtime.speed import ffn_speeds

    require_report()
    partitions = [read_partition(folder) for folder in options["partition"]]
    _require_distinct(partitions)
    levels = tuple(dict.fromkeys(options["level"]))
    contest = Contest(options["kinds"] or KINDS, options["densities"] or DENSITIES, levels)
    loaded, pairs = _open(model, options)
    quality = compare_routers(
        loaded, partitions, contest=contest, trial=_trial(pairs, options),
        recipe=_recipe(options), watch=progress, seed=options["seed"],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(options["seed"])
    speeds = ffn_speeds(loaded, contest.densities, generator)
    quality = quality.model_copy(update={"speeds": tuple(speeds)})
    path = write_quality(quality, out)
    pages = write_router_report(quality, out)
    page = next(page for page in pages if page.suffix == ".html")
    document = {"out": str(out), "file": str(path), "report": str(page),
                **quality.model_dump(mode="json")}  # fmt: skip
    emit(document, as_json, lambda console: _render_quality(console, quality, page))


def _open(
    model: str, options: dict[str, Any]
) -> "tuple[LoadedModel, list[tuple[Instance, Encoded]]]":
    """The model, and the instances that leave something to measure, with their sequences."""
    from brickwork.measure.instances import encode_instances

    found, loaded = read_labelled(options["data"], options), open_model(model, options)
    config = loaded.model.config.get_text_config()
    longest = min(options["longest"], getattr(config, "max_position_embeddings", 1 << 30))
    sequences = encode_instances(loaded, found, longest).sequences
    _note_experts(loaded)
    return loaded, [(i, s) for i, s in zip(found, sequences, strict=True) if s is not None]


def _require_distinct(partitions: "Sequence[Partition]") -> None:
    """Refuse partitions that the table and the page could not tell apart."""
    from brickwork.errors import ConfigurationError

    seen = set()
    for own in partitions:
        name = (own.spec.method, max(own.groups(layer) for layer in own.owners))
        if name in seen:
            raise ConfigurationError(
                f"several partitions by {name[0]} with {name[1]} groups were to be compared, and "
                "a comparison tells partitions apart by these two; compare them one by one."
            )
        seen.add(name)


def _note_experts(loaded: "LoadedModel") -> None:
    """Say which layers are left alone."""
    from brickwork.model.parts import layers_of
    from brickwork.route.router_passes import dense_layers

    skipped = sorted(set(range(layers_of(loaded.model))) - set(dense_layers(loaded.model)))
    if skipped:
        stderr_console().print(
            f"layers {', '.join(map(str, skipped))} are mixtures of experts with routers of their "
            "own; they are left alone",
            markup=False,
        )


def _trial(pairs: "Sequence[tuple[Instance, Encoded]]", options: dict[str, Any]) -> Any:
    from brickwork.measure.instances import default_evaluation, split_instances
    from brickwork.route.router_quality import Trial

    instances = [instance for instance, _ in pairs]
    split = split_instances(
        instances,
        evaluation=options["evaluation"] or default_evaluation(instances),
        seed=options["seed"],
    )
    return Trial(
        [pairs[i][1] for i in split.localisation],
        [pairs[i][1] for i in split.evaluation],
        [instances[i].functionality for i in split.evaluation],
        data_name(options["data"]),
    )


def _recipe(options: dict[str, Any], **more: Any) -> Any:
    from brickwork.route.router_learners import RouterRecipe

    names = ("epochs", "rate", "objective", "balance", "width")
    return RouterRecipe(**{n: options[n] for n in names}, data=data_name(options["data"]), **more)


def _render_brick(console: "Console", brick: "Brick", out: Path) -> None:
    from rich.filesize import decimal

    options, metric = brick.spec.options, brick.spec.metrics[0]
    console.print(
        f"{brick.spec.name}: {len(brick.spec.sites)} layers, {decimal(brick.bytes)}; density "
        f"{options['density']} by {options['level']} captures {metric.after:.1%} of the FFNs' "
        f"energy on held-out sequences; brick: {out}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _render_quality(console: "Console", quality: "RouterQuality", path: Path) -> None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    base = fmean(quality.base_losses.values())
    densities = sorted({row.density for row in quality.rows})
    table = Table("router", "groups", "by", *(f"{d:.0%}" for d in densities), box=SIMPLE)
    rises: dict[tuple[str, str, str], dict[float, str]] = {}
    for row in quality.rows:
        groups = f"{row.groups} {row.partition}" if row.partition else "-"
        rise = fmean(row.losses.values()) - base
        rises.setdefault((row.router, groups, row.level), {})[row.density] = f"{rise:+.3f}"
    for names, own in rises.items():
        cells = (own.get(density, "-") for density in densities)
        table.add_row(*map(Text, names), *cells)
    console.print(table)
    note = (
        f"rise of the loss over {base:.3f} nats per response token (mean over functionalities, on "
        f"{quality.instances} instances) at each density; captured energy, cost and each "
        f"functionality are in {path}"
    )
    console.print(note, markup=False, soft_wrap=True)
