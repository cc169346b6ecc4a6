"""The ``brickwork`` command: its table of commands, and what its exit codes mean.

0 done, 1 our failure, 2 the caller's mistake, 130 interrupted, 141 the reader of our output
went away. A command's module loads only when it is called, so help needs neither torch nor
pydantic.
"""

import os
import pkgutil
import sys
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from brickwork.cli.options import DEBUG_VARIABLE
from brickwork.errors import BrickworkError

PROGRAM = "brickwork"
COMPLETE_VARIABLE = "_BRICKWORK_COMPLETE"

_DEFECT = (
    "This is a defect of Brickwork, not of what you asked. Run the command again with --debug "
    f"(or {DEBUG_VARIABLE}=1) for the traceback, and report it."
)


class LateCommand(click.Command):
    """One row of COMMANDS: a command that is known by name and help, and loads when called."""

    def __init__(self, name: str, target: str, meaning: str) -> None:
        super().__init__(name, help=meaning)
        self.target = target

    def load(self) -> click.Command:
        """The command itself, imported from its target ``"module:function"``."""
        command = pkgutil.resolve_name(self.target)
        assert isinstance(command, click.Command), f"{self.target} is no click command"
        return command


class LateGroup(click.Group):
    """A group that lists its rows from the table, and loads only the one that is called."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments name, loaded, and the arguments left for it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, LateCommand) else command, rest


COMMANDS = (
    LateCommand("demo", "brickwork.cli.demo:demo", "The main job on the embedded model."),
    LateCommand("run", "brickwork.cli.run:run", "Answer an instruction with the bricks it needs."),
    LateCommand("model", "brickwork.cli.model:model", "What a model is made of."),
    LateCommand("analyze", "brickwork.cli.analyze:analyze", "Find which parts of a model do what."),
    LateCommand(
        "partition", "brickwork.cli.partition:partition", "Divide a model's FFNs into groups."
    ),
    LateCommand("router", "brickwork.cli.router:router", "Train and compare routers over groups."),
    LateCommand("carve", "brickwork.cli.carve:carve", "Write a smaller model for one function."),
    LateCommand("moe", "brickwork.cli.moe:moe", "Write a dense model as a mixture of experts."),
    LateCommand("check", "brickwork.cli.check:check", "Do bricks fit, and do they interfere."),
    LateCommand("stitch", "brickwork.cli.stitch:stitch", "Join two models of different width."),
    LateCommand(
        "combine", "brickwork.cli.combine:combine", "Merge models or bricks as a recipe says."
    ),
    LateCommand(
        "search", "brickwork.cli.search:search", "Find how bricks or models are best combined."
    ),
    LateCommand(
        "statistics", "brickwork.cli.statistics:statistics", "Measure what merges weigh by."
    ),
    LateCommand("locate", "brickwork.cli.locate:locate", "Where a model recalls facts."),
    LateCommand("edit", "brickwork.cli.edit:edit", "Teach a model facts, each to be taken back."),
    LateCommand("ledger", "brickwork.cli.ledger:ledger", "Edits: see, switch, take back, bake."),
    LateCommand(
        "evaluate", "brickwork.cli.evaluate:evaluate", "Measure what was made, before and after."
    ),
    LateCommand("grow", "brickwork.cli.grow:grow", "Make a model larger, or teach it more."),
    LateCommand("unlearn", "brickwork.cli.unlearn:unlearn", "Take a behaviour away by examples."),
    LateCommand("store", "brickwork.cli.store:store", "Keep bricks: add, list, show, verify."),
    LateCommand(
        "reference", "brickwork.cli.reference:reference", "The embedded model and its bricks."
    ),
)


@click.group(
    cls=LateGroup,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Start here: brickwork demo. Every command has its own --help.",
)
@click.version_option(package_name=PROGRAM, prog_name=PROGRAM)
def app() -> None:
    """Take a language model apart into bricks: find, build, combine and run them."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command that ``args`` name and return its exit code.

    Args:
        args: the words after the program's name; None takes those of this process.

    Returns:
        0 done, 1 our failure, 2 the caller's mistake, 130 interrupted, 141 a broken pipe.
    """
    try:
        code = _run(list(sys.argv[1:] if args is None else args))
        sys.stdout.flush()
    except click.exceptions.Exit as asked:
        code = asked.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nInterrupted.", err=True)
        code = 130
    except BrokenPipeError:
        # What is still buffered has nowhere to go; the interpreter must not trip over it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        code = _report(error)
    return code


def _run(args: list[str]) -> int:
    instruction = os.environ.get(COMPLETE_VARIABLE)
    if instruction:
        return shell_complete(app, {}, PROGRAM, COMPLETE_VARIABLE, instruction)
    with app.make_context(PROGRAM, args) as context:
        app.invoke(context)
    return 0


def _report(error: Exception) -> int:
    """Say on stderr what went wrong and whose fault it is; 2 for the caller's, 1 for ours."""
    if isinstance(error, click.ClickException):
        error.show()
        return 2
    debugging = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    if debugging:
        import traceback

        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, BrickworkError):
        click.echo(f"Error: {error}", err=True)
        return 2
    click.echo(f"Error: internal: {type(error).__name__}: {error}", err=True)
    if not debugging:
        click.echo(_DEFECT, err=True)
    return 1
