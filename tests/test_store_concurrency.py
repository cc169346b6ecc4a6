"""Many processes and threads at one store: nobody loses anything, no version means two things."""

import threading
from pathlib import Path

import pytest

from brickwork.brick import folder as brick_folder
from brickwork.brick.brick import Brick
from brickwork.errors import StoreError
from brickwork.store import collection, intake
from brickwork.store.catalog import Catalog
from brickwork.store.objects import Objects
from brickwork.store.store import Store
from tests.store_children import context, race, said, small_brick


def test_two_processes_race_and_nothing_is_lost(tmp_path: Path) -> None:
    folder, logs = tmp_path / "store", [tmp_path / "log-1", tmp_path / "log-2"]
    children = [
        context().Process(target=race, args=(folder, log, seed)) for seed, log in enumerate(logs)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    with Store.open(folder, create=False) as store:
        assert store.verify() == []
        meanings: dict[str, set[str]] = {}
        for log in logs:
            for content, reference in said(log, "added"):
                assert store.get(reference).hash == content
            for content, reference in said(log, "added") + said(log, "shared"):
                meanings.setdefault(reference, set()).add(content)
        assert all(len(contents) == 1 for contents in meanings.values())
        assert [e.version for e in store.list() if e.name == "own-0"] == list(range(1, 13))


def test_threads_share_one_open_store(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for seed in range(4):
            store.add(small_brick(f"thread-{number}", seed))
            store.search("content")

    with Store.open(tmp_path / "store") as store:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.list()) == 12
        assert store.verify() == []


def test_an_add_whose_folder_is_collected_meanwhile_writes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = brick_folder.write_brick, []

    def write_slowly(brick: Brick, folder: Path) -> None:
        write(brick, folder)
        calls.append(folder)
        if len(calls) < 3:
            other.collect(0)

    monkeypatch.setattr(brick_folder, "write_brick", write_slowly)
    with Store.open(tmp_path) as store, Store.open(tmp_path) as other:
        entry = store.add(small_brick("fr-en"))
        assert len(calls) == 3
        assert store.get("fr-en").hash == entry.hash
        assert store.verify() == []


def test_an_add_that_is_always_collected_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = brick_folder.write_brick

    def write_slowly(brick: Brick, folder: Path) -> None:
        write(brick, folder)
        other.collect(0)

    monkeypatch.setattr(brick_folder, "write_brick", write_slowly)
    with Store.open(tmp_path) as store, Store.open(tmp_path) as other:
        with pytest.raises(StoreError, match="collected 20 times while this was being written"):
            store.add(small_brick("fr-en"))
        assert store.list() == []
        assert store.verify() == []


@pytest.mark.parametrize("after", [False, True], ids=["before the move", "after the move"])
def test_an_add_of_what_is_just_collected_is_kept(
    after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = collection._sweep

    def sweep_and_add(marker: Path, catalog: Catalog, objects: Objects) -> None:
        if not after:
            other.add(small_brick("fr-en"))
        sweep(marker, catalog, objects)
        if after:
            other.add(small_brick("fr-en"))

    with Store.open(tmp_path) as store, Store.open(tmp_path) as other:
        content = store.add(small_brick("fr-en")).hash
        store.remove("fr-en")
        monkeypatch.setattr(collection, "_sweep", sweep_and_add)
        assert store.collect(0).bricks == ("fr-en@1",)
        assert store.entry("fr-en").reference == "fr-en@2"
        assert store.get("fr-en").hash == content
        assert store.verify() == []


def test_what_is_restored_while_it_is_collected_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path) as store, Store.open(tmp_path) as other:
        store.add(small_brick("fr-en"))
        store.remove("fr-en")
        doomed = collection.entries.removed_before

        def and_restore(*arguments: object) -> object:
            found = doomed(*arguments)  # type: ignore[arg-type]
            other.restore("fr-en")
            return found

        monkeypatch.setattr(collection.entries, "removed_before", and_restore)
        assert store.collect(0).bricks == ()
        assert store.get("fr-en").spec.name == "fr-en"
        assert store.verify() == []


def test_objects_are_marked_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, locked = Objects.mark, []

    def watch(objects: Objects, content: str) -> Path:
        locked.append(store._catalog._connection.in_transaction)
        return mark(objects, content)

    with Store.open(tmp_path) as store:
        store.add(small_brick("fr-en"))
        store.remove("fr-en")
        monkeypatch.setattr(Objects, "mark", watch)
        store.collect(0)
    assert locked == [True]  # else another collection could take the marker before the row goes


def test_an_add_that_fails_at_its_row_leaves_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with Store.open(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(intake.entries, "insert", fail)
            with pytest.raises(KeyboardInterrupt):
                store.add(small_brick("fr-en"))
        assert store.verify() == store.list() == []
        assert store.collect(0).strays == 1
        assert list((tmp_path / "objects").glob("??/*")) == []
        assert store.add(small_brick("fr-en")).reference == "fr-en@1"
        assert store.verify() == []
