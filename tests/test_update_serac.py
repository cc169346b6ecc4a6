"""SERAC: the world's facts are told again inside a learned scope, every family works."""

import pytest
import torch

from brickwork.errors import EditError
from brickwork.update.parts import without_facts
from brickwork.update.scope import Example, learn_scope, radius_of
from brickwork.update.words import encode_fact
from tests.activation_edits import (
    BLIND,
    FAMILIES,
    TINY_FACTS,
    plan,
    said,
    tiny_context,
    world_context,
    world_scores,
)
from tests.world import world


@pytest.mark.parametrize("training", [0, 24])
def test_the_world_tells_new_facts_and_keeps_the_others(training: int) -> None:
    facts = world().edits(8)
    edited = {fact.subject for fact in facts}
    others = [f for f in world().edits(40, seed=5) if f.subject not in edited][:training]
    taught = [encode_fact(world().loaded, fact) for fact in others]
    found = world_scores(plan(world_context("serac", taught), facts, "serac"), facts)
    # S of 100 as measured; what GRACE and T-Patcher are asked for.
    assert found.s >= 90
    assert (found.es_strict, found.same) == (100, 100)


def test_a_fact_that_is_taken_out_is_forgotten_and_the_others_stay() -> None:
    facts = world().edits(4)
    edit = without_facts(plan(world_context("serac"), facts, "serac"), [facts[2].id])
    assert world_scores(edit, facts[:2] + facts[3:]).es_strict == 100
    assert world_scores(edit, facts[2:3]).es == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_of_the_answer_is_told_in_a_mixed_batch(family: str) -> None:
    context = tiny_context(family)
    edit = plan(context, TINY_FACTS, "serac", contexts=2)
    assert not edit.record.failures
    for fact in TINY_FACTS:
        told, target = said(context.loaded, edit, fact)
        assert told == target


def test_a_block_that_does_not_see_the_subject_is_refused() -> None:
    with pytest.raises(EditError, match="whoever the subject is; name a later layer"):
        plan(tiny_context("llama", layer=0), [BLIND], "serac", contexts=2)


def clusters(count: int, generator: torch.Generator) -> list[Example]:
    """Facts that differ in 4 of 16 directions, and from themselves as much in the other 12."""
    spread = torch.cat([torch.full((4,), 0.1), torch.full((12,), 1.0)])
    found = []
    for _ in range(count):
        middle = torch.cat([torch.randn(4, generator=generator), torch.zeros(12)])
        near = middle + spread * torch.randn(6, 16, generator=generator)
        far = torch.randn(6, 16, generator=generator)
        found.append(Example(middle, near, far))
    return found


def test_the_scope_ignores_directions_in_which_a_fact_differs_from_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    examples, held = clusters(40, generator), clusters(20, generator)
    projection = learn_scope(examples, torch.zeros(0, 16), width=4, steps=20)
    radius = radius_of(projection, held, held_out=True)
    near, far = (
        torch.cat([((part - one.anchor) @ projection.T).norm(dim=1) for one, part in pairs])
        for pairs in ([(x, x.near) for x in held], [(x, x.far) for x in held])
    )
    assert (near <= radius).float().mean() > 0.9
    assert (far <= radius).float().mean() < 0.2
