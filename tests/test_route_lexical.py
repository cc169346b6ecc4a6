"""TF-IDF: scikit-learn agrees on known words, and unknown ones take their share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from brickwork.route import lexical
from brickwork.route.lexical import TfidfEmbedder
from tests.letters import brick

CORPUS = [
    brick("french", "Say it in French!", "the French for cat", function="into French"),
    brick("sums", "What is 2 + 3?", "what is the sum"),
]
TEXTS = [text for b in CORPUS for text in b.texts]
EMBEDDER = TfidfEmbedder(CORPUS)
REFERENCE = TfidfVectorizer(
    token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True
).fit(sorted(TEXTS))
words = st.lists(st.sampled_from(["French", "the", "is", "what", "2", "+", "cat"]), min_size=1)


@settings(max_examples=30)
@given(words)
def test_texts_of_known_words_are_compared_as_scikit_learn_does(chosen: list[str]) -> None:
    query = " ".join(chosen)
    row, expected = EMBEDDER.embed([query])[0], REFERENCE.transform([query]).toarray()[0]
    # pairs of known words may be unknown, and shorten what is known
    assert row[:-1] == pytest.approx(np.linalg.norm(row[:-1]) * expected, abs=1e-6)


def test_the_corpus_own_texts_are_what_scikit_learn_makes_of_them() -> None:
    expected = REFERENCE.transform(TEXTS).toarray()
    assert EMBEDDER.embed(TEXTS)[:, :-1] == pytest.approx(expected, abs=1e-6)


def test_unknown_words_take_their_share_and_meet_no_brick() -> None:
    exemplars = EMBEDDER.embed(TEXTS)
    assert not exemplars[:, -1].any()
    known, mixed, strange = EMBEDDER.embed(["French", "French zebra", "zebra quagga"])
    assert (known[-1], strange[-1]) == (0, 1)
    assert (exemplars @ mixed).max() < 0.8 * (exemplars @ known).max()
    assert not (exemplars @ strange).any()


@settings(max_examples=30)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_any_text_gives_a_row_of_length_one_or_zeros(texts: list[str]) -> None:
    rows = EMBEDDER.embed(texts)
    assert rows.dtype == np.float32
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths == pytest.approx([1 if text.split() else 0 for text in texts], abs=1e-5)
    for row, text in zip(rows, texts, strict=True):
        assert np.array_equal(row, EMBEDDER.embed([text])[0])


def test_the_id_is_of_the_corpus_whatever_its_order() -> None:
    one = EMBEDDER
    assert one.id == TfidfEmbedder(CORPUS[::-1]).id
    assert one.id != TfidfEmbedder(CORPUS[:1]).id
    assert np.array_equal(one.embed(["a cat"]), TfidfEmbedder(CORPUS[::-1]).embed(["a cat"]))
    assert one.fitted


def test_without_a_corpus_everything_is_unknown() -> None:
    assert TfidfEmbedder([]).embed(["French", ""])[:, -1].tolist() == [1, 0]


def test_the_rarest_words_of_a_large_corpus_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical, "MOST_FEATURES", 5)
    assert TfidfEmbedder(CORPUS).embed(["French"]).shape == (1, 6)
