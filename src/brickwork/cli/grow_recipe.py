"""``brickwork grow recipe``: several growths of a model, one after the other."""

from pathlib import Path
from typing import Any

import click

from brickwork.cli.grow_write import grow_and_tell, writing_options


@click.command()
@click.argument("model")
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--seed", type=int, help="Instead of the recipe's seed.")
@writing_options
def recipe(model: str, recipe: Path, **options: Any) -> None:
    """Grow MODEL as the YAML file RECIPE says, step after step.

    MODEL is a folder, a Hub id, or `reference`. A step names what grows (`part`), how (`by`), and
    the `options` of that way, as `brickwork grow PART --help` lists them.

    \b
    Examples:
      brickwork grow recipe reference larger.yaml -o larger --dry-run
      brickwork grow recipe reference larger.yaml -o larger
    """
    from brickwork.grow.recipe import read_recipe

    found = read_recipe(recipe)
    if options["seed"] is not None:
        found = found.model_copy(update={"seed": options["seed"]})
    grow_and_tell(model, found, options)
