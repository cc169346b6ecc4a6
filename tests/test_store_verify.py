"""Verifying: every kind of damage is named, and adding again mends an object."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from brickwork.errors import StoreError
from brickwork.store.store import Store
from tests.store_children import small_brick


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        opened.add(small_brick("fr-en"), tags=["prod"])
        opened.add(small_brick("shell"))
        yield opened


def sql(store: Store, statement: str) -> None:
    with store._catalog.writing() as db:
        db.execute(statement)


def flip_last_byte(store: Store) -> None:
    file = store.path("fr-en") / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def move_object(store: Store) -> None:
    place = store._objects.path("f" * 64)
    place.parent.mkdir()
    store.path("fr-en").rename(place)


def swap_objects(store: Store) -> None:
    shutil.rmtree(store.path("fr-en"))
    shutil.copytree(store.path("shell"), store.path("fr-en"))


DAMAGES: dict[str, tuple[Callable[[Store], object], str]] = {
    "a bit flips": (flip_last_byte, "object of fr-en@1 .* is damaged: .* has changed since"),
    "an object is lost": (
        lambda store: shutil.rmtree(store.path("fr-en")),
        r"object of fr-en@1 .* is missing",
    ),
    "a file is lost": (
        lambda store: (store.path("fr-en") / "adapter_config.json").unlink(),
        "has no file 'adapter_config.json'",
    ),
    "a file is added": (
        lambda store: (store.path("fr-en") / "notes.txt").touch(),
        "fr-en@1: its object has other files: notes.txt",
    ),
    "an object of another brick": (swap_objects, "its content has the hash"),
    "an object without a row": (move_object, "ffff is in no row of the catalog; add it again"),
    "something among the objects": (
        lambda store: (store.folder / "objects" / "notes.txt").touch(),
        "notes.txt does not belong among the objects",
    ),
    "a row is lost": (
        lambda store: sql(store, "DELETE FROM entries WHERE name = 'fr-en'"),
        "is in no row of the catalog",
    ),
    "a row says something else": (
        lambda store: sql(
            store, """UPDATE entries SET spec = replace(spec, 'content 0', 'x') WHERE id = 1"""
        ),
        "fr-en@1: the catalog describes it otherwise than its object",
    ),
    "a row is no brick": (
        lambda store: sql(store, "UPDATE entries SET spec = '{}' WHERE id = 1"),
        r"row of fr-en@1 does not describe a brick",
    ),
    "an index row is lost": (
        lambda store: sql(store, "DELETE FROM search WHERE name = 'fr-en'"),
        "fr-en@1: the search index does not say what the catalog says",
    ),
    "an index row is wrong": (
        lambda store: sql(store, "UPDATE search SET tags = 'test' WHERE name = 'fr-en'"),
        "fr-en@1: the search index does not say",
    ),
    "an index row too many": (
        lambda store: sql(store, "INSERT INTO search (rowid, name) VALUES (99, 'x')"),
        "the search index has a row 99 of no listed brick",
    ),
    "the index is broken": (
        lambda store: sql(store, "DELETE FROM search_data WHERE id > 10"),
        "is damaged",
    ),
    "vectors are cut": (
        lambda store: (
            store.put_vectors("e", store.entry("fr-en").hash, np.ones((2, 3), np.float32), ""),
            sql(store, "UPDATE vectors SET matrix = x'0102'"),
        ),
        "the vectors of .* for e are damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_names_every_damage(damage: str, store: Store) -> None:
    assert store.verify() == []
    do, message = DAMAGES[damage]
    do(store)
    problems = store.verify()
    assert len(problems) >= 1
    with pytest.raises(StoreError, match=message):
        raise StoreError("\n".join(problems))


def test_counts_the_bricks_it_looked_at(store: Store) -> None:
    steps: list[float] = []
    store.verify(steps.append)
    assert sum(steps) == 2


@pytest.mark.parametrize("damage", ["a bit flips", "an object is lost", "a file is lost"])
def test_a_damaged_brick_is_never_handed_out_and_adding_mends_it(damage: str, store: Store) -> None:
    DAMAGES[damage][0](store)
    with pytest.raises(StoreError, match=r"is damaged: .*; add the brick again from a copy"):
        store.get("fr-en")
    with pytest.raises(StoreError, match="is damaged"):
        store.export(["fr-en"], store.folder.parent / "archive")
    assert store.add(small_brick("fr-en")).reference == "fr-en@1"
    assert store.get("fr-en") == small_brick("fr-en")
    assert store.verify() == []
