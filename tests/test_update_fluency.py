"""Texts drawn from models, their entropy, and own answers: against plain loops, without a cache."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.words import stop_tokens
from brickwork.update.fluency import entropies, entropy_of, words_of
from brickwork.update.recall import own_answer
from brickwork.update.writing import drawn_texts, own_answers
from tests.tiny import tiny_model, tiny_tokenizer

# Rotary and learned positions, windows, experts, and Conv1D.
SOME_FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "qwen3_moe")
PROMPTS = [[5, 9, 33], [7], [40, 41, 42, 43, 44, 45, 46], [8, 9], [50, 51, 52]]


def tiny(family: str) -> LoadedModel:
    return wrap_model(tiny_model(family), tiny_tokenizer(), family)


def test_the_entropy_of_a_text_is_that_on_paper() -> None:
    # pairs ab, ba, ab: 0.9183 bits; triples aba, bab: 1 bit
    pairs = -(2 / 3) * np.log2(2 / 3) - (1 / 3) * np.log2(1 / 3)
    assert entropy_of(list("abab")) == pytest.approx((2 / 3 * pairs + 4 / 3 * 1) / 2)
    assert entropy_of(["so"] * 50) == 0.0
    assert entropy_of([]) == entropy_of(["one"]) == 0.0


@given(st.lists(st.sampled_from("abcd"), min_size=3, max_size=40))
def test_the_entropy_is_the_papers_formula(words: list[str]) -> None:
    bits = []
    for size in (2, 3):
        counts = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
        shares = np.array(list(counts.values())) / counts.total()
        bits.append(-np.sum(shares * np.log(shares) / np.log(2)))
    assert entropy_of(words) == pytest.approx(np.mean(np.array(bits) * [2 / 3, 4 / 3]), abs=1e-12)


def test_words_are_parted_from_punctuation_in_any_script() -> None:
    assert words_of("Ann's café, naïve!") == ["Ann", "'", "s", "café", ",", "naïve", "!"]


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_texts_are_those_that_every_prompt_alone_would_get(family: str) -> None:
    loaded = tiny(family)
    found = drawn_texts(loaded, PROMPTS, tokens=6, generator=torch.Generator().manual_seed(3))
    chance = torch.rand(len(PROMPTS), 6, generator=torch.Generator().manual_seed(3))
    for prompt, text, numbers in zip(PROMPTS, found, chance, strict=True):
        assert list(text) == drawn_alone(loaded, prompt, numbers.tolist())


@torch.no_grad()
def drawn_alone(loaded: LoadedModel, prompt: list[int], numbers: list[float]) -> list[int]:
    ids = list(prompt)
    for number in numbers:
        logits = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1]
        ranked = [i for i in logits.argsort(descending=True).tolist() if i != 1][:5]
        shares = logits[ranked].softmax(0).tolist()
        rank = next((r for r in range(4) if number <= sum(shares[: r + 1])), 4)
        ids.append(ranked[rank])
    return ids[len(prompt) :]


def test_what_ends_an_answer_is_never_drawn() -> None:
    loaded = tiny("llama")
    assert stop_tokens(loaded) == {1}
    generator = torch.Generator().manual_seed(0)
    texts = drawn_texts(loaded, PROMPTS * 8, tokens=30, generator=generator)
    assert {len(text) for text in texts} == {30}
    assert 1 not in {token for text in texts for token in text}


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_text_ends_where_the_model_can_read_no_more(family: str) -> None:
    prompts = [[5] * 60, [5] * 10]
    generator = torch.Generator().manual_seed(0)
    found = drawn_texts(tiny(family), prompts, tokens=12, generator=generator)
    assert [len(text) for text in found] == [5, 12]  # the last is foretold by the 64th


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_own_answers_are_those_of_one_prompt_at_a_time(family: str) -> None:
    loaded = tiny(family)
    prompts = [*PROMPTS, *([n] * 3 for n in range(60, 80))]
    assert own_answers(loaded, prompts) == [own_answer(loaded, prompt) for prompt in prompts]


def test_a_model_that_repeats_itself_has_less_entropy() -> None:
    loaded = tiny("llama")
    lively = entropies(loaded, PROMPTS, generator=torch.Generator().manual_seed(0), tokens=40)
    again = entropies(loaded, PROMPTS, generator=torch.Generator().manual_seed(0), tokens=40)
    assert torch.equal(lively, again)
    head = loaded.model.get_output_embeddings()
    head.register_forward_hook(lambda _m, _a, logits: logits * 0 + 100 * torch.eye(112)[60])
    dull = entropies(loaded, PROMPTS, generator=torch.Generator().manual_seed(0), tokens=40)
    assert dull.max() < lively.min()
    assert entropies(loaded, [], generator=torch.Generator()).shape == (0,)
