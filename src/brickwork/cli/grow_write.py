"""What all growths have in common: plan, write, check and tell."""

from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.options import OUT, Command, offline_option, output_options

if TYPE_CHECKING:
    from brickwork.grow.recipe import GrowthRecipe

_TOKENIZED = ("vocab", "context")  # growths that the tokenizer has to know of


def writing_options(command: Command) -> Command:
    """Give a command ``out``, ``check``, ``device``, ``revision``, ``dry_run`` and ``as_json``."""
    decorators = (
        click.option("-o", "--out", type=OUT, help="Folder for the grown model; new."),
        click.option(
            "--check/--no-check", default=None,
            help="Measure how far its logits are from MODEL's (default: if both are small).",
        ),
        click.option("--device", default="auto", help="Where that is computed: auto, cpu, cuda."),
        click.option("--revision", help="Branch, tag or commit of MODEL on the Hub."),
        click.option("--dry-run", is_flag=True, help="Say what it will be; write nothing."),
        offline_option,
        output_options,
    )  # fmt: skip
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def grow_and_tell(model: str, recipe: "GrowthRecipe", options: dict[str, Any]) -> None:
    """Carry out a recipe, or say what it would do.

    Args:
        model: a folder, a Hub id, or ``reference``.
        recipe: the growths.
        options: those of ``writing_options``.

    Raises:
        ConfigurationError: if there is no folder to write to.
        GrowthError: if the model cannot grow so.
        BrokenPromise: if the grown model says something else than it promised.
    """
    from brickwork.cli.grow_check import require_kept
    from brickwork.cli.grow_view import render

    require_place(options)
    document = _carried_out(model, recipe, options)
    emit(document, options["as_json"], lambda console: render(console, document))
    require_kept(document)


def require_place(options: dict[str, Any]) -> None:
    """Refuse to begin without a folder to write to, or with one that is taken."""
    from brickwork.brick.durable import require_free
    from brickwork.errors import ConfigurationError, ModelError

    out = options["out"]
    if options["dry_run"]:
        return
    if out is None:
        raise ConfigurationError(
            "there is nowhere to write the grown model to; name a folder (-o), or ask for a "
            "--dry-run."
        )
    require_free(out, "a model", ModelError)


def _carried_out(model: str, recipe: "GrowthRecipe", options: dict[str, Any]) -> dict[str, Any]:
    from brickwork.cli.grow_check import check
    from brickwork.cli.grow_view import describe
    from brickwork.cli.inputs import open_model
    from brickwork.grow.recipe import grow_by_recipe, write_grown
    from brickwork.model.checkpoint import find_checkpoint
    from brickwork.model.weights import CheckpointWeights, ModelWeights
    from brickwork.reference.paths import resolve_model

    words = any(step.part in _TOKENIZED for step in recipe.steps)
    outline = open_model(model, {**options, "dtype": "auto"}, outline=True, tokenizer=words)
    dry_run = options["dry_run"]
    source = find_checkpoint(resolve_model(model), options["revision"], weights=not dry_run)
    weights = ModelWeights(outline.model) if dry_run else CheckpointWeights(source)
    grown = grow_by_recipe(weights, recipe, tokenizer=outline.tokenizer)
    document = describe(grown, weights, outline.name, options)
    if dry_run:
        return document
    with progress("grow", document["after"]["bytes"]) as advance:
        write_grown(grown, source, outline.name, options["out"], advance=advance)
    return document | {"equivalence": check(grown, weights, source, options)}
