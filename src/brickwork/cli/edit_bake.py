"""The edits of a ledger in the weights of a checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.console import progress

if TYPE_CHECKING:
    from brickwork.update.ledger import Ledger

RECORD = "brickwork_edits.json"


def require_bakeable_form(form: str, method: str) -> None:
    """Refuse a method whose edits act on states, before any is made.

    Raises:
        ConfigurationError: naming the method and its form.
    """
    from brickwork.brick.forms import find_form
    from brickwork.errors import ConfigurationError

    if find_form(form).effect not in ("add", "scale"):
        raise ConfigurationError(
            f"a checkpoint was asked for with -o, but an edit by {method} is a {form}, which acts "
            "on states and is no change of weights; keep it in a ledger, and run it from there "
            "(brickwork run --edits), or take a method such as rome."
        )


def bake_ledger(
    ledger: "Ledger", model: str, out: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the model with the edits that act in its weights; what was written.

    Args:
        ledger: of the model.
        model: as it was named: a folder, a Hub id, or ``reference``.
        out: folder for the checkpoint; new.
        options: ``revision``.
    """
    from brickwork.combine.bake import bake_bricks
    from brickwork.model.checkpoint import find_checkpoint
    from brickwork.reference.paths import resolve_model

    active = ledger.active()
    folder = find_checkpoint(resolve_model(model), options.get("revision"), weights=True)
    record = {
        "format": 1,
        "base": ledger.base.model_dump(mode="json"),
        "edits": [
            {"id": edit.id, "brick": edit.brick.hash, **edit.record.model_dump(mode="json")}
            for edit in active
        ],
    }
    files = {RECORD: (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()}
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    with progress("baking", total) as advance:
        summary = bake_bricks(
            folder, [edit.brick for edit in active], out,
            name=ledger.base.name, files=files, advance=advance,
        )  # fmt: skip
    return {
        "out": str(out),
        "edits": [edit.id for edit in active],
        "facts": sum(len(edit.record.facts) for edit in active),
        "bytes": summary.bytes,
        "seconds": summary.seconds,
    }
