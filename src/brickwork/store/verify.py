"""Is a store whole: every row has its object, every object its row, and all say the same.

Bricks are read without a lock, so a long check stops nobody; what looks wrong is looked at again
under the lock, so that nobody's work in progress is reported.
"""

import sqlite3
from collections.abc import Callable

from brickwork.errors import StoreError
from brickwork.store import entries, search, vectors
from brickwork.store.catalog import Catalog
from brickwork.store.entry import Entry
from brickwork.store.objects import Objects


def problems(catalog: Catalog, objects: Objects, advance: Callable[[float], object]) -> list[str]:
    """Everything that is wrong, one line each; what an interrupted process left is not."""
    try:
        with catalog.settled() as db:
            found = _catalog_problems(db, writable=catalog.writable)
            known, broken = entries.readable(db)
            found += broken + search.problems(db, known) + vectors.problems(db)
    except StoreError as error:
        return [str(error)]
    for entry in known:
        found += _object_problems(entry, catalog, objects)
        advance(1)
    for content in objects.hashes():
        found += _orphan_problems(content, catalog, objects)
    strangers = objects.strangers()
    return found + [f"{path} does not belong among the objects; move it away" for path in strangers]


def _catalog_problems(db: sqlite3.Connection, *, writable: bool) -> list[str]:
    if writable:  # the check itself counts as a change
        db.execute("INSERT INTO search (search) VALUES ('integrity-check')")
    lines = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
    rows = db.execute("PRAGMA foreign_key_check").fetchall()
    lines += [f"a row of {row['table']} belongs to no row of {row['parent']}" for row in rows]
    return [f"the catalog is damaged: {line}" for line in lines if line != "ok"]


def _object_problems(entry: Entry, catalog: Catalog, objects: Objects) -> list[str]:
    if not objects.problems(entry):
        return []
    with catalog.settled() as db:
        return objects.problems(entry) if entries.exists(db, entry.hash) else []


def _orphan_problems(content: str, catalog: Catalog, objects: Objects) -> list[str]:
    with catalog.reading() as db:
        if entries.exists(db, content):
            return []
    with catalog.settled() as db:
        place = objects.path(content)
        if entries.exists(db, content) or objects.is_marked(content) or not place.exists():
            return []
    return [f"{place} is in no row of the catalog; add it again, or delete the folder"]
