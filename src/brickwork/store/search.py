"""The text index: BM25 over what bricks say of themselves, by SQLite's FTS5."""

import re
import sqlite3

from brickwork.store import entries
from brickwork.store.entry import Entry

# A word in the name, the labels or the tags says more of a brick than one in an example.
_WEIGHTS = "8.0, 4.0, 6.0, 1.0, 6.0"
_COLUMNS = "name, function, labels, exemplars, tags"
_QUERY = f"""
    SELECT {entries.COLUMNS}, -bm25(search, {_WEIGHTS}) AS score
    FROM search JOIN entries ON entries.id = search.rowid
    WHERE search MATCH ?
    ORDER BY score DESC, entries.name
    LIMIT ?"""


def refresh(db: sqlite3.Connection, name: str) -> None:
    """Make the index hold the latest listed version of a name, and no other of its versions.

    Were the others in it, the words of a brick with many versions would count as common ones.
    """
    db.execute("DELETE FROM search WHERE rowid IN (SELECT id FROM entries WHERE name = ?)", (name,))
    entry = entries.latest(db, name)
    if entry is not None:
        db.execute(
            f"INSERT INTO search (rowid, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
            (_row_number(db, entry.hash), *_texts(entry)),
        )


def search(db: sqlite3.Connection, text: str, limit: int) -> list[tuple[Entry, float]]:
    """The entries whose texts share a word with ``text``, best first, with their scores."""
    words = words_of(text)
    if not words or limit < 1:
        return []
    rows = db.execute(_QUERY, (" OR ".join(f'"{word}"' for word in words), limit))
    return [(entries.from_row(row), row["score"]) for row in rows.fetchall()]


def words_of(text: str) -> list[str]:
    """The words of a text, each once; only letters and digits, so none is query syntax.

    >>> words_of('drop* NOT "fr-en"')
    ['drop', 'not', 'fr', 'en']
    """
    return list(dict.fromkeys(re.findall(r"[^\W_]+", text.lower())))


def problems(db: sqlite3.Connection, known: list[Entry]) -> list[str]:
    """Entries that the index misses or knows wrongly, and index rows that should not be there."""
    held = {row[0]: tuple(row)[1:] for row in db.execute(f"SELECT rowid, {_COLUMNS} FROM search")}
    latest = {entry.name: entry for entry in known if not entry.deleted}  # versions ascend
    wanted = {_row_number(db, entry.hash): entry for entry in latest.values()}
    found = [
        f"{entry.reference}: the search index does not say what the catalog says"
        for row, entry in wanted.items()
        if held.get(row) != _texts(entry)
    ]
    strays = sorted(held.keys() - wanted.keys())
    return found + [f"the search index has a row {row} of no listed brick" for row in strays]


def _row_number(db: sqlite3.Connection, content: str) -> int:
    row = db.execute("SELECT id FROM entries WHERE hash = ?", (content,)).fetchone()
    return int(row["id"])


def _texts(entry: Entry) -> tuple[str, ...]:
    function = entry.spec.function
    lists = (function.labels, function.exemplars, entry.tags)
    return (entry.name, function.text, *("\n".join(texts) for texts in lists))
