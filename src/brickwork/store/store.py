"""The store: bricks by name, version and content hash; safe under many processes and kill -9.

How it survives a kill at any moment: ``intake.py``; how it deletes without harm: ``collection.py``.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from sqlite3 import Connection
from types import TracebackType
from typing import TYPE_CHECKING

import platformdirs

from brickwork.errors import StoreError, UnknownNameError
from brickwork.store import archive, entries, search, vectors, verify
from brickwork.store.catalog import Catalog
from brickwork.store.collection import Collected, collect
from brickwork.store.entry import Entry, checked_tags
from brickwork.store.intake import keep
from brickwork.store.lineage import Family, family
from brickwork.store.objects import Objects
from brickwork.store.vectors import Matrix

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick

Entries = list[Entry]  # inside the class, ``list`` is the method
Lines = list[str]


def default_path() -> Path:
    """The store of this user: ``$BRICKWORK_HOME/store``, else in the platform's data folder."""
    home = os.environ.get("BRICKWORK_HOME")
    root = Path(home) if home else platformdirs.user_data_path("brickwork", appauthor=False)
    return root / "store"


class Store:
    """An open store. Close it, or use it in a ``with`` block; threads may share it."""

    def __init__(self, path: Path, catalog: Catalog) -> None:
        self.folder = path
        self._catalog = catalog
        self._objects = Objects(path)

    @classmethod
    def open(cls, path: Path | str, *, create: bool = True, patience: float = 30.0) -> "Store":
        """Open the store at ``path``; without write permission it opens for reading only.

        Args:
            path: the store's folder.
            create: make a new store if there is none.
            patience: seconds to wait for other processes that are writing.

        Raises:
            StoreError: if it is no store, of a newer version, locked for too long, or damaged.
        """
        folder = Path(path)
        return cls(folder, Catalog.open(folder, create=create, patience=patience))

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalog; the store may be opened again."""
        self._catalog.close()

    def add(self, brick: "Brick", *, tags: Iterable[str] = ()) -> Entry:
        """Keep the brick as the next version of its name; when this returns, it is kept for good.

        The same content again returns the entry it has, with the tags added, and brings it back
        if it was removed. An object that was damaged is replaced.
        """
        pair = (brick, checked_tags(tags))
        return keep(self._catalog, self._objects, lambda: [pair])[0]

    def entry(self, reference: str) -> Entry:
        """The entry of ``fr-en`` (its latest version that is not removed), ``fr-en@2``, or
        ``sha256:...`` (at least 8 digits).

        Raises:
            UnknownNameError: if nothing is called so; it lists the nearest names.
            StoreError: if a hash fits several bricks, or every version of the name is removed.
        """
        with self._catalog.reading() as db:
            return entries.find(db, reference)

    def get(self, reference: str) -> "Brick":
        """The brick of a reference, read from the disk and checked against its hash."""
        return self._objects.read(self.entry(reference))

    def path(self, reference: str) -> Path:
        """The folder of a brick, which for a form that PEFT has is a PEFT adapter folder."""
        return self._objects.path(self.entry(reference).hash)

    def search(self, text: str, limit: int = 10) -> list[tuple[Entry, float]]:
        """The bricks whose name, function, labels, tags or exemplars share words with ``text``.

        Only the latest version of each name is found. Any text is allowed.

        Args:
            text: words, or a whole instruction.
            limit: how many to return at most.

        Returns:
            Entries with their BM25 scores, above 0, best first; empty if no word is shared.
        """
        with self._catalog.reading() as db:
            return search.search(db, text, limit)

    def put_vectors(
        self, embedder_id: str, brick_hash: str, matrix: Matrix, texts_hash: str
    ) -> None:
        """Keep the embeddings of a brick's texts until the brick is collected.

        Args:
            embedder_id: which embedder, and which version of it.
            brick_hash: the brick's content hash.
            matrix: one row per text.
            texts_hash: a hash of the texts, so that the caller can tell if they changed.
        """
        checked = vectors.checked(matrix)
        with self._catalog.writing() as db:
            if not entries.exists(db, brick_hash):
                raise UnknownNameError("brick", f"sha256:{brick_hash}", ())
            vectors.put(db, embedder_id, brick_hash, checked, texts_hash)

    def vectors(self, embedder_id: str) -> dict[str, Matrix]:
        """The kept matrices of all bricks that are not removed, by content hash."""
        with self._catalog.reading() as db:
            return vectors.load(db, embedder_id)

    def texts_hashes(self, embedder_id: str) -> dict[str, str]:
        """The ``texts_hash`` that each kept matrix came with, by content hash."""
        with self._catalog.reading() as db:
            return vectors.texts_hashes(db, embedder_id)

    def tag(self, reference: str, tag: str) -> Entry:
        """Give the brick a tag; one that it has already changes nothing."""
        tags = checked_tags([tag])
        return self._change(reference, lambda db, entry: entries.set_tags(db, entry.hash, add=tags))

    def untag(self, reference: str, tag: str) -> Entry:
        """Take a tag away; one that it does not have changes nothing."""
        return self._change(reference, lambda db, entry: entries.set_tags(db, entry.hash, drop=tag))

    def lineage(self, reference: str) -> Family:
        """The brick's ancestors and children in this store."""
        with self._catalog.reading() as db:
            return family(db, entries.find(db, reference))

    def remove(self, reference: str) -> Entry:
        """Take a brick out of lists and searches; a collection deletes it later.

        Until then its exact version and its hash still name it, and ``restore`` brings it back.
        """
        return self._change(
            reference, lambda db, entry: entries.set_deleted(db, entry.hash, time.time())
        )

    def restore(self, reference: str) -> Entry:
        """Bring a removed brick back; a bare name means its latest removed version."""
        return self._change(
            reference, lambda db, entry: entries.set_deleted(db, entry.hash, None), removed=True
        )

    def collect(self, older_than_seconds: float = 3600, *, dry_run: bool = False) -> Collected:
        """Delete removed bricks, and leftovers of interrupted processes, that are old enough.

        Args:
            older_than_seconds: the least age, at least 0.
            dry_run: delete nothing.
        """
        moment = time.time() - older_than_seconds
        return collect(self._catalog, self._objects, moment, dry_run=dry_run)

    def verify(self, advance: Callable[[float], object] = lambda steps: None) -> Lines:
        """Everything that is wrong with the store, one line each; empty if nothing is.

        Every object is read and hashed. What an interrupted process left behind is not wrong.

        Args:
            advance: called with the number of bricks just looked at.
        """
        return verify.problems(self._catalog, self._objects, advance)

    def export(self, references: Iterable[str], file: Path | str) -> Entries:
        """Write bricks, with their tags, to one file that ``import_archive`` reads.

        Equal bricks give equal bytes, in whatever order they are named. Each is verified first.
        """
        chosen = {entry.hash: entry for entry in map(self.entry, references)}
        listed = sorted(chosen.values(), key=lambda entry: (entry.name, entry.version))
        if not listed:
            raise StoreError("nothing to export; name at least one brick.")
        for entry in listed:
            self._objects.read(entry)
        archive.write_archive(
            Path(file), [(e.hash, e.tags, self._objects.path(e.hash)) for e in listed]
        )
        return listed

    def import_archive(self, file: Path | str, *, limit: int = archive.LIMIT) -> Entries:
        """Add all bricks of an archive, or none.

        Args:
            file: what ``export`` wrote; nothing in it is trusted.
            limit: the most bytes it may have.

        Raises:
            StoreError: if it is not an archive, holds anything unexpected, or a brick's hash is
                not what it says.
        """
        return keep(self._catalog, self._objects, lambda: archive.read_archive(Path(file), limit))

    def list(
        self,
        *,
        form: str | None = None,
        tag: str | None = None,
        label: str | None = None,
        base: str | None = None,
        deleted: bool = False,
    ) -> Entries:
        """The entries that meet every condition given, by name and version.

        Args:
            form: a row of FORMS.
            tag: a tag of this store.
            label: a label of the brick's function.
            base: the base's name, or at least 8 digits of its weights' hash.
            deleted: removed ones too.
        """
        with self._catalog.reading() as db:
            return entries.select(db, form=form, tag=tag, label=label, base=base, deleted=deleted)

    def _change(
        self, reference: str, change: Callable[[Connection, Entry], None], *, removed: bool = False
    ) -> Entry:
        with self._catalog.writing() as db:
            entry = entries.find(db, reference, removed=removed)
            change(db, entry)
            search.refresh(db, entry.name)
            return entries.find(db, entry.reference)
