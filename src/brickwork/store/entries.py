"""The entries of a catalog as SQL; every function runs in its caller's transaction."""

import json
import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime

from brickwork.brick.spec import BrickSpec, parse_spec
from brickwork.errors import BrickFormatError, StoreError, UnknownNameError
from brickwork.store.entry import SHORTEST_PREFIX, Entry, Reference

COLUMNS = """entries.*, (
    SELECT json_group_array(tag) FROM (
        SELECT tag FROM tags WHERE tags.hash = entries.hash ORDER BY tag
    )) AS tags"""
_SELECT = f"SELECT {COLUMNS} FROM entries "
_FORM = "json_extract(spec, '$.form') = ?"
_TAG = "EXISTS (SELECT 1 FROM tags WHERE tags.hash = entries.hash AND tag = ?)"
_LABEL = "? IN (SELECT value FROM json_each(entries.spec, '$.function.labels'))"
_BASE_NAME = "json_extract(spec, '$.base.name') = ?"
_BASE = f"({_BASE_NAME} OR substr(json_extract(spec, '$.base.weights'), 1, length(?)) = ?)"
_PARENT = """? IN (
    SELECT replace(value, 'sha256:', '') FROM json_each(entries.spec, '$.lineage.parents'))"""


def from_row(row: sqlite3.Row) -> Entry:
    """The entry of a row with COLUMNS."""
    where = f"the catalog's row of {row['name']}@{row['version']}"
    try:
        spec = parse_spec(json.loads(row["spec"]), where)
        tags = tuple(json.loads(row["tags"]))
    except (BrickFormatError, ValueError) as error:
        raise StoreError(
            f"{error}; it is damaged or of a newer Brickwork: see brickwork store verify."
        ) from None
    return Entry(
        name=row["name"],
        version=row["version"],
        hash=row["hash"],
        form=spec.form,
        bytes=row["bytes"],
        created=row["created"],
        tags=tags,
        deleted=row["deleted"] is not None,
        spec=spec,
    )


def insert(db: sqlite3.Connection, content: str, spec: BrickSpec, size: int) -> None:
    """Give the content the next version of its name, or bring back the entry it has."""
    if exists(db, content):
        db.execute("UPDATE entries SET deleted = NULL WHERE hash = ?", (content,))
        return
    db.execute(
        "INSERT INTO names VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET last = last + 1",
        (spec.name,),
    )
    db.execute(
        "INSERT INTO entries (name, version, hash, bytes, created, spec) "
        "SELECT name, last, ?, ?, ?, ? FROM names WHERE name = ?",
        (
            content, size, datetime.now(UTC).isoformat(timespec="seconds"),
            json.dumps(spec.model_dump(mode="json")), spec.name,
        ),
    )  # fmt: skip


def exists(db: sqlite3.Connection, content: str) -> bool:
    """Whether a row, removed or not, is of this content hash."""
    return db.execute("SELECT 1 FROM entries WHERE hash = ?", (content,)).fetchone() is not None


def set_tags(
    db: sqlite3.Connection, content: str, *, add: Iterable[str] = (), drop: str = ""
) -> None:
    """Add tags, then take one away."""
    db.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", ((content, tag) for tag in add))
    db.execute("DELETE FROM tags WHERE hash = ? AND tag = ?", (content, drop))


def set_deleted(db: sqlite3.Connection, content: str, moment: float | None) -> None:
    """Remove the entry as of ``moment`` (the first one stands), or with None bring it back."""
    if moment is None:
        db.execute("UPDATE entries SET deleted = NULL WHERE hash = ?", (content,))
    else:
        db.execute(
            "UPDATE entries SET deleted = coalesce(deleted, ?) WHERE hash = ?", (moment, content)
        )


def removed_before(db: sqlite3.Connection, moment: float) -> list[Entry]:
    """The entries that were removed at ``moment`` or earlier."""
    rows = db.execute(f"{_SELECT} WHERE deleted <= ? ORDER BY name, version", (moment,))
    return [from_row(row) for row in rows]


def forget(db: sqlite3.Connection, content: str, moment: float) -> bool:
    """Delete the row, its tags and its vectors, if it is still removed since ``moment``."""
    done = db.execute("DELETE FROM entries WHERE hash = ? AND deleted <= ?", (content, moment))
    return done.rowcount > 0


def select(
    db: sqlite3.Connection,
    *,
    form: str | None = None,
    tag: str | None = None,
    label: str | None = None,
    base: str | None = None,
    deleted: bool = False,
) -> list[Entry]:
    """The entries that meet every condition, by name and version."""
    asked = (
        (form, _FORM, 1),
        (tag, _TAG, 1),
        (label, _LABEL, 1),
        (base, *((_BASE, 3) if base and len(base) >= SHORTEST_PREFIX else (_BASE_NAME, 1))),
    )
    conditions = [condition for value, condition, _ in asked if value is not None]
    values = [value for value, _, times in asked if value is not None for _ in range(times)]
    if not deleted:
        conditions.append("deleted IS NULL")
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    rows = db.execute(f"{_SELECT} {where} ORDER BY name, version", values)
    return [from_row(row) for row in rows]


def children(db: sqlite3.Connection, content: str) -> list[Entry]:
    """The entries that name this content among their parents, removed ones too."""
    rows = db.execute(f"{_SELECT} WHERE {_PARENT} ORDER BY name, version", (content,))
    return [from_row(row) for row in rows]


def readable(db: sqlite3.Connection) -> tuple[list[Entry], list[str]]:
    """All entries, removed ones too, and what is wrong with the rows that make none."""
    known, broken = [], []
    for row in db.execute(f"{_SELECT} ORDER BY name, version"):
        try:
            known.append(from_row(row))
        except StoreError as error:
            broken.append(str(error))
    return known, broken


def with_hash(db: sqlite3.Connection, content: str) -> Entry | None:
    """The entry of a whole content hash, None if there is none."""
    row = db.execute(f"{_SELECT} WHERE hash = ?", (content,)).fetchone()
    return None if row is None else from_row(row)


def latest(db: sqlite3.Connection, name: str) -> Entry | None:
    """The latest version of a name that is not removed, None if there is none."""
    rows = [row for row in _versions(db, name) if row["deleted"] is None]
    return from_row(rows[0]) if rows else None


def find(db: sqlite3.Connection, text: str, *, removed: bool = False) -> Entry:
    """The entry that a reference names.

    Args:
        db: the catalog.
        text: the reference.
        removed: take a bare name as its latest removed version instead of its latest listed one.

    Raises:
        UnknownNameError: if nothing is called so; it lists the nearest names.
        StoreError: if a hash is too short or fits several, or a bare name has no version left.
    """
    reference = Reference.parse(text)
    if reference is not None and reference.digits:
        return _by_digits(db, text, reference.digits)
    rows = [] if reference is None else _versions(db, reference.name)
    if reference is None or not rows:
        names = db.execute("SELECT DISTINCT name FROM entries WHERE deleted IS NULL")
        raise UnknownNameError("brick", text, (row["name"] for row in names))
    return from_row(_chosen(rows, reference, text, removed))


def _versions(db: sqlite3.Connection, name: str) -> list[sqlite3.Row]:
    return db.execute(f"{_SELECT} WHERE name = ? ORDER BY version DESC", (name,)).fetchall()


def _chosen(rows: list[sqlite3.Row], reference: Reference, text: str, removed: bool) -> sqlite3.Row:
    known = [f"{row['name']}@{row['version']}" for row in rows]
    if reference.version is not None:
        fitting = [row for row in rows if row["version"] == reference.version]
        if not fitting:
            raise UnknownNameError("brick", text, known)
        return fitting[0]
    fitting = [row for row in rows if (row["deleted"] is not None) == removed]
    if not fitting and removed:
        raise StoreError(f"no version of {text!r} is removed, so there is none to restore.")
    if not fitting:
        raise StoreError(
            f"every version of {text!r} is removed; name one exactly ({', '.join(known[:5])}), or "
            f"restore it: brickwork store restore {text}."
        )
    return fitting[0]


def _by_digits(db: sqlite3.Connection, text: str, digits: str) -> Entry:
    rows = db.execute(
        f"{_SELECT} WHERE hash >= ? AND hash < ? ORDER BY hash LIMIT 5", (digits, f"{digits}g")
    ).fetchall()
    if not rows:
        hashes = db.execute("SELECT hash FROM entries")
        raise UnknownNameError("brick", text, (f"sha256:{row['hash'][:12]}" for row in hashes))
    if len(rows) > 1:
        found = ", ".join(f"{row['name']}@{row['version']}" for row in rows)
        raise StoreError(f"{text!r} is the start of several hashes ({found}); give more digits.")
    return from_row(rows[0])
