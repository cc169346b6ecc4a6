"""``brickwork grow learned``: a larger model by maps that are trained (LiGO)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.inputs import data_name, open_model, read_labelled
from brickwork.cli.options import OUT, model_options, output_options

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.grow.recipe import GrowthRecipe
    from brickwork.model.load import LoadedModel

_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("model")
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--data", help="Labelled instances (default for `reference`: its probe set).")
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option(
    "--start", type=click.Choice(["exact", "selection"]), default="exact",
    help="What the maps are at first: the growths of RECIPE; or plain copies, as in the paper.",
)  # fmt: skip
@click.option("--steps", type=_COUNT, default=100, help="Batches that the maps are trained on.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=1e-3,
              help="Learning rate of the maps at most.")  # fmt: skip
@click.option("--batch", type=_COUNT, default=2048, help="Padded tokens of a batch.")
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option("-o", "--out", type=OUT, help="Folder for the grown model; new.")
@click.option("--dry-run", is_flag=True, help="Say what it will be; train nothing.")
@model_options
@output_options
def learned(model: str, recipe: Path, as_json: bool, **options: Any) -> None:
    """Grow MODEL as RECIPE says, but by maps that are trained for some hundred steps.

    MODEL is a folder, a Hub id, or `reference`. RECIPE is that of `brickwork grow recipe`, of
    growths of width, heads, hidden size and depth. The grown model is linear in the old one's
    weights, and is trained on afterwards with `brickwork grow train`.

    \b
    Examples:
      brickwork grow learned reference larger.yaml -o larger --dry-run
      brickwork grow learned ./my-model larger.yaml --data mine.jsonl --steps 100 -o larger
    """
    from brickwork.brick.durable import require_free
    from brickwork.errors import ConfigurationError, ModelError
    from brickwork.grow.recipe import read_recipe

    data = options["data"] or ("reference" if model == "reference" else None)
    if data is None or (options["out"] is None and not options["dry_run"]):
        raise ConfigurationError(
            "maps were to be trained, which takes labelled instances (--data) and a folder for the "
            "grown model (-o), and one of them is missing; give both."
        )
    if not options["dry_run"]:
        require_free(options["out"], "a model", ModelError)
    growths = read_recipe(recipe)
    if options["seed"]:
        growths = growths.model_copy(update={"seed": options["seed"]})
    loaded = open_model(model, options, outline=options["dry_run"], tokenizer=True)
    document = _plan(loaded, growths, options) | {"data": data_name(data)}
    if not options["dry_run"]:
        document |= _learned(loaded, growths, data, options)
    emit(document, as_json, lambda console: _render(console, document))


def _plan(
    loaded: "LoadedModel", growths: "GrowthRecipe", options: Mapping[str, Any]
) -> dict[str, Any]:
    from dataclasses import asdict

    from brickwork.grow.recipe import grow_by_recipe, sizes_of
    from brickwork.model.weights import ModelWeights

    weights = ModelWeights(loaded.model)
    grown = grow_by_recipe(weights, growths, tokenizer=loaded.tokenizer)
    before, after = sizes_of(weights), sizes_of(grown.weights)
    return {
        "out": None if options["out"] is None else str(options["out"]),
        "dry_run": options["dry_run"],
        "model": loaded.name,
        "growths": [{"part": step.part, "by": step.name} for step in grown.steps],
        "before": asdict(before),
        "after": asdict(after),
        "training_flops": 3 * after.token_flops * options["steps"] * options["batch"],
    }


def _learned(
    loaded: "LoadedModel", growths: "GrowthRecipe", data: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    from brickwork.grow.learned import learn_growth
    from brickwork.measure.instances import encode_instances
    from brickwork.model.export import write_checkpoint
    from brickwork.model.fit import FitRecipe

    found = encode_instances(loaded, read_labelled(data, options), options["longest"]).sequences
    recipe = FitRecipe(options["rate"], options["steps"], options["batch"], seed=options["seed"])
    with progress("learning the maps", recipe.steps) as advance:
        done = learn_growth(
            loaded, growths, [sequence for sequence in found if sequence is not None], recipe,
            start=options["start"], report=lambda _step, _steps, _loss: advance(1),
        )  # fmt: skip
    record = {"operation": "learned growth", **done.record.model_dump(mode="json")}
    large = done.loaded
    write_checkpoint(large.model, options["out"], tokenizer=large.tokenizer, record=record)
    losses = done.record.losses
    return {"trained": done.record.trained, "losses": {"first": losses[0], "last": losses[-1]}}


def _render(console: "Console", document: Mapping[str, Any]) -> None:
    from brickwork.cli.grow_view import sizes_table

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    say(", ".join(f"{one['part']} by {one['by']}" for one in document["growths"]))
    console.print(sizes_table(document["before"], document["after"]))
    say(f"{document['training_flops']:.3g} FLOPs of training at most")
    if "losses" in document:
        losses = document["losses"]
        say(f"{document['trained']:,} numbers of maps were trained")
        say(f"loss of the batches: {losses['first']:.3f} at first, {losses['last']:.3f} at last")
    if document["out"]:
        word = "model, not written (dry run)" if document["dry_run"] else "model"
        say(f"{word}: {document['out']}")
