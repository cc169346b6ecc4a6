"""``brickwork combine`` on a recipe for a mixture of dense models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from brickwork.cli.combine_models import adapters_of, carry_out, fetch_model
from brickwork.cli.console import emit


def combine_mixture(
    document: dict[str, Any], where: Path, out: Path, as_json: bool, options: dict[str, Any]
) -> None:
    """Read the prompts, plan the mixture, write it, and say what was done.

    Args:
        document: the recipe, as it was read.
        where: its file, for errors.
        out: folder for the result.
        as_json: whether to print JSON.
        options: those of the command.
    """
    from brickwork.brick.durable import require_free
    from brickwork.cli.combine_view import render
    from brickwork.combine.mixture import plan_mixture
    from brickwork.combine.mixture_recipe import parse_mixture
    from brickwork.errors import MergeError

    require_free(out, "a model", MergeError)
    recipe = parse_mixture(document, str(where))
    if options["seed"] is not None:
        recipe = recipe.model_copy(update={"seed": options["seed"]})
    dry_run = options["dry_run"]
    mixture = plan_mixture(recipe, fetch_model, read_prompts=not dry_run)
    plan, base = mixture.plan, recipe.base_model
    extras = replace(mixture.extras, adapters=adapters_of(plan, options["store"]))
    said: dict[str, Any] = {"out": str(out), "family": mixture.target.model_type}
    said |= carry_out(plan, extras, out, base=base, method="mixture of experts", options=options)
    emit(said, as_json, lambda console: render(console, said, dry_run))
