"""The trained router: it tells tasks apart, abstains, grows by one, and is kept without pickle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float32
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from brickwork.brick.files import json_bytes, tensor_bytes
from brickwork.errors import BrickFormatError, DataError, GrowthError
from brickwork.grow.router_features import StateFeatures, WordFeatures
from brickwork.grow.task_router import (
    ROUTER_FILE,
    TENSORS_FILE,
    TaskRouter,
    empty_router,
    extend_router,
    read_router,
    write_router,
)
from brickwork.model.load import wrap_model
from tests.tiny import tiny_model, tiny_tokenizer

THINGS = (
    "river", "stone", "house", "garden", "letter", "window", "table", "winter", "summer", "morning",
    "evening", "forest",
)  # fmt: skip
BACKGROUND = [f"Tell me about the {a} and the {b}" for a in THINGS for b in THINGS[:4]]
SUMS = [f"What is {a} + {b}?" for a in range(8) for b in range(5)]
FRENCH = [f"Translate into French: the {a} of the {b}" for a in THINGS for b in THINGS[4:7]]
QUESTIONS = [f"Who owns the {a} by the {b}?" for a in THINGS for b in THINGS[:3]]


class Lengths:
    """Features without words: the length of a text, and its number of digits."""

    id = "lengths"

    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts features"]:
        rows = [[len(t), sum(c.isdigit() for c in t)] for t in texts]
        return np.array(rows, np.float32).reshape(-1, 2)


@pytest.fixture(scope="module")
def router() -> TaskRouter:
    first = extend_router(
        empty_router(WordFeatures(BACKGROUND)), "sums", SUMS[:30], background=BACKGROUND
    )
    return extend_router(first, "french", FRENCH[:30], background=BACKGROUND, others=SUMS[:30])


def test_instructions_go_to_their_task_and_others_to_none(router: TaskRouter) -> None:
    assert router(SUMS[30:]) == ["sums"] * 10
    assert router(FRENCH[30:]) == ["french"] * 6
    assert router([*QUESTIONS, ""]) == [None] * (len(QUESTIONS) + 1)
    assert router([]) == []


def test_a_router_without_tasks_abstains() -> None:
    assert empty_router(WordFeatures(BACKGROUND))(SUMS[:2]) == [None, None]


def test_another_task_leaves_the_scores_of_the_others_to_the_bit(router: TaskRouter) -> None:
    texts = [*SUMS, *FRENCH, *QUESTIONS]
    larger = extend_router(router, "owners", QUESTIONS, background=BACKGROUND, others=SUMS)
    assert np.array_equal(larger.scores(texts)[:, :2], router.scores(texts))
    assert np.array_equal(larger.thresholds[:2], router.thresholds)
    assert larger(QUESTIONS[::4]) == ["owners"] * len(QUESTIONS[::4])


def test_scores_are_scikit_learns_log_odds() -> None:
    features = WordFeatures(BACKGROUND)
    found = extend_router(empty_router(features), "sums", SUMS, background=BACKGROUND)
    taught = [[t for n, t in enumerate(own) if n % 4 != 3] for own in (SUMS, BACKGROUND)]
    model = LogisticRegression(C=100.0, class_weight="balanced", max_iter=1000, random_state=0)
    model.fit(
        features([*taught[0], *taught[1]]), [True] * len(taught[0]) + [False] * len(taught[1])
    )
    expected = model.decision_function(features(QUESTIONS))
    # float32 weights against scikit-learn's float64
    assert found.scores(QUESTIONS)[:, 0] == pytest.approx(expected, abs=1e-4)


def test_word_features_are_tf_idf_where_no_two_words_share_a_column() -> None:
    texts = ["the river", "the house", "the the river", "a stone"]
    plain = TfidfVectorizer(
        token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True, norm="l2"
    ).fit(texts)
    expected, found = plain.transform(texts).toarray(), WordFeatures(texts)(texts)
    assert (found > 0).sum(0)[(found > 0).any(0)].sum() == (expected > 0).sum()  # none collided
    assert found @ found.T == pytest.approx(expected @ expected.T, abs=1e-6)  # float32


def test_at_most_one_in_a_hundred_of_the_held_out_background_passes() -> None:
    # The task's texts look like the background's, so that a fair threshold would let many pass.
    mixed = [*SUMS[:10], *(f"Tell me about the {a} and the {a}" for a in THINGS)]
    found = extend_router(
        empty_router(WordFeatures(BACKGROUND)), "mixed", mixed, background=BACKGROUND
    )
    held = BACKGROUND[3::4]
    assert sum(name is not None for name in found(held)) <= len(held) / 100


def test_the_bases_states_will_do_as_features() -> None:
    base = wrap_model(tiny_model("llama"), tiny_tokenizer(), "tiny")
    features = StateFeatures(base, 1, BACKGROUND)
    rows = features(BACKGROUND)
    assert rows.mean(0) == pytest.approx(np.zeros(rows.shape[1]), abs=1e-5)  # float32 means
    assert rows.std(0) == pytest.approx(np.ones(rows.shape[1]), abs=1e-4)
    found = extend_router(empty_router(features), "sums", SUMS[:30], background=BACKGROUND)
    assert found(SUMS[30:]).count("sums") >= 8
    assert found(FRENCH).count(None) >= 30


def test_a_router_is_read_as_it_was_written(tmp_path: Path, router: TaskRouter) -> None:
    write_router(router, tmp_path / "router")
    again = read_router(tmp_path / "router")
    assert again.names == router.names
    texts = [*SUMS, *FRENCH, *QUESTIONS]
    assert np.array_equal(again.scores(texts), router.scores(texts))
    assert again(texts) == router(texts)
    assert {path.name for path in (tmp_path / "router").iterdir()} == {ROUTER_FILE, TENSORS_FILE}


def test_a_router_over_other_features_asks_for_them(tmp_path: Path) -> None:
    found = extend_router(empty_router(Lengths()), "sums", SUMS, background=BACKGROUND)
    write_router(found, tmp_path / "router")
    assert read_router(tmp_path / "router", Lengths())(SUMS) == found(SUMS)
    with pytest.raises(DataError, match=r"over 'lengths'; this version .* given 'none'"):
        read_router(tmp_path / "router")
    with pytest.raises(DataError, match="given 'words:4096:"):
        read_router(tmp_path / "router", WordFeatures(BACKGROUND))


@pytest.mark.parametrize(
    ("document", "arrays", "message"),
    [
        ({"format": 2}, {}, "of format 2"),
        ({"names": ["a", "a"]}, {}, "for 1 tasks"),
        ({"names": ["a"]}, {}, "finite weights, biases, thresholds"),
        ({"more": 1}, {}, "more: Extra inputs"),
        ({}, {"biases": np.array([0, np.nan], np.float32)}, "finite biases"),
        (
            {},
            {"rarity": np.full(4096, 2, np.float32)},
            "reads format 1, and was given",
        ),
        ({}, {"rarity": np.zeros(3, np.float32)}, "has the shape \\(3,\\)"),
    ],
)
def test_a_router_that_was_tampered_with_is_refused(
    document: dict[str, Any], arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    words = WordFeatures(rarity=np.ones(4096, np.float32))
    whole = {"format": 1, "features": words.id, "names": ["a", "b"], **document}
    held = {
        "weights": np.zeros((2, 4096), np.float32), "biases": np.zeros(2, np.float32),
        "thresholds": np.zeros(2, np.float32), "rarity": np.ones(4096, np.float32), **arrays,
    }  # fmt: skip
    (tmp_path / ROUTER_FILE).write_bytes(json_bytes(ROUTER_FILE, whole))
    tensors = {name: torch.tensor(rows) for name, rows in held.items()}
    (tmp_path / TENSORS_FILE).write_bytes(tensor_bytes(tensors))
    with pytest.raises(DataError, match=message):
        read_router(tmp_path)


def test_a_folder_without_a_router_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrickFormatError, match="has no file"):
        read_router(tmp_path)


def test_a_task_that_is_there_or_too_small_is_refused(router: TaskRouter) -> None:
    with pytest.raises(GrowthError, match=r"has it already .*sums, french"):
        extend_router(router, "sums", SUMS, background=BACKGROUND)
    with pytest.raises(DataError, match="from 1 different instructions"):
        extend_router(router, "one", ["again"] * 20, background=BACKGROUND)
    with pytest.raises(DataError, match="without a background"):
        WordFeatures()
    base = wrap_model(tiny_model("llama"), tiny_tokenizer(), "tiny")
    with pytest.raises(DataError, match="name a layer from 0 to 2"):
        StateFeatures(base, 3, BACKGROUND)
