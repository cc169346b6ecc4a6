"""``brickwork ledger``: see the edits of a model, switch them, take them back, bake them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from brickwork.cli.console import emit, stderr_console
from brickwork.cli.options import OUT, offline_option, output_options

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.update.ledger import Ledger
    from brickwork.update.ledger_folder import Entry, Revocation

Command = TypeVar("Command", bound=Callable[..., Any])
_LEDGER = click.argument(
    "ledger", metavar="LEDGER", type=click.Path(path_type=Path, exists=True, file_okay=False)
)


@click.group()
def ledger() -> None:
    """See edits, switch them on and off, take them back, write them into a checkpoint.

    A ledger is the folder that `brickwork edit` keeps its edits in. The model itself is never
    changed: edits act while it runs, and when all are off it is what it was, to the bit.
    """


@ledger.command()
@_LEDGER
@output_options
def show(ledger: Path, as_json: bool) -> None:
    """List the edits with their facts, and what was taken back."""
    from brickwork.cli.ledger_view import render

    document = _document(_open(ledger))
    emit(document, as_json, lambda console: render(console, document))


@ledger.command()
@_LEDGER
@click.argument("edits", nargs=-1, required=True, metavar="EDIT...")
@output_options
def apply(ledger: Path, edits: tuple[str, ...], as_json: bool) -> None:
    """Let edits act from now on."""
    _switch(ledger, edits, as_json, "apply")


@ledger.command()
@_LEDGER
@click.argument("edits", nargs=-1, required=True, metavar="EDIT...")
@output_options
def disable(ledger: Path, edits: tuple[str, ...], as_json: bool) -> None:
    """Let edits act no more, and keep them."""
    _switch(ledger, edits, as_json, "disable")


@ledger.command()
@_LEDGER
@click.argument("edit", metavar="EDIT")
@click.option("--fact", metavar="ID", help="Only this fact of it.")
@output_options
def revoke(ledger: Path, edit: str, fact: str | None, as_json: bool) -> None:
    """Take an edit, or one fact of it, out for good.

    What the others do stays as it is. Edits that were planned while this one acted are named.
    """
    opened = _open(ledger)
    later = [entry.id for entry in opened.dependents(edit)]
    gone = opened.revoke(edit, fact)
    document = {**_gone(gone), "planned_on_top": later}
    emit(document, as_json, lambda console: _render_gone(console, document))


@ledger.command()
@_LEDGER
@click.option("--model", help="The base (default: as the ledger names it).")
@click.option("--revision", help="Branch, tag or commit of the base on the Hub.")
@click.option("-o", "--out", type=OUT, required=True, help="Folder for the checkpoint; new.")
@offline_option
@output_options
def bake(ledger: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Write the model with the edits that act in its weights, as a checkpoint of its own.

    Plain transformers loads it. Only edits that are changes of weights can be baked.
    """
    from brickwork.brick.durable import require_free
    from brickwork.cli.edit_bake import bake_ledger
    from brickwork.cli.edit_inputs import open_edited
    from brickwork.combine.bake import require_bakeable
    from brickwork.errors import EditError, ModelError

    require_free(out, "a model", ModelError)
    opened = _open(ledger)
    if not opened.active():
        raise EditError(
            f"the edits of {str(ledger)!r} were to be baked, but none of the {len(opened.entries)} "
            "acts; let some act (brickwork ledger apply), or take the model as it is."
        )
    require_bakeable([edit.brick for edit in opened.active()])
    model = options["model"] or opened.base.name
    # Not to bake into another model of the same shapes; the weights are let go before the work.
    base = open_edited(model, {**options, "device": "cpu", "dtype": "auto"}).base.fingerprint
    opened = _open(ledger, base)
    document = bake_ledger(opened, model, out, options)
    emit(document, as_json, lambda console: _render_baked(console, document))


@ledger.command()
@_LEDGER
@click.option("--drop", is_flag=True, help="Take out the edits that are damaged.")
@output_options
def verify(ledger: Path, drop: bool, as_json: bool) -> None:
    """Read every file of the ledger, and say what is wrong; exit code 1 if anything is."""
    from brickwork.update.ledger_mend import drop_damaged, verify_ledger

    dropped = drop_damaged(ledger) if drop else []
    problems = verify_ledger(ledger)
    document = {"problems": problems, "dropped": [_gone(line) for line in dropped]}
    emit(document, as_json, lambda console: _render_verified(console, document))
    if problems:
        raise click.exceptions.Exit(1)


def _open(folder: Path, base: Any = None) -> "Ledger":
    from brickwork.update.ledger import Ledger

    return Ledger.open(folder, base)


def _switch(folder: Path, edits: tuple[str, ...], as_json: bool, how: str) -> None:
    from brickwork.cli.ledger_view import render

    opened = _open(folder)
    for edit in edits:
        opened.entry(edit)  # an unknown one is told before any is switched
    if how == "apply":
        _warn(opened, edits)
    for edit in edits:
        getattr(opened, how)(edit)
    document = _document(opened)
    emit(document, as_json, lambda console: render(console, document))


def _warn(opened: "Ledger", ids: tuple[str, ...]) -> None:
    """Say before edits are applied what does not go together with those that will act, too."""
    from brickwork.errors import listed
    from brickwork.update.conflicts import find_conflicts

    acting = [entry.id for entry in opened.entries if entry.state == "applied"]
    found = []
    for id in dict.fromkeys(ids):
        if id not in acting:
            found += find_conflicts(opened.edit(id), [opened.edit(one) for one in acting])
            acting.append(id)
    if found:
        stderr_console().print(
            f"Note: not all of them go together:{listed([one.advice for one in found])}",
            style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip


def _document(opened: "Ledger") -> dict[str, Any]:
    return {
        "ledger": str(opened.folder),
        "base": opened.base.name,
        "edits": [_entry(opened, entry) for entry in opened.entries],
        "revoked": [_gone(line) for line in opened.history],
    }


def _entry(opened: "Ledger", entry: "Entry") -> dict[str, Any]:
    edit = opened.edit(entry.id)
    record, spec = edit.record, edit.brick.spec
    return {
        "id": entry.id,
        "state": entry.state,
        "method": record.method,
        "form": spec.form,
        "layers": list(record.layers),
        "place": record.place,
        "bytes": sum(t.numel() * t.element_size() for t in edit.brick.tensors.values()),
        "added": entry.added.isoformat(),
        "after": opened.after(entry.id),
        "facts": [fact.model_dump(mode="json") for fact in record.facts],
        "failures": [failure.model_dump(mode="json") for failure in record.failures],
    }


def _gone(line: "Revocation") -> dict[str, Any]:
    return line.model_dump(mode="json", include={"id", "facts", "whole", "when"})


def _render_gone(console: "Console", document: Mapping[str, Any]) -> None:
    what = f"edit {document['id']}" if document["whole"] else f"a fact of edit {document['id']}"
    console.print(f"revoked {what}: {', '.join(document['facts'])}", markup=False)
    if document["planned_on_top"]:
        console.print(
            f"planned while it acted: {', '.join(document['planned_on_top'])}; they go on without "
            "it, and can be planned again if that matters",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def _render_baked(console: "Console", document: Mapping[str, Any]) -> None:
    console.print(
        f"checkpoint with {', '.join(document['edits'])} (facts: {document['facts']}): "
        f"{document['out']}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _render_verified(console: "Console", document: Mapping[str, Any]) -> None:
    for line in document["dropped"]:
        console.print(f"taken out: {line['id']}", markup=False)
    for problem in document["problems"]:
        console.print(problem, markup=False, soft_wrap=True)
    if not document["problems"]:
        console.print("sound")
