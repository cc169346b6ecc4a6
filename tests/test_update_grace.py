"""GRACE: the world's facts are told again, radii keep to their own side, every family works."""

import pytest
import torch
from torch import Tensor

from brickwork.errors import EditError
from brickwork.update.facts import Fact
from brickwork.update.grace import spaced
from brickwork.update.parts import without_facts
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


def test_the_world_tells_twelve_new_facts_and_keeps_the_others() -> None:
    facts = world().edits(12)
    found = world_scores(plan(world_context("grace"), facts, "grace"), facts)
    # S of 100 as measured; the bar of the notes is 90.
    assert found.s >= 90
    assert (found.es_strict, found.same) == (100, 100)
    assert found.nb >= 95


def test_a_fact_that_is_taken_out_is_forgotten_and_the_others_stay() -> None:
    facts = world().edits(8)
    edit = without_facts(plan(world_context("grace"), facts, "grace"), [facts[2].id])
    assert world_scores(edit, facts[:2] + facts[3:]).es_strict == 100
    assert world_scores(edit, facts[2:3]).es == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_of_the_answer_is_told_in_a_mixed_batch(family: str) -> None:
    context = tiny_context(family)
    edit = plan(context, TINY_FACTS, "grace")
    assert not edit.record.failures
    for fact in TINY_FACTS:
        told, target = said(context.loaded, edit, fact)
        assert len(target) > 1
        assert told == target


def test_an_edit_of_one_fact_needs_no_corpus() -> None:
    context = tiny_context("llama")
    alone = type(context)(context.loaded, context.site)
    told, target = said(context.loaded, plan(alone, TINY_FACTS[:1], "grace"), TINY_FACTS[0])
    assert told == target


def test_facts_about_one_subject_need_no_corpus_either() -> None:
    context = tiny_context("llama")
    alone = type(context)(context.loaded, context.site)
    facts = [
        Fact(one.id, "Bob", one.prompt.replace("Ann", "Bob"), one.target) for one in TINY_FACTS
    ]
    edit = plan(alone, facts, "grace")
    for fact in facts:
        told, target = said(context.loaded, edit, fact)
        assert told == target


def keys(*values: float) -> list[Tensor]:
    return [torch.tensor([[value, 0.0]]) for value in values]


def test_radii_of_other_answers_meet_halfway_and_those_of_one_answer_overlap() -> None:
    reach = [torch.tensor([3.0])] * 3
    radii, taken = spaced(keys(10, 14, 14.5), [(1,), (2,), (2,)], reach, noise=1e-5)
    assert not taken
    # The second and the third meet the first, each at its own half of the way.
    assert [radius.item() for radius in radii] == pytest.approx([2, 2, 2.25], abs=1e-3)


def test_a_later_split_never_widens_a_radius() -> None:
    reach = [torch.tensor([3.0])] * 3
    radii, _ = spaced(keys(10, 11, 13.5), [(1,), (2,), (1,)], reach, noise=1e-5)
    assert [radius.item() for radius in radii] == pytest.approx([0.5, 0.5, 1.25], abs=1e-3)


def test_a_key_that_is_taken_by_another_answer_fails() -> None:
    reach = [torch.tensor([3.0])] * 2
    _, taken = spaced(keys(10, 10), [(1,), (2,)], reach, noise=1e-5)
    assert taken == {1: 0}


def test_the_same_prompt_with_two_answers_keeps_the_first() -> None:
    first = TINY_FACTS[0]
    again = Fact("c", first.subject, first.prompt, " den")
    edit = plan(tiny_context("llama"), [first, again, TINY_FACTS[1]], "grace")
    assert [fact.id for fact in edit.record.facts] == ["a", "b"]
    assert "reads the same at the end of its prompt as for 'a'" in edit.record.failures[0].reason


def test_a_block_that_does_not_see_the_subject_is_refused() -> None:
    with pytest.raises(EditError, match="whoever the subject is; name a later layer"):
        plan(tiny_context("llama", layer=0), [BLIND], "grace")


def test_an_answer_that_no_value_reaches_is_listed() -> None:
    context = tiny_context("llama")
    with pytest.raises(EditError, match="no value at layer 1 made the model answer ' inn' within"):
        plan(context, TINY_FACTS[:1], "grace", steps=1, rate=1e-6)
