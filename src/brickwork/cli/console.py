"""What commands print: the result on stdout, everything else on stderr."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from brickwork.cli.options import STDOUT


def emit(document: dict[str, Any], as_json: bool, render: Callable[[Console], None]) -> None:
    """Print a command's result: one JSON document, or as ``render`` draws it for a person.

    Args:
        document: the result; only what JSON can say, so no NaN and no infinity.
        as_json: the value of ``--json``.
        render: draws the same result on the console of stdout.

    Raises:
        ValueError: if the document holds a NaN or an infinity.
    """
    if not as_json:
        render(Console())
        return
    context = click.get_current_context(silent=True)
    stdout = context.meta.get(STDOUT) if context else None
    click.echo(json.dumps(document, indent=2, allow_nan=False), file=stdout)


def stderr_console() -> Console:
    """The console for notes, warnings and progress, so that stdout carries results only."""
    return Console(stderr=True)


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
    """Show on stderr how far the work is, its rate and the time left, if a person can see it.

    Args:
        description: what is being done, in a few words.
        total: number of steps; None where nobody knows.

    Yields:
        A function to call with the number of steps just done.
    """
    console = stderr_console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task(description, total=total)
        yield lambda steps: bars.advance(task, steps)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")
