"""The tables of a catalog, and how those of an older version become them."""

import sqlite3

APPLICATION = 0x42524B57  # "BRKW"; by it a catalog is told from any other SQLite file

# Row i takes a catalog from version i to version i + 1; a row that has shipped never changes.
# A content hash covers the name, so one hash has one entry. ``names`` outlives the entries: a
# version that was given once never means another content.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE names (name TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID",
        """CREATE TABLE entries (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL REFERENCES names,
            version INTEGER NOT NULL,
            hash TEXT NOT NULL UNIQUE,
            bytes INTEGER NOT NULL,
            created TEXT NOT NULL,
            deleted REAL,
            spec TEXT NOT NULL,
            UNIQUE (name, version)
        )""",
        """CREATE TABLE tags (
            hash TEXT NOT NULL REFERENCES entries (hash) ON DELETE CASCADE,
            tag TEXT NOT NULL,
            PRIMARY KEY (hash, tag)
        ) WITHOUT ROWID""",
        """CREATE TABLE vectors (
            hash TEXT NOT NULL REFERENCES entries (hash) ON DELETE CASCADE,
            embedder TEXT NOT NULL,
            texts_hash TEXT NOT NULL,
            dim INTEGER NOT NULL,
            matrix BLOB NOT NULL,
            PRIMARY KEY (hash, embedder)
        )""",
        """CREATE VIRTUAL TABLE search USING fts5 (
            name, function, labels, exemplars, tags,
            tokenize = 'porter unicode61 remove_diacritics 2'
        )""",
    ),
)


def migrate(db: sqlite3.Connection) -> None:
    """Bring an empty catalog, or one of an older version, to this version, or leave it as it is."""
    if _version(db) >= len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _version(db)  # another process may have been quicker
        for statement in (s for step in MIGRATIONS[version:] for s in step):
            db.execute(statement)
        if version < len(MIGRATIONS):
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
