"""Options that many commands share, each written once."""

import contextlib
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import click

DEBUG_VARIABLE = "BRICKWORK_DEBUG"
STDOUT = "brickwork.stdout"

Command = TypeVar("Command", bound=Callable[..., Any])


class OutType(click.ParamType[Path]):
    """A folder to write, in a place where one can be made: told before any work is done."""

    name = "directory"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """The folder as it was named."""
        folder = Path(value)
        whole = folder.absolute()
        place = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
        if not place.is_dir():
            self.fail(
                f"{str(folder)!r} was to be a folder, but {str(place)!r} is a file; name another.",
                param, ctx,
            )  # fmt: skip
        if not os.access(place, os.W_OK | os.X_OK):
            self.fail(
                f"{str(folder)!r} was to be written, but {str(place)!r} cannot be written to; "
                "name another.", param, ctx,
            )  # fmt: skip
        return folder


OUT = OutType()


def model_options(command: Command) -> Command:
    """Give a command ``device``, ``dtype`` and ``seed``, and ``--offline``.

    ``--offline`` is HF_HUB_OFFLINE, which libraries read as they load: a command's module
    imports them inside its functions, never at its top.
    """
    decorators = (
        click.option("--device", default="auto", help="Where to compute: auto, cpu, cuda, mps."),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            help="Number format of the weights; auto is the checkpoint's own.",
        ),
        click.option("--seed", type=int, default=0, help="Seed of every random choice."),
        offline_option,
    )
    return _apply(command, decorators)


def written_flags(names: Collection[str]) -> list[str]:
    """Those of the running command's options that were written and not left at their default."""
    context = click.get_current_context()
    return [
        option.opts[-1]
        for option in context.command.params
        if option.name in names
        and context.get_parameter_source(option.name) is not click.core.ParameterSource.DEFAULT
    ]


def offline_option(command: Command) -> Command:
    """Give a command ``--offline`` alone; see ``model_options``."""
    about = "Never ask the Hub; use what is on this machine."
    return _switch("--offline", "HF_HUB_OFFLINE", about)(command)


def output_options(command: Command) -> Command:
    """Give a command ``as_json`` (``--json``), and ``--debug``."""
    decorators = (
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            is_eager=True,
            callback=_keep_stdout_clean,
            help="Print one JSON document on stdout and nothing else there.",
        ),
        _switch("--debug", DEBUG_VARIABLE, "Show the traceback of an error."),
    )
    return _apply(command, decorators)


def _apply(command: Command, decorators: tuple[Callable[[Command], Command], ...]) -> Command:
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def _switch(flag: str, variable: str, meaning: str) -> Callable[[Command], Command]:
    """An option that sets an environment variable, so that worker processes obey it too."""

    def set_variable(_context: click.Context, _option: click.Parameter, value: bool) -> None:
        if value:
            os.environ[variable] = "1"

    return click.option(
        flag,
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=set_variable,
        help=f"{meaning}  [{variable}=1]",
    )


def _keep_stdout_clean(context: click.Context, _option: click.Parameter, value: bool) -> bool:
    """Send what other libraries print to stderr; ``emit`` alone still writes to stdout."""
    if value:
        context.meta[STDOUT] = sys.stdout
        context.with_resource(contextlib.redirect_stdout(sys.stderr))
    return value
