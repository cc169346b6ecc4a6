"""Where a brick comes from and what came from it, as far as a store knows."""

from dataclasses import dataclass
from sqlite3 import Connection

from brickwork.store import entries
from brickwork.store.entry import Entry


@dataclass(frozen=True)
class Family:
    """The relatives of a brick.

    Attributes:
        entry: the brick itself.
        ancestors: its parents, then theirs, each once; removed ones too.
        children: the bricks that name it as a parent.
        missing: hashes of parents that this store does not have.
    """

    entry: Entry
    ancestors: tuple[Entry, ...]
    children: tuple[Entry, ...]
    missing: tuple[str, ...]


def family(db: Connection, entry: Entry) -> Family:
    """The relatives of an entry."""
    found: dict[str, Entry | None] = {}
    waiting = _parents(entry)
    for content in waiting:  # grows while it is read
        if content not in found:
            found[content] = parent = entries.with_hash(db, content)
            waiting += _parents(parent) if parent else []
    return Family(
        entry,
        tuple(parent for parent in found.values() if parent),
        tuple(entries.children(db, entry.hash)),
        tuple(content for content, parent in found.items() if not parent),
    )


def _parents(entry: Entry) -> list[str]:
    return [parent.removeprefix("sha256:") for parent in entry.spec.lineage.parents]
