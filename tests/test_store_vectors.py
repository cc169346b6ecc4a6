"""Kept embeddings: they come back to the bit, and go with their brick."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from brickwork.errors import StoreError, UnknownNameError
from brickwork.store.store import Store
from tests.store_children import small_brick

MATRIX = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        opened.add(small_brick("fr-en"))
        yield opened


def test_vectors_come_back_to_the_bit(store: Store) -> None:
    content = store.entry("fr-en").hash
    store.put_vectors("tfidf-1", content, np.zeros((1, 4), dtype=np.float32), "texts-0")
    store.put_vectors("tfidf-1", content, MATRIX, "texts-1")
    store.put_vectors("minilm-1", content, MATRIX[:, :2].astype(np.float64), "texts-1")
    found = store.vectors("tfidf-1")
    assert list(found) == [content]
    assert found[content].dtype == np.float32
    assert np.array_equal(found[content], MATRIX)
    assert np.array_equal(store.vectors("minilm-1")[content], MATRIX[:, :2])
    assert store.texts_hashes("tfidf-1") == {content: "texts-1"}
    assert store.vectors("unknown") == {}
    assert store.verify() == []


def test_a_brick_without_texts_has_an_empty_matrix(store: Store) -> None:
    content = store.entry("fr-en").hash
    store.put_vectors("tfidf-1", content, np.zeros((0, 4), dtype=np.float32), "")
    assert store.vectors("tfidf-1")[content].shape == (0, 4)


def test_vectors_hide_with_their_brick_and_go_with_its_object(store: Store) -> None:
    content = store.entry("fr-en").hash
    store.put_vectors("tfidf-1", content, MATRIX, "texts")
    store.remove("fr-en")
    assert store.vectors("tfidf-1") == {}
    store.restore("fr-en")
    assert list(store.vectors("tfidf-1")) == [content]
    store.remove("fr-en")
    store.collect(0)
    store.add(small_brick("fr-en"))
    assert store.vectors("tfidf-1") == store.texts_hashes("tfidf-1") == {}


def test_refuses_what_is_no_matrix_of_a_known_brick(store: Store) -> None:
    content = store.entry("fr-en").hash
    with pytest.raises(StoreError, match=r"has shape \[4\] and dtype float32"):
        store.put_vectors("tfidf-1", content, MATRIX[0], "")
    with pytest.raises(StoreError, match="dtype int64"):
        store.put_vectors("tfidf-1", content, MATRIX.astype(np.int64), "")
    with pytest.raises(StoreError, match="NaN or infinite"):
        store.put_vectors("tfidf-1", content, MATRIX * np.float32("nan"), "")
    with pytest.raises(UnknownNameError, match="no brick is called 'sha256:0000"):
        store.put_vectors("tfidf-1", "0" * 64, MATRIX, "")
