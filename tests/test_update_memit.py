"""MEMIT: the paper's formula, many facts of the world at once, alone and in a sequence."""

import pytest
import torch
from torch import Tensor

from brickwork.errors import EditError
from brickwork.model.load import wrap_model
from brickwork.update.edit import Edit
from brickwork.update.facts import Fact
from brickwork.update.harm import bounded_reader
from brickwork.update.keys import recall
from brickwork.update.method import EditContext, EditSite
from brickwork.update.plan import Asked, plan_edit
from brickwork.update.rewrite import placed_prompts
from brickwork.update.words import encode_fact
from tests.edits import covariance_of, edited, identity_of, scores, tiny_facts
from tests.tiny import tiny_model, tiny_tokenizer
from tests.world import corpus, world

SITE = EditSite((2, 3, 4), "last")


def plan(context: EditContext, facts: list[Fact], **options: float) -> Edit:
    return plan_edit(context, facts, Asked("memit", {"contexts": 2, **options}))


def test_the_reader_equals_the_inverse_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, corpus_keys = (
        torch.randn(rows, 8, generator=generator, dtype=torch.float64) for rows in (3, 40)
    )
    C = corpus_keys.T @ corpus_keys / 40
    rarity = torch.stack([key @ C.inverse() @ key for key in keys]).median()
    K = keys.T
    expected = ((0.5 * rarity * C + K @ K.T).inverse() @ K).T
    rest = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    weight, white = float(0.5 * rarity), torch.linalg.solve(C, K)
    found = bounded_reader(keys, white, rest, C, weight=weight, most=1e9)
    torch.testing.assert_close(found, expected)  # float64 rounding
    # Half of what it says on the corpus: the same formula with more weight, and just enough of it.
    said = float(torch.trace(rest.T @ found @ C @ found.T @ rest))
    less = bounded_reader(keys, white, rest, C, weight=weight, most=said / 2)
    bounded = float(torch.trace(rest.T @ less @ C @ less.T @ rest))
    assert said / 2 / 1.1**2 < bounded <= said / 2  # the weight grows by tenths


def test_the_world_learns_twelve_facts_at_once_and_each_row_is_one_of_them() -> None:
    loaded = world().loaded
    facts = world().edits(12, seed=3)
    context = EditContext(loaded, SITE, covariance_of(loaded, corpus(400), SITE.layers))
    edit = plan(context, facts)
    assert edit.record.owners == tuple(range(12))
    assert not edit.record.failures
    with edited(loaded, edit.brick):
        found = scores(loaded, facts)
    assert found.s >= 90
    assert found.nb_strict >= 90
    assert found.same >= 90
    # A sequence: the second edit sees the first act, and both hold together.
    first, second = facts[:6], facts[6:]
    one = plan(context, first)
    with edited(loaded, one.brick):
        two = plan(context, second)
        with edited(loaded, two.brick):
            assert scores(loaded, facts).s >= 90
        assert scores(loaded, first).s >= 90


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2", "gpt_neox"])
def test_without_a_corpus_the_last_layer_writes_what_is_left_to_the_values(family: str) -> None:
    """Where the corpus weighs nothing, each map says at its keys what the recursion asks."""
    loaded = wrap_model(tiny_model(family), tiny_tokenizer())
    context = EditContext(loaded, EditSite((0, 1), "last"), identity_of(loaded), raw=True)
    facts = tiny_facts(loaded, 2)
    edit = plan(context, facts, contexts=0, weight=1e-6, steps=60, lr=1.0, clamp=20.0, harm=1e3)
    encoded = [encode_fact(loaded, fact, raw=True) for fact in facts]
    rows = [own[0] for own in placed_prompts(context, encoded, 0)]
    before = recall(loaded.model, rows, 1)
    with edited(loaded, edit.brick):
        after = recall(loaded.model, rows, 1)
    path = list(edit.keys)[1]
    A, B = (edit.brick.tensors[f"{path}/{slot}"] for slot in "AB")
    # The weight of a millionth, and float32 factors.
    near = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(edit.keys[path], after.keys, **near)
    said: Tensor = (A @ after.keys.T).T
    torch.testing.assert_close(said, torch.eye(2), **near)
    moved = (after.states - before.states).norm(dim=1)
    assert (moved > 0).all()
    assert B.shape[1] == 2


def test_facts_that_cannot_be_learned_are_left_out_and_told() -> None:
    loaded = world().loaded
    facts = world().edits(2)
    context = EditContext(loaded, EditSite((3,), "subject_first"), identity_of(loaded))
    with pytest.raises(EditError, match="none of 2 facts"):
        plan(context, facts, steps=1)
    known = Fact("known", facts[0].subject, facts[0].prompt, facts[0].target_true)
    edit = plan(context, [facts[0], known], steps=1)
    assert [fact.id for fact in edit.record.facts] == ["known"]
    assert [failure.id for failure in edit.record.failures] == [facts[0].id]
    assert edit.record.owners == (0,)
    assert all(len(keys) == 1 for keys in edit.keys.values())
