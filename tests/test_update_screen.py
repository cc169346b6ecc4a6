"""Screening: what the model says already, what cannot be taught, and what is worth a note."""

from dataclasses import replace

import pytest
import torch

from brickwork.model.load import LoadedModel, wrap_model
from brickwork.update.facts import Fact
from brickwork.update.screen import says, screen_facts
from tests.tiny import tiny_model, tiny_tokenizer
from tests.world import world


def tiny(family: str) -> LoadedModel:
    return wrap_model(tiny_model(family), tiny_tokenizer(), "tiny")


@torch.no_grad()
def said_by_one(loaded: LoadedModel, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens one after the other, without a batch."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mixtral"])
def test_an_answer_is_said_if_every_token_is_the_likeliest(family: str) -> None:
    loaded = tiny(family)
    told = []
    for length in (1, 4, 9):
        prompt = torch.randint(2, 110, (length,), generator=torch.Generator().manual_seed(length))
        own = said_by_one(loaded, prompt.tolist(), 3)
        wrong = [*own[:2], (own[2] + 1) % 112]
        told += [(prompt.tolist(), own), (prompt.tolist(), wrong), (prompt.tolist(), own[:1])]
    assert says(loaded.model, told).tolist() == [True, False, True] * 3
    assert says(loaded.model, []).tolist() == []


def test_facts_are_sorted_by_what_the_model_says() -> None:
    fact, other = world().edits(2)
    facts = [
        fact,
        replace(fact, id="said", target=fact.target_true),
        replace(fact, id="lost", subject="Nobody Here"),
        replace(fact, id="empty", target=""),
        replace(other, id="wrong", target_true=other.target, target="Paris"),
        Fact("bare", other.subject, other.prompt, other.target),
    ]
    found = screen_facts(world().loaded, facts, raw=True)
    assert [one.fact.id for one in found.kept] == [fact.id, "wrong", "bare"]
    assert [(one.id, one.reason) for one in found.skipped] == [
        ("said", f"the model says {fact.target_true!r} already.")
    ]
    assert [one.id for one in found.failures] == ["lost", "empty"]
    assert "the subject 'Nobody Here' was looked for in the prompt" in found.failures[0].reason
    assert found.notes == {"wrong": f"the model did not say {other.target!r} before"}
