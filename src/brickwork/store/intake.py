"""How bricks come into a store: all of one call or none, whatever happens.

A brick is written beside the objects, synced and read back, under a folder in ``temp/`` that
carries its hash: its *marker*. Then one SQLite transaction, begun with the write lock of all
processes, renames it to its place and inserts its row; only after the commit does the marker go. A
process killed before the commit leaves a marker and perhaps an object without a row, one killed
after it only an empty marker; neither is damage, and a collection clears both. ``collection.py``
says why a collection takes nothing that anybody needs.
"""

from collections.abc import Callable, Iterable
from sqlite3 import Connection
from typing import TYPE_CHECKING

from brickwork.errors import StoreError
from brickwork.store import entries, search
from brickwork.store.catalog import Catalog
from brickwork.store.entry import Entry
from brickwork.store.objects import Objects, Staged, SweptError

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick

Tags = tuple[str, ...]
_ATTEMPTS = 20


def keep(
    catalog: Catalog, objects: Objects, bricks: Callable[[], Iterable[tuple["Brick", Tags]]]
) -> list[Entry]:
    """Keep the bricks with their tags, all or none; ``bricks`` is called again for each attempt.

    Raises:
        StoreError: if the store cannot be written, or collections took every attempt away.
    """
    catalog.require_writable()
    for _ in range(_ATTEMPTS):
        try:
            return _keep_once(catalog, objects, bricks())
        except SweptError:
            continue
    raise StoreError(
        f"the store {catalog.folder} was collected {_ATTEMPTS} times while this was being "
        "written; collect with a longer grace period."
    )


def _keep_once(
    catalog: Catalog, objects: Objects, bricks: Iterable[tuple["Brick", Tags]]
) -> list[Entry]:
    staged: list[Staged] = []
    try:
        for brick, tags in bricks:
            staged.append(objects.stage(brick, tags))
        with catalog.writing() as db:
            kept = [_insert(db, objects, item) for item in staged]
    except BaseException:
        for item in staged:
            objects.discard_unmoved(item)
        raise
    for item in staged:
        objects.discard(item.marker)
    return kept


def _insert(db: Connection, objects: Objects, item: Staged) -> Entry:
    objects.put(item)
    entries.insert(db, item.hash, item.spec, item.bytes)
    entries.set_tags(db, item.hash, add=item.tags)
    search.refresh(db, item.spec.name)
    return entries.find(db, f"sha256:{item.hash}")
