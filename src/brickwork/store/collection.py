"""How removed bricks, and what interrupted processes left, are deleted without harm to anybody.

Why nobody loses what they need, whatever else runs: (1) rows are deleted in a transaction that
checks again that they are removed, after marking their objects. (2) Only objects under a marker
are candidates; each is moved away under the write lock, and only if no row has its hash then. (3)
An ``add`` of the same content needs the same lock to commit: before the move it finds the object,
so the row stops the move; after it, it puts its own copy there. (4) An ``add`` whose own marker
was taken, because it takes longer than ``older_than_seconds``, finds that out under the lock and
writes again.
"""

from dataclasses import dataclass
from pathlib import Path

from brickwork.store import entries
from brickwork.store.catalog import Catalog
from brickwork.store.objects import Objects, content_of


@dataclass(frozen=True)
class Collected:
    """What a collection deleted, or would delete.

    Attributes:
        bricks: references of removed bricks whose objects are gone for good.
        strays: number of leftovers of interrupted processes.
        bytes: what the bricks took on the disk.
    """

    bricks: tuple[str, ...]
    strays: int
    bytes: int


def collect(catalog: Catalog, objects: Objects, moment: float, *, dry_run: bool) -> Collected:
    """Delete what was removed or left at ``moment`` or earlier; with ``dry_run`` only say what."""
    catalog.require_writable()
    with catalog.reading() as db:
        doomed = entries.removed_before(db, moment)
    strays = objects.markers(moment)
    sizes = {entry.hash: objects.size(entry.hash) for entry in doomed}
    if not dry_run:
        with catalog.writing() as db:
            marked = [objects.mark(entry.hash) for entry in doomed]
            doomed = [entry for entry in doomed if entries.forget(db, entry.hash, moment)]
        for marker in (*strays, *marked):
            _sweep(marker, catalog, objects)
    freed = sum(sizes[entry.hash] for entry in doomed)
    return Collected(tuple(entry.reference for entry in doomed), len(strays), freed)


def _sweep(marker: Path, catalog: Catalog, objects: Objects) -> None:
    with catalog.writing() as db:
        keep = entries.exists(db, content_of(marker))
        aside = objects.take_out(marker, keep=keep)
    objects.discard(aside)
