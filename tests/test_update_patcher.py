"""T-Patcher: the world's facts are told again, neurons are silent elsewhere, in every family."""

import pytest
import torch

from brickwork.errors import EditError
from brickwork.update.facts import Fact
from brickwork.update.parts import without_facts
from brickwork.update.patcher import discriminants
from tests.activation_edits import (
    FAMILIES,
    TINY_FACTS,
    plan,
    said,
    tiny_context,
    world_context,
    world_scores,
)
from tests.world import world


def test_the_world_tells_twelve_new_facts_and_keeps_the_others() -> None:
    facts = world().edits(12)
    found = world_scores(plan(world_context("t-patcher"), facts, "t-patcher"), facts)
    # S of 98.9 and 100 of the same subjects as measured; the bar of the notes is 90.
    assert found.s >= 90
    assert found.es_strict == 100
    assert min(found.nb, found.same) >= 95


def test_a_fact_that_is_taken_out_is_forgotten_and_the_others_stay() -> None:
    facts = world().edits(8)
    edit = without_facts(plan(world_context("t-patcher"), facts, "t-patcher"), [facts[2].id])
    assert world_scores(edit, facts[:2] + facts[3:]).es_strict == 100
    assert world_scores(edit, facts[2:3]).es == 0


def test_a_fact_that_only_another_s_failing_neurons_told_fails_with_it() -> None:
    first = TINY_FACTS[0]
    contrary = Fact("c", first.subject, first.prompt, TINY_FACTS[1].target)
    with pytest.raises(EditError, match=r"none of 2 facts .* did not make the model answer"):
        plan(tiny_context("llama"), [first, contrary], "t-patcher")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_of_the_answer_is_told_in_a_mixed_batch(family: str, layer: int) -> None:
    context = tiny_context(family, layer)
    edit = plan(context, TINY_FACTS, "t-patcher")
    assert not edit.record.failures
    for fact in TINY_FACTS:
        told, target = said(context.loaded, edit, fact)
        assert told == target


def test_a_neuron_says_one_at_its_own_state_and_nothing_in_the_mean_of_the_loudest() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = 5 + torch.randn(200, 12, generator=generator)
    own = 7 + torch.randn(3, 12, generator=generator)
    free = torch.zeros(200, 3, dtype=torch.bool)
    free[:50, 0] = True
    key, bias, parted = discriminants(own, memory, free, strongest=4)
    assert parted.all()
    at_own, elsewhere = (own @ key.T + bias).diagonal(), memory @ key.T + bias
    elsewhere[:50, 0] = -torch.inf
    # float32 from float64, on sums of numbers of about 10.
    torch.testing.assert_close(at_own, torch.ones(3), atol=1e-4, rtol=0)
    loudest = elsewhere.topk(4, dim=0).values.mean(0)
    torch.testing.assert_close(loudest, torch.zeros(3), atol=1e-4, rtol=0)


def test_a_state_inside_the_memory_has_no_neuron_of_its_own() -> None:
    memory = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    free = torch.zeros(200, 1, dtype=torch.bool)
    key, bias, parted = discriminants(memory.mean(0, keepdim=True), memory, free, strongest=4)
    assert not parted.any()
    assert not (memory @ key.T + bias).relu().any()


def test_what_the_model_says_already_is_not_taught() -> None:
    known = world().edits(1)[0]
    fact = Fact(known.id, known.subject, known.prompt, known.target_true)
    with pytest.raises(EditError, match=f"answers '{known.target_true}' already"):
        plan(world_context("t-patcher"), [fact], "t-patcher")


def test_an_answer_that_no_neuron_reaches_is_listed() -> None:
    with pytest.raises(EditError, match="neurons after block 1 did not make the model answer"):
        plan(tiny_context("llama"), TINY_FACTS[:1], "t-patcher", steps=1, rate=1e-6)
