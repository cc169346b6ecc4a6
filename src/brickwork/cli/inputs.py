"""What commands read: a model by its name, and labelled instances."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.console import stderr_console

if TYPE_CHECKING:
    from brickwork.measure.instances import Instance
    from brickwork.model.load import LoadedModel


def open_model(
    model: str, options: Mapping[str, Any], *, outline: bool = False, tokenizer: bool = False
) -> "LoadedModel":
    """The model that a command names: a folder, a Hub id, or ``reference``.

    Args:
        model: as it was written.
        options: ``device``, ``dtype`` and ``revision``.
        outline: modules and shapes without weights, for a dry run.
        tokenizer: whether an outline has one; a model has it if it came with one.
    """
    from brickwork.model.load import load_model, outline_model
    from brickwork.reference.paths import resolve_model

    where, kind = resolve_model(model), {k: options[k] for k in ("dtype", "revision")}
    name = model if where != model else ""
    if outline:
        return outline_model(where, tokenizer=tokenizer, name=name, **kind)
    return load_model(where, device=options["device"], name=name, **kind)


def read_labelled(data: str, options: Mapping[str, Any]) -> "list[Instance]":
    """The instances of a data set; says on stderr what was skipped, and why.

    Args:
        data: a file, a folder, a Hub id, or ``reference``.
        options: ``mapping``, ``instances`` (of each functionality) and ``seed``; also
            ``data_revision`` where a command has it.
    """
    from brickwork.measure.labelled import load_labelled
    from brickwork.reference.paths import resolve_data

    found = load_labelled(
        resolve_data(data),
        mapping=options["mapping"],
        revision=options.get("data_revision"),
        per_function=options["instances"],
        seed=options["seed"],
    )
    if found.skipped:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in found.skipped.items())
        stderr_console().print(f"skipped of {found.records:,} records: {reasons}", markup=False)
    return found.instances


def data_name(data: str) -> str:
    """A name that tells nothing of where the data is on this machine."""
    path = Path(data).expanduser()
    return path.resolve().name if path.exists() else data
