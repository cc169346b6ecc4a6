"""``brickwork combine`` on a recipe for a mixture of dense models."""

from pathlib import Path
from typing import Any

from brickwork.cli.combine_models import fetch_model, what_was_done
from brickwork.cli.console import emit, progress
from brickwork.errors import ConfigurationError


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
    from brickwork.cli.combine_view import describe_plan, render
    from brickwork.combine.engine import write_merge
    from brickwork.combine.mixture import plan_mixture
    from brickwork.combine.mixture_recipe import parse_mixture
    from brickwork.combine.workshop import require_vacant

    if options["data"] is not None:
        raise ConfigurationError(
            "--evaluate compares the parents of a merge with their child, and a mixture is not "
            "evaluated yet; leave it out, and use `brickwork analyze` on the result."
        )
    require_vacant(out)
    recipe = parse_mixture(document, str(where))
    if options["seed"] is not None:
        recipe = recipe.model_copy(update={"seed": options["seed"]})
    mixture = plan_mixture(recipe, fetch_model)
    plan, extras = mixture.plan, mixture.extras
    said: dict[str, Any] = {"out": str(out), "family": mixture.target.model_type}
    said |= describe_plan(plan, extras, options["workers"])
    dry_run = options["dry_run"]
    if not dry_run:
        with progress("merge", said["bytes_to_write"]) as advance:
            summary = write_merge(
                plan, out, extras=extras, workers=options["workers"],
                shard_bytes=options["shard_size"], advance=advance,
            )  # fmt: skip
        said |= what_was_done(summary, said["bytes_to_read"])
    emit(said, as_json, lambda console: render(console, said, dry_run))
