"""Taking real edits back, on the model of the tiny world: one fact returns, the others stay."""

from functools import cache
from pathlib import Path

import torch

from brickwork.update.edit import Edit
from brickwork.update.facts import Fact
from brickwork.update.ledger import Ledger
from brickwork.update.method import EditContext, EditSite
from brickwork.update.parts import without_facts
from brickwork.update.plan import Asked, plan_edit
from brickwork.update.words import answer_ids
from tests.edits import covariance_of, edited, next_logits
from tests.world import corpus, world

COUNT = 4
LAYERS = (2, 3, 4)


@cache
def facts() -> tuple[Fact, ...]:
    """Facts that both methods can teach; one in ten of the world's needs more than ROME may add."""
    return tuple(world().edits(COUNT, seed=2))


def context(layers: tuple[int, ...]) -> EditContext:
    covariance = covariance_of(world().loaded, corpus(800), layers)
    return EditContext(world().loaded, EditSite(layers, "last"), covariance=covariance, raw=True)


@torch.no_grad()
def said(edits: list[Edit]) -> tuple[list[bool], torch.Tensor]:
    """Whether the likeliest next word of each fact's prompt is the new answer; all logits."""
    loaded = world().loaded
    with edited(loaded, *(edit.brick for edit in edits)):
        logits = next_logits(loaded, [fact.prompt for fact in facts()], raw=True)
    targets = [answer_ids(loaded, fact.prompt, fact.target, raw=True)[0] for fact in facts()]
    return (logits.argmax(1) == torch.tensor(targets)).tolist(), logits


def test_revoking_one_of_a_sequence_restores_that_fact_and_keeps_the_others(tmp_path: Path) -> None:
    here = context(LAYERS[1:2])
    ledger = Ledger.create(tmp_path / "ledger", world().loaded.base.fingerprint)
    for fact in facts():
        acting = ledger.active()
        with edited(world().loaded, *(edit.brick for edit in acting)):
            asked = Asked("rome", depends_on=tuple(edit.brick.hash for edit in acting))
            ledger.add(plan_edit(here, [fact], asked))
    before, _ = said([])
    assert before == [False] * COUNT
    assert said(ledger.active())[0] == [True] * COUNT
    assert [entry.id for entry in ledger.dependents("0001-rome")] == [
        "0002-rome", "0003-rome", "0004-rome",
    ]  # fmt: skip
    ledger.revoke("0002-rome")
    assert said(ledger.active())[0] == [True, False, True, True]
    for entry in ledger.entries:
        ledger.disable(entry.id)
    assert torch.equal(said(ledger.active())[1], said([])[1])


def test_revoking_one_fact_of_a_batch_restores_it_and_keeps_the_others() -> None:
    edit = plan_edit(context(LAYERS), facts(), Asked("memit"))
    assert said([edit])[0] == [True] * COUNT
    for number, fact in enumerate(facts()):
        rest = without_facts(edit, [fact.id])
        assert said([rest])[0] == [other != number for other in range(COUNT)]
