"""``brickwork grow``: the table of its commands, each loaded when it is called."""

import click

from brickwork.cli.main import LateCommand, LateGroup

_PARTS = "brickwork.cli.grow_part"


@click.group(
    cls=LateGroup,
    commands=(
        LateCommand("width", f"{_PARTS}:width", "More neurons in every FFN."),
        LateCommand("heads", f"{_PARTS}:heads", "More attention heads."),
        LateCommand("hidden", f"{_PARTS}:hidden", "A larger hidden size."),
        LateCommand("depth", f"{_PARTS}:depth", "More layers."),
        LateCommand("vocab", f"{_PARTS}:vocab", "More tokens."),
        LateCommand("experts", f"{_PARTS}:experts", "A mixture of experts, or more of them."),
        LateCommand("context", f"{_PARTS}:context", "Longer texts."),
        LateCommand("recipe", "brickwork.cli.grow_recipe:recipe", "Several of these in a row."),
        LateCommand(
            "learned", "brickwork.cli.grow_learned:learned", "A recipe by maps that are trained."
        ),
        LateCommand(
            "train", "brickwork.cli.grow_train:train", "Train on, all of it or what is new."
        ),
        LateCommand(
            "task", "brickwork.cli.grow_task:task", "Learn tasks, each as a brick of its own."
        ),
        LateCommand(
            "branches", "brickwork.cli.branches:branches", "Copies trained on domains, joined."
        ),
    ),
)
def grow() -> None:
    """Make a model larger, or teach it more, and keep what it has learned."""
