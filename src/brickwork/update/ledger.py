"""The ledger: which edits act on a base, in which order, and how each is taken back.

The model's weights are never touched: edits are bricks that act while the model runs. So the base
is itself again, to the bit, when none is applied, and taking out one of many leaves what a model
does that never had it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from brickwork.brick.base import Fingerprint
from brickwork.brick.durable import require_free
from brickwork.brick.files import write_folder
from brickwork.errors import EditError, UnknownNameError, listed
from brickwork.update.edit import Edit, TaughtFact
from brickwork.update.edit_folder import RECORD, file_hash, write_edit
from brickwork.update.ledger_edits import read_edits, require_base, require_fit
from brickwork.update.ledger_folder import (
    LEDGER,
    Entry,
    LedgerDocument,
    Revocation,
    State,
    clear_leftovers,
    discard,
    document_bytes,
    line_of,
    locked,
    next_number,
    number_of,
    read_document,
    write_document,
)
from brickwork.update.parts import without_facts

_ATTEMPTS = 10


class Ledger:
    """An open ledger. Whatever changes it is on disk when the call returns.

    Another process may change it, too. Each change starts from what is on disk then; between
    changes, what is said here is as of the last one, or of ``open``.

    Attributes:
        folder: where it is.
        base: the model that its edits are for.
    """

    def __init__(self, folder: Path, document: LedgerDocument, edits: dict[str, Edit]) -> None:
        self.folder, self.base = folder, document.base
        self._document = document
        self._edits = edits  # by the name of the folder

    @classmethod
    def create(cls, folder: Path | str, base: Fingerprint) -> "Ledger":
        """A new ledger without edits.

        Args:
            folder: a place that is free.
            base: of the model that its edits will be for.

        Raises:
            EditError: if the place is taken.
        """
        folder = Path(folder)
        require_free(folder, "a ledger", EditError)
        document = LedgerDocument(base=base)
        write_folder({LEDGER: document_bytes(document)}, folder)
        return cls(folder, document, {})

    @classmethod
    def open(cls, folder: Path | str, base: Fingerprint | None = None) -> "Ledger":
        """The ledger in a folder, with every edit read and checked against its hashes.

        Args:
            folder: where it is.
            base: of the model that the edits shall act on; None: it is not known yet.

        Raises:
            EditError: if there is no ledger, it is for another base, or a file is missing,
                damaged or changed.
        """
        folder = Path(folder)
        edits: dict[str, Edit] = {}
        for attempt in range(_ATTEMPTS):
            document = read_document(folder)
            require_base(folder, document, base)
            edits, damage = read_edits(folder, document, edits)
            if not damage:
                return cls(folder, document, edits)
            if document == read_document(folder) or attempt == _ATTEMPTS - 1:
                break  # nobody has changed it meanwhile, so it is damaged in deed
        raise _damaged(folder, damage)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The edits in their order, those that are disabled included."""
        return self._document.entries

    @property
    def history(self) -> tuple[Revocation, ...]:
        """What was taken out for good, in the order in which it went."""
        return self._document.history

    def entry(self, id: str) -> Entry:
        """What the ledger says of an edit.

        Raises:
            UnknownNameError: if it has no edit of that id.
        """
        for entry in self.entries:
            if entry.id == id:
                return entry
        raise UnknownNameError("edit of the ledger", id, (entry.id for entry in self.entries))

    def edit(self, id: str) -> Edit:
        """The edit of that id; UnknownNameError if there is none."""
        return self._edits[self.entry(id).folder]

    def active(self) -> list[Edit]:
        """The edits that are applied, in their order."""
        return [self._edits[entry.folder] for entry in self.entries if entry.state == "applied"]

    def taught(self) -> dict[str, TaughtFact]:
        """The facts that the edits teach, by their id; where several do, as the last one does.

        Facts of disabled edits are among them: they are planned, and need not be planned again.
        """
        return {
            fact.id: fact
            for entry in self.entries
            for fact in self._edits[entry.folder].record.facts
        }

    def dependents(self, id: str) -> list[Entry]:
        """The later edits that were planned while this one acted.

        They go on without it, but what they write was measured with it there.

        Raises:
            UnknownNameError: if the ledger has no edit of that id.
        """
        self.entry(id)
        names = self._document.by_hash
        return [entry for entry in self.entries if id in self._after(entry, names)]

    def after(self, id: str) -> list[str]:
        """The ids of the edits that acted when one was planned; some may be revoked since.

        Raises:
            UnknownNameError: if the ledger has no edit of that id.
        """
        return self._after(self.entry(id), self._document.by_hash)

    def add(self, edit: Edit, state: State = "applied") -> Entry:
        """Keep an edit as the last of the order.

        Args:
            edit: planned for this base, on top of edits of this ledger or on none.
            state: whether it acts.

        Raises:
            EditError: if it is for another base, is there already, is not sound, or was planned
                on top of an edit that this ledger never had.
        """
        with self._changing():
            document = self._document
            require_fit(self.folder, document, edit)
            method = re.sub(r"[^a-z0-9]+", "-", edit.record.method.lower()[:60]).strip("-")
            id = f"{next_number(self.folder, document):04d}-{method or 'edit'}"
            write_edit(edit, self.folder / id)
            entry = Entry(
                id=id,
                state=state,
                hash=edit.brick.hash,
                record=file_hash(self.folder / id / RECORD),
                added=datetime.now(UTC),
            )
            self._edits[entry.folder] = Edit(edit.brick, edit.record, edit.keys, id)
            self._write(entries=(*document.entries, entry))
            return entry

    def apply(self, id: str) -> Entry:
        """Let an edit act from now on; one that does already is left as it is."""
        return self._set(id, "applied")

    def disable(self, id: str) -> Entry:
        """Let an edit act no more, and keep it and its place in the order."""
        return self._set(id, "disabled")

    def revoke(self, id: str, fact: str | None = None) -> Revocation:
        """Take an edit, or one fact of it, out for good; what went is said in ``history``.

        Args:
            id: of the edit.
            fact: the fact's id; None takes the whole edit. With its last fact an edit goes, too.

        Raises:
            UnknownNameError: if the ledger has no such edit, or the edit no such fact.
            EditError: if the fact cannot be parted from the others of its edit.
        """
        with self._changing():
            entry, edit = self.entry(id), self.edit(id)
            facts = tuple(one.id for one in edit.record.facts)
            if fact is None or facts == (fact,):
                return self._take_out(entry, facts)
            rest = without_facts(edit, [fact])
            revised = entry.model_copy(update={"revision": entry.revision + 1})
            discard(self.folder / revised.folder)  # a killed process may have begun it
            write_edit(rest, self.folder / revised.folder)
            record = file_hash(self.folder / revised.folder / RECORD)
            revised = revised.model_copy(update={"hash": rest.brick.hash, "record": record})
            self._edits[revised.folder] = rest
            line = line_of(entry, (fact,), whole=False)
            self._write(
                entries=tuple(revised if one == entry else one for one in self.entries),
                history=(*self.history, line),
            )
            discard(self.folder / entry.folder)
            return line

    def _after(self, entry: Entry, names: Mapping[str, Sequence[str]]) -> list[str]:
        own = number_of(entry.id)
        found: list[str] = []
        for content in self._edits[entry.folder].record.depends_on:
            ids = names.get(content, ())
            if len(ids) > 1:  # in the order in which they were added
                ids = [id for id in ids if number_of(id) < own][-1:]
            found += ids
        return found

    def _set(self, id: str, state: State) -> Entry:
        with self._changing():
            entry = self.entry(id)
            changed = entry.model_copy(update={"state": state})
            if changed != entry:
                self._write(entries=tuple(changed if one == entry else one for one in self.entries))
            return changed

    def _take_out(self, entry: Entry, facts: tuple[str, ...]) -> Revocation:
        line = line_of(entry, facts, whole=True)
        self._write(
            entries=tuple(one for one in self.entries if one != entry),
            history=(*self.history, line),
        )
        discard(self.folder / entry.folder)
        return line

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Inside, nobody else changes the ledger, and this object says what is on disk."""
        with locked(self.folder):
            document = read_document(self.folder)
            require_base(self.folder, document, self.base)
            self._edits, damage = read_edits(self.folder, document, self._edits)
            if damage:
                raise _damaged(self.folder, damage)
            self._document = document
            clear_leftovers(self.folder, document)
            yield

    def _write(self, **changes: object) -> None:
        changed = LedgerDocument.model_validate(dict(self._document) | changes)
        write_document(self.folder, changed)
        self._document = changed


def _damaged(folder: Path, damage: Mapping[str, str]) -> EditError:
    problems = listed([f"{id}: {problem}" for id, problem in damage.items()])
    return EditError(
        f"the ledger {str(folder)!r} is damaged:{problems}\nput the folders back from a copy, or "
        f"take these edits out: brickwork ledger verify {folder} --drop."
    )
