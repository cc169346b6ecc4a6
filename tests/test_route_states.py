"""The base's states: pooled as a slow loop does, and the layer that finds the bricks is taken."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from brickwork.errors import DataError, ModelError
from brickwork.measure.states import pooled_states
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.route.states import BaseStates, StatesEmbedder
from tests.letters import Letters, MemoryCache, brick
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

TEXTS = ["a", "the band and a hand", "", "x + y = z?", "the", "a longer text than the others: " * 5]
CORPUS = [brick("a", "aab", "abb", "aba"), brick("b", "xxy", "xyy", function="xy")]


def loaded(family: str) -> LoadedModel:
    return wrap_model(tiny_model(family), tiny_tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_states_are_the_means_of_each_text_alone(family: str) -> None:
    base = loaded(family)
    assert base.tokenizer is not None
    found = pooled_states(base, TEXTS, batch=4)
    assert found.shape == (3, len(TEXTS), 32)
    for row, text in enumerate(TEXTS):
        ids = base.tokenizer.encode(text)[:64]  # the tiny models' window
        if not ids:
            assert not found[:, row].any()
            continue
        with torch.inference_mode():
            states = base.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = torch.stack([state[0].mean(0) for state in states])
        torch.testing.assert_close(found[:, row], expected, atol=2e-5, rtol=1e-4)


def test_pooled_states_reads_so_many_tokens_and_no_text_gives_no_row() -> None:
    base = loaded("llama")
    short, long = pooled_states(base, ["abcd", "abcdefgh"], tokens=4).unbind(1)
    torch.testing.assert_close(short, long)
    assert pooled_states(base, []).shape == (3, 0, 32)


def test_pooled_states_refuses_a_model_without_a_tokenizer() -> None:
    with pytest.raises(ModelError, match=r"asked of a model, which has no tokenizer"):
        pooled_states(wrap_model(tiny_model("llama")), ["a"])


class FakeBase:
    """Layer 0 says nothing, layer 1 counts letters, layer 2 is noise; all share a large part."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.seen.extend(texts)
        letters = Letters().embed(texts)
        noise = [np.random.default_rng(len(t) + ord(t[0])).normal(size=26) for t in texts]
        shared = 5 * np.eye(26)[0]
        return np.stack([np.ones_like(letters), shared + letters, np.array(noise)])


def test_the_layer_that_finds_most_left_out_exemplars_is_taken() -> None:
    embedder = StatesEmbedder(CORPUS, BaseStates("base", FakeBase()))
    assert (embedder.layer, embedder.accuracy) == (1, 1.0)
    own, other = embedder.embed(["aabb", "xxyy"])
    assert own @ embedder.embed(["aab"])[0] > 0.8
    assert own @ other < 0  # the part that all share is gone
    assert np.linalg.norm(own) == pytest.approx(1, abs=1e-6)


def test_many_texts_are_as_one_by_one_and_the_corpus_is_at_hand() -> None:
    base = FakeBase()
    embedder = StatesEmbedder(CORPUS, BaseStates("base", base))
    base.seen.clear()
    texts = ["aab", "zz", "xy", "zz"]
    together = embedder.embed(texts)
    assert base.seen == ["zz"]
    for row, text in zip(together, texts, strict=True):
        assert row == pytest.approx(embedder.embed([text])[0], abs=1e-6)


def test_a_brick_more_asks_the_base_for_that_brick_alone() -> None:
    cache, more = MemoryCache(), [*CORPUS, brick("c", "mno", "mmn")]
    StatesEmbedder(CORPUS, BaseStates("base", FakeBase()), cache)
    base = FakeBase()
    cached = StatesEmbedder(more, BaseStates("base", base), cache)
    assert set(base.seen) == {"mno", "mmn", "aab"}  # one text tells how many layers there are
    fresh = StatesEmbedder(more, BaseStates("base", FakeBase()))
    assert cached.id == fresh.id
    assert cached.embed(["abc"]) == pytest.approx(fresh.embed(["abc"]), abs=1e-6)


def test_the_id_is_of_the_base_and_the_corpus() -> None:
    one = StatesEmbedder(CORPUS, BaseStates("base", FakeBase()))
    assert one.id == StatesEmbedder(CORPUS[::-1], BaseStates("base", FakeBase())).id
    assert one.id != StatesEmbedder(CORPUS, BaseStates("other", FakeBase())).id
    assert one.id != StatesEmbedder([*CORPUS, brick("c", "z")], BaseStates("base", FakeBase())).id


def test_the_last_layer_is_taken_where_there_is_no_telling() -> None:
    embedder = StatesEmbedder([brick("a", "ab"), brick("b", "xy")], BaseStates("b", FakeBase()))
    assert embedder.layer == 2
    assert np.isnan(embedder.accuracy)


def test_refuses_states_of_another_shape_and_a_corpus_without_texts() -> None:
    with pytest.raises(
        DataError, match=r"of shape \(layers \+ 1, 1, hidden\), these are \[1, 26\]"
    ):
        BaseStates("base", lambda texts: Letters().embed(texts)).rows(["a"])
    with pytest.raises(DataError, match="no brick has a text"):
        StatesEmbedder([brick("a")], BaseStates("base", FakeBase()))
