"""Opening a store: new, foreign, newer, locked, damaged, read-only, and two at once."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brickwork.errors import StoreError
from brickwork.store import schema
from brickwork.store.catalog import FILE
from brickwork.store.store import Store
from tests.store_children import context, race, small_brick

NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "store") as store:
        store.add(small_brick("fr-en"))
    return tmp_path / "store"


def test_a_store_is_made_where_none_is_only_if_asked(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*/deep/store; check the path"):
        Store.open(tmp_path / "deep" / "store", create=False)
    assert not (tmp_path / "deep").exists()
    with Store.open(tmp_path / "deep" / "store") as store:
        assert store.list() == []
        assert store.verify() == []


def test_an_empty_or_half_made_store_is_finished(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    (tmp_path / "temp").mkdir()
    with Store.open(tmp_path) as store:
        store.add(small_brick("fr-en"))
        assert store.verify() == []


def test_refuses_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StoreError, match=r"is not a store, and it is not empty \(thesis.txt\)"):
        Store.open(tmp_path)
    with pytest.raises(StoreError, match="is not a store but a file"):
        Store.open(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_refuses_somebody_elses_database(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(StoreError, match=r"its catalog\.sqlite was not made by Brickwork"):
        Store.open(tmp_path)


def test_refuses_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="is not a store, or its catalog is damaged"):
        Store.open(tmp_path)


def test_refuses_a_damaged_catalog(folder: Path) -> None:
    content = bytearray((folder / FILE).read_bytes())
    content[2048:] = b"\xff" * (len(content) - 2048)
    (folder / FILE).write_bytes(content)
    with pytest.raises(StoreError, match="is damaged; restore it from a copy"):
        Store.open(folder).list()


def test_refuses_a_newer_version(folder: Path) -> None:
    connection = sqlite3.connect(folder / FILE)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(StoreError, match=r"has version 7, this Brickwork knows versions up to 1"):
        Store.open(folder)


def test_an_older_version_is_brought_to_this_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (*schema.MIGRATIONS, ("ALTER TABLE entries ADD COLUMN note TEXT",))
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    monkeypatch.setattr("brickwork.store.catalog.MIGRATIONS", steps)
    with Store.open(folder) as store:
        assert store.entry("fr-en").version == 1
        assert store.verify() == []
    connection = sqlite3.connect(folder / FILE)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("SELECT note FROM entries").fetchone() == (None,)
    connection.close()


def test_a_migration_that_fails_leaves_the_old_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (*schema.MIGRATIONS, ("CREATE TABLE extra (x)", "NO SQL AT ALL"))
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    with pytest.raises(sqlite3.OperationalError, match="syntax error"):
        Store.open(folder)
    monkeypatch.undo()
    with Store.open(folder) as store:
        assert store.verify() == []


def test_a_store_that_stays_locked_says_so(folder: Path) -> None:
    with Store.open(folder) as one, Store.open(folder, patience=0.05) as other:
        with one._catalog.writing():
            with pytest.raises(StoreError, match="is locked: another process has been writing"):
                other.tag("fr-en", "late")
            assert other.list()[0].tags == ()  # reading goes on
        assert other.tag("fr-en", "late").tags == ("late",)


def test_an_error_in_a_transaction_undoes_it(folder: Path) -> None:
    def fail() -> None:
        with store._catalog.writing() as db:
            db.execute("UPDATE entries SET bytes = 0")
            raise KeyboardInterrupt

    with Store.open(folder) as store:
        with pytest.raises(KeyboardInterrupt):
            fail()
        assert store.list()[0].bytes > 0


def test_two_processes_may_make_one_store_at_the_same_time(tmp_path: Path) -> None:
    children = [
        context().Process(target=race, args=(tmp_path / "store", tmp_path / "log", seed, 1))
        for seed in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]


@pytest.fixture
def unwritable(folder: Path) -> Iterator[Path]:
    """A store that this process may read but not write; root gives up its rights for that."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "store"
        shutil.copytree(folder, copy)
        paths = [Path(place), copy, *copy.rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        root = os.geteuid() == 0
        if root:
            os.seteuid(NOBODY)
        try:
            yield copy
        finally:
            if root:
                os.seteuid(0)
            for path in paths:
                path.chmod(0o755)


def test_a_store_without_write_permission_can_be_read(unwritable: Path) -> None:
    before = sorted(unwritable.rglob("*"))
    with Store.open(unwritable) as store:
        assert store.get("fr-en").spec.name == "fr-en"
        assert store.search("content")[0][0].reference == "fr-en@1"
        assert store.verify() == []
        for change in (
            lambda: store.add(small_brick("new")),
            lambda: store.tag("fr-en", "x"),
            lambda: store.remove("fr-en"),
            lambda: store.collect(0),
        ):
            with pytest.raises(StoreError, match="can only be read here; ask for write permission"):
                change()
    assert sorted(unwritable.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is owner and stranger in one process")
def test_a_reader_sees_what_the_owner_just_wrote() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        with Store.open(Path(place) / "store") as owner:
            owner.add(small_brick("fr-en"))
            assert as_nobody(lambda: names_in(Path(place) / "store")) == ["fr-en"]


def names_in(folder: Path) -> list[str]:
    with Store.open(folder) as store:
        return [entry.name for entry in store.list()]


def as_nobody(work: Callable[[], list[str]]) -> list[str]:
    os.seteuid(NOBODY)
    try:
        return work()
    finally:
        os.seteuid(0)


def test_a_place_that_cannot_be_written_is_refused(unwritable: Path) -> None:
    with pytest.raises(StoreError, match="no store can be made at"):
        Store.open(unwritable.parent / "another")
