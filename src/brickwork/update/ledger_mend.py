"""A ledger in doubt: what is wrong with it, and how it can be opened again."""

from collections.abc import Callable
from pathlib import Path

from brickwork.errors import EditError
from brickwork.update.edit_folder import changed_files
from brickwork.update.ledger_edits import read_edits, unknown_below
from brickwork.update.ledger_folder import (
    Entry,
    LedgerDocument,
    Revocation,
    discard,
    line_of,
    locked,
    read_document,
    write_document,
)


def verify_ledger(
    folder: Path | str, advance: Callable[[float], object] = lambda _edits: None
) -> list[str]:
    """Everything that is wrong with a ledger, a line each; empty if nothing is.

    Every file is read and compared with what is recorded. What a killed process left behind is
    not wrong.

    Args:
        folder: the ledger's.
        advance: told the number of edits that have just been looked at.
    """
    folder, found = Path(folder), []
    try:
        document = read_document(folder)
    except EditError as error:
        return [str(error)]
    for entry in document.entries:
        problems = _problems(folder, document, entry)
        if problems and not _is_there(folder, entry):
            problems = []  # it was taken out, or a fact of it, while it was read
        found += [f"{entry.id}: {problem}" for problem in problems]
        advance(1)
    return found


def drop_damaged(folder: Path | str) -> list[Revocation]:
    """Take out every edit that cannot be read, so that the ledger can be opened again.

    Returns:
        What was taken out, which the ledger's history says, too; without the names of the facts,
        which cannot be read.
    """
    folder = Path(folder)
    with locked(folder):
        document = read_document(folder)
        edits, _ = read_edits(folder, document)
        gone = [entry for entry in document.entries if entry.folder not in edits]
        lines = [line_of(entry, (), whole=True) for entry in gone]
        entries = tuple(entry for entry in document.entries if entry not in gone)
        changes = {"entries": entries, "history": (*document.history, *lines)}
        write_document(folder, document.model_copy(update=changes))
        for entry in gone:
            discard(folder / entry.folder)
    return lines


def _is_there(folder: Path, entry: Entry) -> bool:
    return entry.folder in {one.folder for one in read_document(folder).entries}


def _problems(folder: Path, document: LedgerDocument, entry: Entry) -> list[str]:
    alone = document.model_copy(update={"entries": (entry,)})
    edits, damage = read_edits(folder, alone)
    found = list(damage.values())
    for edit in edits.values():
        found += [
            f"it was planned on top of {one}, of which nothing is known"
            for one in unknown_below(document, edit)
        ]
        try:
            found += changed_files(folder / entry.folder, edit)
        except OSError as error:
            found.append(f"its files cannot be read: {error}")
    return found
