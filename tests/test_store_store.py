"""The store's words: add, name, list, tag, remove, restore, and the relatives of a brick."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from brickwork.brick.brick import Brick
from brickwork.brick.folder import read_brick
from brickwork.brick.spec import Function, Lineage
from brickwork.errors import BrickFormatError, StoreError, UnknownNameError
from brickwork.store.store import Store, default_path
from tests.bricks import FORMS, paper_base, random_brick
from tests.store_children import small_brick


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def test_adding_gives_versions_by_name(store: Store) -> None:
    references = [
        store.add(small_brick(name, seed)).reference
        for name, seed in [("fr-en", 0), ("fr-en", 1), ("shell", 0), ("fr-en", 2)]
    ]
    assert references == ["fr-en@1", "fr-en@2", "shell@1", "fr-en@3"]
    assert [e.reference for e in store.list()] == ["fr-en@1", "fr-en@2", "fr-en@3", "shell@1"]


def test_the_same_content_is_the_same_entry(store: Store) -> None:
    first = store.add(small_brick("fr-en"), tags=["b"])
    store.add(small_brick("fr-en", 1))
    again = store.add(small_brick("fr-en"), tags=["a"])
    assert again.reference == first.reference == "fr-en@1"
    assert again.tags == ("a", "b")
    assert len(store.list()) == 2


@pytest.mark.parametrize("name", FORMS)
def test_every_form_comes_back_as_it_was(name: str, store: Store) -> None:
    brick = random_brick(name, paper_base(), torch.Generator().manual_seed(0))
    entry = store.add(brick)
    assert store.get(entry.reference) == brick
    assert read_brick(store.path(entry.reference)) == brick
    assert (entry.form, entry.bytes, entry.spec) == (name, brick.bytes, brick.spec)


def test_a_lora_is_kept_as_a_peft_adapter_folder(store: Store) -> None:
    store.add(small_brick("fr-en"))
    names = sorted(path.name for path in store.path("fr-en").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "brick.json"]


def test_a_reference_is_a_name_a_version_or_a_hash(store: Store) -> None:
    one, two = store.add(small_brick("fr-en")), store.add(small_brick("fr-en", 1))
    assert store.entry("fr-en") == two
    assert store.entry("fr-en@1") == one
    assert store.entry(f"sha256:{one.hash}") == one
    assert store.entry(f"sha256:{one.hash[:8]}") == one


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("fr-em", "no brick is called 'fr-em'; did you mean 'fr-en'"),
        ("fr-en@3", "no brick is called 'fr-en@3'; did you mean 'fr-en@1'"),
        ("fr-en@0", "did you mean 'fr-en'"),
        ("Fr En", "no brick is called 'Fr En'"),
        ("", "no brick is called ''"),
        ("sha256:00000000", "no brick is called 'sha256:00000000'"),
        ("sha256:1234567", "gives 7 digits of a hash; give at least 8"),
        ("../fr-en", "no brick is called"),
    ],
)
def test_refuses_what_names_no_brick(reference: str, message: str, store: Store) -> None:
    store.add(small_brick("fr-en"))
    with pytest.raises((UnknownNameError, StoreError), match=message):
        store.entry(reference)


def test_refuses_the_start_of_two_hashes(store: Store) -> None:
    for hash_ in ("12345678" + "0" * 56, "12345678" + "f" * 56):
        with store._catalog.writing() as db:
            spec = small_brick(f"brick-{hash_[-1]}").spec
            db.execute("INSERT INTO names VALUES (?, 1)", (spec.name,))
            db.execute(
                "INSERT INTO entries (name, version, hash, bytes, created, spec) "
                "VALUES (?, 1, ?, 1, '', ?)",
                (spec.name, hash_, spec.model_dump_json()),
            )
    with pytest.raises(StoreError, match=r"several hashes \(brick-0@1, brick-f@1\)"):
        store.entry("sha256:12345678")
    assert store.entry("sha256:123456780").name == "brick-0"


def test_an_ill_formed_brick_is_refused_and_leaves_nothing(store: Store) -> None:
    brick = small_brick("fr-en")
    with pytest.raises(BrickFormatError, match="a lora needs A \\+ B"):
        store.add(Brick(brick.spec, dict(list(brick.tensors.items())[:1])))
    assert list((store.folder / "temp").iterdir()) == []
    assert store.list() == []


def test_a_removed_brick_is_out_of_sight_but_not_gone(store: Store) -> None:
    for seed in (0, 1):
        store.add(small_brick("fr-en", seed))
    removed = store.remove("fr-en")
    assert (removed.reference, removed.deleted) == ("fr-en@2", True)
    assert store.entry("fr-en").reference == "fr-en@1"
    assert [e.reference for e in store.list()] == ["fr-en@1"]
    assert [e.deleted for e in store.list(deleted=True)] == [False, True]
    assert store.get("fr-en@2").hash == removed.hash
    assert store.search("content")[0][0].reference == "fr-en@1"


def test_restoring_undoes_removing(store: Store) -> None:
    before = [store.add(small_brick("fr-en", seed)) for seed in (0, 1)]
    store.remove("fr-en")
    assert store.restore("fr-en") == before[1]
    assert store.list() == before
    store.remove("fr-en@1")
    assert store.add(small_brick("fr-en", 0)) == before[0]


def test_a_name_without_versions_left_says_how_to_restore(store: Store) -> None:
    store.add(small_brick("fr-en"))
    with pytest.raises(StoreError, match="no version of 'fr-en' is removed"):
        store.restore("fr-en")
    store.remove("fr-en")
    with pytest.raises(StoreError, match=r"is removed; name one exactly \(fr-en@1\), or restore"):
        store.get("fr-en")


def test_a_collected_version_is_never_given_again(store: Store) -> None:
    store.add(small_brick("fr-en", 0))
    store.remove("fr-en")
    assert store.collect(3600).bricks == ()
    preview = store.collect(0, dry_run=True)
    assert preview.bricks == ("fr-en@1",)
    assert store.get("fr-en@1").spec.name == "fr-en"
    assert store.collect(0) == preview
    assert preview.bytes > 0
    with pytest.raises(UnknownNameError):
        store.entry("fr-en@1")
    assert not any((store.folder / "objects").glob("??/*"))
    assert store.add(small_brick("fr-en", 1)).reference == "fr-en@2"


def test_young_leftovers_wait_and_old_ones_go(store: Store) -> None:
    stray = store._objects.mark(small_brick("fr-en").hash)
    assert store.collect(3600).strays == 0
    os.utime(stray, (0, 0))
    assert store.collect(3600).strays == 1
    assert not stray.exists()


def test_lists_by_form_tag_label_and_base(store: Store) -> None:
    label = Function(labels=("Translation", "Writing"))
    store.add(small_brick("fr-en", function=label), tags=["prod"])
    store.add(small_brick("shell"))
    weights = "fedcba98" * 8
    other = paper_base(weights=weights).fingerprint.model_copy(update={"name": "other/base"})
    store.add(_with_base(other))

    def names(**conditions: str) -> list[str]:
        return [entry.name for entry in store.list(**conditions)]  # type: ignore[arg-type]

    assert names(form="lora") == ["fr-en", "other", "shell"]
    assert names(form="ia3") == []
    assert names(tag="prod") == ["fr-en"]
    assert names(label="Writing") == ["fr-en"]
    assert names(base="other/base") == names(base=weights) == names(base=weights[:8]) == ["other"]
    assert names(base=weights[:7]) == []
    assert names(base="paper/base", tag="prod") == ["fr-en"]
    assert names(label="%") == names(base="________") == []


def _with_base(fingerprint: object) -> Brick:
    brick = small_brick("other")
    return Brick(brick.spec.model_copy(update={"base": fingerprint}), brick.tensors)


def test_tags_change_no_hash_and_are_found(store: Store) -> None:
    entry = store.add(small_brick("fr-en"))
    store.tag("fr-en", "golden")
    assert store.tag("fr-en@1", "golden").tags == ("golden",)
    assert store.entry("fr-en").hash == entry.hash
    assert [e.reference for e, _ in store.search("golden")] == ["fr-en@1"]
    assert store.untag("fr-en", "golden").tags == ()
    assert store.search("golden") == []
    assert store.untag("fr-en", "never-there").tags == ()


@pytest.mark.parametrize("tag", ["", "a b", "a,b", "x" * 81, "line\n", "\x1b[31m"])
def test_refuses_what_cannot_be_a_tag(tag: str, store: Store) -> None:
    store.add(small_brick("fr-en"))
    with pytest.raises(StoreError, match="cannot be a tag; use 1 to 80 characters"):
        store.tag("fr-en", tag)
    with pytest.raises(StoreError, match="cannot be a tag"):
        store.add(small_brick("shell"), tags=["good", tag])
    assert len(store.list()) == 1


def test_lineage_finds_ancestors_children_and_what_is_missing(store: Store) -> None:
    def child(name: str, *parents: str) -> str:
        return store.add(small_brick(name, lineage=Lineage(parents=parents))).hash

    lost = "0" * 64
    root = child("root", lost)
    left, right = child("left", root), child("right", f"sha256:{root}")
    child("leaf", left, right)
    store.remove("left")
    family = store.lineage("leaf")
    assert [e.name for e in family.ancestors] == ["left", "right", "root"]
    assert family.missing == (lost,)
    assert family.children == ()
    assert [e.name for e in store.lineage("root").children] == ["left", "right"]


def test_the_default_path_follows_brickwork_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRICKWORK_HOME", str(tmp_path))
    assert default_path() == tmp_path / "store"
    monkeypatch.delenv("BRICKWORK_HOME")
    assert default_path().parts[-2:] == ("brickwork", "store")


NAMES, SEEDS = st.sampled_from(["one", "two"]), st.integers(0, 2)
CONTENTS = {(name, seed): small_brick(name, seed) for name in ("one", "two") for seed in range(3)}


class StoreAsTable(RuleBasedStateMachine):
    """The store against the simplest thing that could be right: a table in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.store = Store.open(self.folder.name)
        self.last = {"one": 0, "two": 0}
        self.rows: dict[str, list[object]] = {}  # hash: name, version, tags, removed

    @rule(name=NAMES, seed=SEEDS, tags=st.sets(st.sampled_from("ab")))
    def add(self, name: str, seed: int, tags: set[str]) -> None:
        content = self.store.add(CONTENTS[name, seed], tags=tags).hash
        if content in self.rows:
            self.rows[content][2] |= tags  # type: ignore[operator]
            self.rows[content][3] = False
        else:
            self.last[name] += 1
            self.rows[content] = [name, self.last[name], set(tags), False]

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), keep=st.booleans())
    def remove_or_restore(self, data: st.DataObject, keep: bool) -> None:
        content = data.draw(st.sampled_from(sorted(self.rows)))
        (self.store.restore if keep else self.store.remove)(f"sha256:{content}")
        self.rows[content][3] = not keep

    @rule()
    def collect(self) -> None:
        self.store.collect(0)
        self.rows = {content: row for content, row in self.rows.items() if not row[3]}

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder.name, create=False)

    @invariant()
    def says_the_same(self) -> None:
        found = {
            e.hash: [e.name, e.version, set(e.tags), e.deleted]
            for e in self.store.list(deleted=True)
        }
        assert found == self.rows
        listed = [row for row in self.rows.values() if not row[3]]
        latest = {row[0]: row[1] for row in sorted(listed, key=lambda row: row[1])}
        hits = self.store.search("one two")
        assert {(e.name, e.version) for e, _ in hits} == set(latest.items())

    def teardown(self) -> None:
        assert self.store.verify() == []
        self.store.close()
        self.folder.cleanup()


TestStoreAsTable = StoreAsTable.TestCase
TestStoreAsTable.settings = settings(max_examples=6, stateful_step_count=12)


def test_listing_and_searching_load_no_torch(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.add(small_brick("fr-en"))
    program = f"""
import sys
from brickwork.store.store import Store
with Store.open({str(tmp_path)!r}) as store:
    assert store.list() and store.search("fr") and store.lineage("fr-en") and store.path("fr-en")
    store.tag("fr-en", "seen")
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
