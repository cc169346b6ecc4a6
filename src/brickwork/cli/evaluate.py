"""``brickwork evaluate``: whether what was made does what it shall, and what else it changes."""

import click

from brickwork.cli.main import LateCommand, LateGroup


@click.group(
    cls=LateGroup,
    commands=(
        LateCommand(
            "edits", "brickwork.cli.evaluate_edits:edits", "Do edits hold, and what do they spare."
        ),
    ),
)
def evaluate() -> None:
    """Measure what was made: before and after, with intervals."""
