"""The chain of embedders: what the user named, what is installed, what finds most exemplars."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from brickwork.errors import DataError
from brickwork.route import choose
from brickwork.route.choose import choose_embedder
from brickwork.route.embedders import Embedder
from brickwork.route.lexical import TfidfEmbedder
from brickwork.route.states import BaseStates, StatesEmbedder
from brickwork.route.texts import BrickTexts
from tests.letters import Letters, MemoryCache, brick

# Words never repeat, letters do: only letters can find a left-out exemplar's brick.
LETTERS = [brick("a", "aab", "abb", "aba", "baa"), brick("x", "xxy", "xyy", "xyx", "yxx")]
WORDS = [brick("a", "red ab", "red cd", "red ef"), brick("x", "blue dc", "blue fe", "blue ba")]


def letters(texts: Sequence[str]) -> np.ndarray:
    return np.stack([Letters().embed(texts)] * 2)


@pytest.fixture(autouse=True)
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "has_minilm", lambda: False)


def test_the_users_model_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def made(path: object) -> Embedder:
        assert path == tmp_path
        return Letters()

    monkeypatch.setattr(choose, "has_minilm", lambda: True)
    monkeypatch.setattr(choose, "SentenceEmbedder", made)
    cache = MemoryCache()
    embedder, choice = choose_embedder(LETTERS, path=tmp_path, cache=cache)
    assert isinstance(embedder, Letters)
    assert (choice.name, choice.id, choice.warning) == ("sentence-transformers", "letters", "")
    assert choice.accuracies == {"sentence-transformers": 1.0}
    assert "because you named it; 1.00 of the left-out exemplars" in choice.reason
    assert len(cache.kept) == 2


def test_the_packaged_model_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "has_minilm", lambda: True)
    monkeypatch.setattr(choose, "packaged_minilm", Letters)
    _, choice = choose_embedder(LETTERS, states=BaseStates("base", letters))
    assert choice.name == "minilm"
    assert "because it is installed" in choice.reason


def test_a_refused_package_is_passed_over_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Embedder:
        raise DataError("the package is refused: its weights are strange")

    monkeypatch.setattr(choose, "has_minilm", lambda: True)
    monkeypatch.setattr(choose, "packaged_minilm", refuse)
    _, choice = choose_embedder(WORDS)
    assert choice.name == "tfidf"
    assert choice.warning == "the package is refused: its weights are strange"


def test_states_are_taken_where_they_find_more_exemplars_than_words_do() -> None:
    embedder, choice = choose_embedder(LETTERS, states=BaseStates("base", letters))
    assert isinstance(embedder, StatesEmbedder)
    assert choice.name == "states"
    assert choice.accuracies == {"tfidf": 0.0, "states": 1.0}
    assert choice.reason == (
        "layer 0 of the base model is used; 1.00 of the left-out exemplars find their brick, with "
        "TF-IDF 0.00."
    )


def test_words_are_taken_where_states_find_no_more() -> None:
    embedder, choice = choose_embedder(WORDS, states=BaseStates("base", letters))
    assert isinstance(embedder, TfidfEmbedder)
    assert choice.accuracies["tfidf"] == 1.0
    assert choice.accuracies["states"] <= 1.0
    assert "TF-IDF matches words, not meaning; 1.00 of the left-out exemplars" in choice.reason
    assert choice.warning == ""


def test_a_low_accuracy_warns_and_says_what_to_do() -> None:
    _, choice = choose_embedder(LETTERS)
    assert choice.warning.startswith("only 0.00 of the bricks' own exemplars find their brick")
    assert "pip install 'brickwork[embed]'" in choice.warning


@pytest.mark.parametrize("corpus", [[], [brick("a", "ab")], [brick("silent")]])
def test_too_few_exemplars_leave_words_and_no_number(corpus: list[BrickTexts]) -> None:
    embedder, choice = choose_embedder(corpus, states=BaseStates("base", letters))
    assert (choice.name, choice.id) == ("tfidf", embedder.id)
    assert "cannot be told from so few exemplars" in choice.reason
    assert np.isnan(choice.accuracies["tfidf"])
    assert choice.warning == ""


def test_refuses_a_path_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder with a sentence-transformers model"):
        choose_embedder(WORDS, path=tmp_path)
