"""Searching: any text is a query, none is syntax, and the better brick comes first."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brickwork.brick.spec import Function
from brickwork.store.search import words_of
from brickwork.store.store import Store
from tests.store_children import small_brick

FUNCTIONS = {
    "fr-en": Function(
        text="Translates French sentences into English",
        labels=("Translation",),
        exemplars=("Translate: le chat dort",),
    ),
    "shell": Function(
        text="Writes shell commands", labels=("Coding",), exemplars=("list the files here",)
    ),
    "sums": Function(text="Adds numbers", labels=("Math",), exemplars=("what is 2 + 2?",)),
    "zh-en": Function(text="\N{CJK UNIFIED IDEOGRAPH-7FFB} na\u00efve caf\u00e9"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("search")) as opened:
        for name, function in FUNCTIONS.items():
            opened.add(small_brick(name, function=function), tags=[f"tag-{name}"])
        yield opened


def names(store: Store, text: str, limit: int = 10) -> list[str]:
    return [entry.name for entry, _ in store.search(text, limit)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("translate this sentence", ["fr-en"]),
        ("TRANSLATION", ["fr-en"]),
        ("which command lists files", ["shell"]),
        ("naive cafe", ["zh-en"]),
        ("tag-sums", ["sums"]),
        ("nothing-like-it", []),
        ("", []),
        ("!?*", []),
    ],
)
def test_finds_by_words_of_any_form(text: str, found: list[str], store: Store) -> None:
    assert names(store, text)[:1] == found


@pytest.mark.parametrize(
    "text",
    [
        'french" OR "x', "french AND", "NOT french", "french NEAR(", "name:french", "-french",
        "french*", "^french", "(french", "{name} : french", "french'; DROP TABLE entries; --",
        "french\x00", '"', "french \"\"",
    ],
)  # fmt: skip
def test_query_syntax_in_a_text_is_only_text(text: str, store: Store) -> None:
    assert names(store, text)[:1] == (["fr-en"] if "french" in text else [])


@given(text=st.text())
def test_any_text_can_be_searched(text: str, store: Store) -> None:
    for entry, score in store.search(text):
        assert score > 0
        assert entry.name in FUNCTIONS


@given(st.text())
def test_words_hold_no_syntax(text: str) -> None:
    words = words_of(text)
    assert len(set(words)) == len(words)
    assert all(word.isalnum() for word in words)


def test_scores_fall_and_the_limit_holds(store: Store) -> None:
    text = "translate french files numbers commands"
    hits = store.search(text)
    scores = [score for _, score in hits]
    assert scores == sorted(scores, reverse=True)
    assert len(hits) == 3
    assert store.search(text, limit=2) == hits[:2]
    assert store.search(text, limit=0) == []


def test_a_whole_book_can_be_searched(store: Store) -> None:
    assert names(store, " ".join(f"word{n}" for n in range(20_000)) + " french") == ["fr-en"]


def test_many_versions_of_a_brick_do_not_make_its_words_common(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        for name, function in FUNCTIONS.items():
            store.add(small_brick(name, function=function))
        before = store.search("french commands")
        for seed in range(1, 6):
            store.add(small_brick("fr-en", seed, function=FUNCTIONS["fr-en"]))
        after = store.search("french commands")
    assert [(e.name, score) for e, score in after] == [(e.name, score) for e, score in before]
    assert {e.reference for e, _ in after} == {"fr-en@6", "shell@1"}
