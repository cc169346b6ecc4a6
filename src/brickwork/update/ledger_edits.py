"""The edits of a ledger: read from their folders and checked against what the ledger says."""

from collections.abc import Mapping
from pathlib import Path

from brickwork.brick.base import Fingerprint
from brickwork.brick.check import fingerprint_misfits
from brickwork.errors import EditError, listed
from brickwork.update.edit import Edit
from brickwork.update.edit_folder import RECORD, file_hash, read_edit
from brickwork.update.ledger_folder import Entry, LedgerDocument


def read_edits(
    folder: Path, document: LedgerDocument, known: Mapping[str, Edit] | None = None
) -> tuple[dict[str, Edit], dict[str, str]]:
    """The edits of a ledger.

    Args:
        folder: the ledger's.
        document: what it says.
        known: edits that have been read already, by the names of their folders.

    Returns:
        The edits by the names of their folders; and what is wrong with the others, by their ids.
    """
    edits, damage = {}, {}
    for entry in document.entries:
        edit = (known or {}).get(entry.folder)
        try:
            if edit is None or edit.brick.hash != entry.hash:  # it is from an older copy
                edit = _read(folder, document, entry)
            edits[entry.folder] = edit
        except EditError as error:
            damage[entry.id] = str(error)
    return edits, damage


def _read(folder: Path, document: LedgerDocument, entry: Entry) -> Edit:
    place = folder / entry.folder
    edit = read_edit(place, entry.id)
    record = file_hash(place / RECORD)
    for what, found, wanted in (
        ("brick", edit.brick.hash, entry.hash),
        ("record", record, entry.record),
    ):
        if found != wanted:
            raise EditError(
                f"the {what} in {place} has the hash {found[:12]}, but the ledger knows "
                f"{wanted[:12]}; it is another edit, or was changed."
            )
    misfits = fingerprint_misfits(edit.record.base, document.base)
    if misfits:
        raise EditError(f"the edit in {place} is for another base:{listed(misfits)}")
    return edit


def require_base(folder: Path, document: LedgerDocument, base: Fingerprint | None) -> None:
    """Refuse a ledger that is for another base than this one."""
    misfits = fingerprint_misfits(document.base, base) if base else []
    if misfits:
        raise EditError(
            f"the ledger {str(folder)!r} is for another base than this one:{listed(misfits)}\n"
            "open the ledger of this model, or create one."
        )


def require_fit(folder: Path, document: LedgerDocument, edit: Edit) -> None:
    """Refuse an edit that is for another base, there already, or on top of an unknown edit."""
    misfits = fingerprint_misfits(edit.record.base, document.base)
    if misfits:
        raise EditError(
            f"{edit.label} was to be added to the ledger {str(folder)!r}, but is for another "
            f"base:{listed(misfits)}\nplan it again on the ledger's model."
        )
    for entry in document.entries:
        if entry.hash == edit.brick.hash:
            raise EditError(
                f"{edit.label} was to be added to the ledger {str(folder)!r}, where it is "
                f"already, as {entry.id} ({entry.state}); apply that one."
            )
    if unknown := unknown_below(document, edit):
        raise EditError(
            f"{edit.label} was planned on top of {', '.join(unknown)}, which the ledger "
            f"{str(folder)!r} never had; add that first, or plan this one again."
        )


def unknown_below(document: LedgerDocument, edit: Edit) -> list[str]:
    """Short hashes of what an edit was planned on top of and the ledger never had."""
    known = document.by_hash
    return [one[:12] for one in edit.record.depends_on if one not in known]
