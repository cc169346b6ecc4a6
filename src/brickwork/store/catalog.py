"""The catalog: one SQLite file in WAL mode, and how it is opened, read and written."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brickwork.errors import StoreError
from brickwork.store.schema import APPLICATION, MIGRATIONS, migrate

FILE = "catalog.sqlite"
FOLDERS = ("objects", "temp")

_TROUBLE = {
    sqlite3.SQLITE_BUSY: "is locked: another process has been writing to it for too long; wait "
    "until it is done, or end it, and try again",
    sqlite3.SQLITE_READONLY: "cannot be written; ask for write permission, or copy it",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; check that its files can be read",
    sqlite3.SQLITE_FULL: "has no room left on its disk; free some and try again",
    sqlite3.SQLITE_IOERR: "cannot be read or written; check its disk",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore it from a copy, or add the folders under its "
    "objects/ to a new store",
    sqlite3.SQLITE_NOTADB: "is not a store, or its catalog is damaged; choose another folder, or "
    "add the folders under its objects/ to a new store",
}


class Catalog:
    """An open catalog. Threads share it one at a time, processes by SQLite's own locks."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, *, writable: bool) -> None:
        self.folder = folder
        self.writable = writable
        self._connection = connection
        self._turn = threading.RLock()

    @classmethod
    def open(cls, folder: Path, *, create: bool, patience: float) -> "Catalog":
        """Open the catalog of a store, made or brought to this version where that is allowed.

        Args:
            folder: the store's folder.
            create: make a new store where there is none.
            patience: seconds to wait for another process that is writing.
        """
        _require_store(folder, create)
        file = folder / FILE
        writable = _can_write(folder) and (not file.exists() or _can_write(file))
        mode = ("rwc" if create else "rw") if writable else _reading_mode(file)
        with _explained(folder):
            connection = sqlite3.connect(
                f"{file.absolute().as_uri()}?mode={mode}",
                uri=True, timeout=patience, isolation_level=None, check_same_thread=False,
            )  # fmt: skip
            try:
                _prepare(connection, folder, writable=writable, patience=patience)
            except BaseException:
                connection.close()
                raise
        return cls(folder, connection, writable=writable)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for statements that change nothing."""
        with self._turn, _explained(self.folder):
            yield self._connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, all of it or nothing, that no other process writes beside."""
        self.require_writable()
        with self._turn, _explained(self.folder):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def settled(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection while no other process writes, as far as this one may tell it to."""
        with self.writing() if self.writable else self.reading() as db:
            yield db

    def require_writable(self) -> None:
        """Refuse before anything is done if this store can only be read."""
        if not self.writable:
            raise StoreError(
                f"the store {self.folder} can only be read here; ask for write permission, or "
                "copy it to a folder of your own."
            )

    def close(self) -> None:
        """Close the connection; what was committed stays."""
        with self._turn:
            self._connection.close()


def _require_store(folder: Path, create: bool) -> None:
    """Make the folder of a new store, or refuse a folder that is not one."""
    if (folder / FILE).is_file():
        return
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is not a store but a file; name a folder.")
    if not create:
        raise StoreError(
            f"there is no store at {folder}; check the path, or make one by adding a brick: "
            "brickwork store add FOLDER."
        )
    strangers = [p.name for p in folder.iterdir()] if folder.exists() else []
    if any(name not in FOLDERS and not name.startswith(FILE) for name in strangers):
        raise StoreError(
            f"{folder} is not a store, and it is not empty ({', '.join(sorted(strangers)[:3])}); "
            "choose another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"no store can be made at {folder}: {error}.") from None


def _can_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _reading_mode(file: Path) -> str:
    """How to open a catalog in a folder where SQLite can make no file beside it.

    A log beside the catalog means that somebody has it open for writing, and must be read too.
    """
    return "ro" if file.with_name(f"{file.name}-wal").exists() else "ro&immutable=1"


def _prepare(db: sqlite3.Connection, folder: Path, *, writable: bool, patience: float) -> None:
    db.row_factory = sqlite3.Row
    version, application = (
        db.execute(f"PRAGMA {field}").fetchone()[0] for field in ("user_version", "application_id")
    )
    empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION and not (empty and writable and application == 0):
        raise StoreError(f"{folder} is not a store: its {FILE} was not made by Brickwork.")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the store {folder} has version {version}, this Brickwork knows versions up to "
            f"{len(MIGRATIONS)}; use a newer Brickwork."
        )
    if not writable and version < len(MIGRATIONS):
        raise StoreError(
            f"the store {folder} has version {version} and must be brought to "
            f"{len(MIGRATIONS)}, but it can only be read here; open it once with write permission."
        )
    if writable:
        _use_wal(db, folder, patience)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        migrate(db)


def _use_wal(db: sqlite3.Connection, folder: Path, patience: float) -> None:
    """Switch to WAL; here SQLite answers "busy" at once when two processes make one store."""
    end = time.monotonic() + patience
    while True:
        try:
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.02)
            continue
        if mode != "wal":
            raise StoreError(f"{folder} is on a disk without file locks; choose a local disk.")
        return


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Say what SQLite's error means for the store; what only a bug can cause passes through."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in _TROUBLE:
            raise
        raise StoreError(f"the store {folder} {_TROUBLE[code]} ({error}).") from error
