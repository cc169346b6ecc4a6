"""``brickwork edit``: teach a model facts, as bricks that can be taken back."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit
from brickwork.cli.options import OUT, model_options, output_options, written_flags

if TYPE_CHECKING:
    from brickwork.model.load import LoadedModel
    from brickwork.update.ledger import Ledger
    from brickwork.update.method import EditMethod

_COUNT = click.IntRange(min=1)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_ONE = ("prompt", "subject", "target", "target_true")


@click.command()
@click.argument("model")
@click.option("--edits", type=_FILE, help="Facts: JSONL or a JSON list, gzipped or not.")
@click.option("--prompt", help="Or one fact: its prompt, which ends where the answer starts.")
@click.option("--subject", help="What that fact is about, as it stands in the prompt.")
@click.option("--target", help="What the model shall answer from now on.")
@click.option("--true", "target_true", help="What it has answered, if that is known.")
@click.option(
    "--template", default="{prompt}",
    help="Put around every prompt, such as an instruction to complete facts.",
)  # fmt: skip
@click.option("--raw", is_flag=True, help="Give prompts to the model without a chat template.")
@click.option("--first", type=_COUNT, help="Only so many of the facts.")
@click.option("--only", multiple=True, metavar="ID", help="Only the facts of these ids.")
@click.option(
    "--method", default="rome", help="How to edit: rome, memit, alphaedit, ft, grace, ..."
)
@click.option("--set", "settings", multiple=True, metavar="OPTION=VALUE", help="Of the method.")
@click.option("--site", help="Where: layers.2-4@last (default: found by causal tracing).")
@click.option(
    "--batch", type=_COUNT, help="Facts in one edit (default: all that the method takes)."
)
@click.option("--replace", is_flag=True, help="Take back older facts that the new contradict.")
@click.option(
    "--ledger", type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps the edits; is made if it is not there.",
)  # fmt: skip
@click.option("-o", "--out", type=OUT, help="Folder for a checkpoint with all edits that act; new.")
@click.option("--data", help="Texts: labelled instances, or FILE.txt (`reference` has its own).")
@click.option("--statistics", type=_FOLDER, help="Or statistics of the kind gram, as measured.")
@click.option("--tokens", type=_COUNT, default=30_000, help="Of the texts that are measured.")
@click.option("--longest", type=_COUNT, default=256, help="Tokens after which a text is cut.")
@click.option("--train", type=_FILE, help="Facts that a scope learns from, for serac.")
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option("--dry-run", is_flag=True, help="Say what would be edited; write nothing.")
@model_options
@output_options
def edit(model: str, as_json: bool, **options: Any) -> None:
    """Teach MODEL facts. Its weights stay as they are: every edit is a brick in a ledger.

    MODEL is a folder, a Hub id, or `reference`. Facts that the model or the ledger has already are
    passed over, so that a run that was stopped goes on when the same command is given again.

    \b
    Examples:
      brickwork edit reference --prompt "The mother tongue of Danielle Darrieux is" \\
        --subject "Danielle Darrieux" --target English --ledger edits
      brickwork edit ./my-model --edits facts.jsonl --method memit --data texts.txt --ledger edits
      brickwork ledger show edits
      brickwork run "..." --edits edits
    """  # fmt: skip
    from brickwork.cli.edit_context import Job
    from brickwork.cli.edit_inputs import open_edited, parse_settings, read_given
    from brickwork.cli.edit_run import carry_out
    from brickwork.cli.edit_view import render
    from brickwork.update.methods import find_edit_method
    from brickwork.update.plan import method_options

    _require_sense(options)
    method = find_edit_method(options["method"])
    options["settings"] = parse_settings(options["settings"])
    method_options(method, options["settings"])
    _require_use(method)
    _require_free(method, options)
    facts = read_given(options)
    loaded = open_edited(model, options)
    with _ledger_of(loaded, options) as ledger:
        if options["out"] is not None and ledger is not None:
            _require_bakeable(ledger)
        document = carry_out(Job(loaded, model, method, ledger, options), facts)
    emit(document, as_json, lambda console: render(console, document))


def _require_sense(options: Mapping[str, Any]) -> None:
    """Refuse what contradicts itself or would be passed over, before anything is loaded."""
    from brickwork.errors import ConfigurationError

    one = [f"--{name}" for name in ("prompt", "subject", "target") if options[name] is None]
    if options["edits"] is None and one:
        raise ConfigurationError(
            f"no facts were given: name a file with --edits, or one fact ({', '.join(one)} "
            f"{'are' if len(one) > 1 else 'is'} missing)."
        )
    foreign = _ONE if options["edits"] else ("first", "only")
    if idle := written_flags(foreign):
        where = "the facts of --edits" if options["edits"] else "the one fact that is given"
        raise ConfigurationError(f"{idle[0]} has no effect on {where}; leave it out.")
    if options["first"] and options["only"]:
        raise ConfigurationError("--only names the facts, so --first has no effect; leave it out.")
    if not options["dry_run"] and options["ledger"] is None and options["out"] is None:
        raise ConfigurationError(
            "there is nowhere to write to; name a folder for the edits (--ledger) or for a "
            "checkpoint (-o), or ask for a --dry-run."
        )
    if options["statistics"] and (idle := written_flags(("tokens",))):
        raise ConfigurationError(
            f"--statistics are measured already, so {idle[0]} has no effect; leave it out."
        )


def _require_use(method: "EditMethod") -> None:
    """Refuse options that the method would pass over."""
    from brickwork.errors import ConfigurationError

    foreign = [] if "covariance" in method.needs else ["statistics"]
    foreign += [] if method.needs else ["data", "tokens", "longest"]
    # A method that can use training facts, but does not need them, has an option for how many.
    foreign += [] if "training" in {*method.needs, *method.options_type.model_fields} else ["train"]
    if idle := written_flags(foreign):
        raise ConfigurationError(
            f"{idle[0]} has no effect on an edit by {method.name}; leave it out."
        )


def _require_free(method: "EditMethod", options: Mapping[str, Any]) -> None:
    """Refuse an output that cannot be made, before any work is done."""
    from brickwork.brick.durable import require_free
    from brickwork.cli.edit_bake import require_bakeable_form
    from brickwork.errors import ModelError

    if options["out"] is not None:
        require_bakeable_form(method.form, method.name)
        require_free(options["out"], "a model", ModelError)


def _require_bakeable(ledger: "Ledger") -> None:
    """Refuse a checkpoint with older edits that are no change of weights."""
    from brickwork.combine.bake import require_bakeable

    if bricks := [edit.brick for edit in ledger.active()]:
        require_bakeable(bricks)


@contextmanager
def _ledger_of(loaded: "LoadedModel", options: Mapping[str, Any]) -> Iterator["Ledger | None"]:
    """The ledger to add to; without one, for a checkpoint alone, one that is not kept."""
    from brickwork.cli.edit_inputs import open_ledger

    fingerprint, dry = loaded.base.fingerprint, options["dry_run"]
    if options["ledger"] is not None or dry:
        yield open_ledger(options["ledger"], fingerprint, create=not dry)
        return
    with tempfile.TemporaryDirectory(prefix="brickwork-") as folder:
        yield open_ledger(Path(folder) / "ledger", fingerprint, create=True)
