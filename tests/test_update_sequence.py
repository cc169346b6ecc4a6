"""Sequences of edits: one on top of the other, kept as each is done, and what they replace."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brickwork.errors import ConfigurationError, EditError
from brickwork.runtime.configured import ConfiguredModel
from brickwork.update.facts import Fact
from brickwork.update.ledger import Ledger
from brickwork.update.method import EditContext, EditSite
from brickwork.update.methods import find_edit_method
from brickwork.update.plan import Asked
from brickwork.update.sequence import (
    Prepared,
    Taught,
    batches_of,
    holds,
    prepare_facts,
    teach_facts,
)
from tests.world import world

LOADED = world().loaded
SERVING = ConfiguredModel(LOADED).applied
CONTEXT = EditContext(LOADED, EditSite((4,), "last"), raw=True)
ASKED = Asked("grace")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger", LOADED.base.fingerprint)


def prepared(ledger: Ledger | None, facts: Sequence[Fact], *, replacing: bool = False) -> Prepared:
    return prepare_facts(LOADED, facts, ledger, SERVING, raw=True, replacing=replacing)


def teach(
    ledger: Ledger, facts: Sequence[Fact], batch: int | None = 1, *, replacing: bool = False
) -> list[Taught]:
    found = prepared(ledger, facts, replacing=replacing)
    batches = batches_of(find_edit_method("grace"), found.facts, batch)
    return list(teach_facts(batches, found, ledger, SERVING, context=CONTEXT, asked=ASKED))


def facts_of(ledger: Ledger) -> list[list[str]]:
    return [[fact.id for fact in edit.record.facts] for edit in ledger.active()]


def test_each_edit_is_planned_while_the_earlier_ones_act(ledger: Ledger) -> None:
    facts = world().edits(3)
    before = {name: p.clone() for name, p in LOADED.model.named_parameters()}
    teach(ledger, facts)
    assert facts_of(ledger) == [[fact.id] for fact in facts]
    hashes = [edit.brick.hash for edit in ledger.active()]
    for number, edit in enumerate(ledger.active()):
        assert list(edit.record.depends_on) == hashes[:number]
    found = prepared(None, facts)
    assert all(holds(LOADED, found.facts, ledger, SERVING).values())
    for name, parameter in LOADED.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_a_run_that_was_stopped_goes_on_where_it_was(ledger: Ledger) -> None:
    facts = world().edits(3)
    found = prepared(ledger, facts)
    batches = batches_of(find_edit_method("grace"), found.facts, 1)
    running = teach_facts(batches, found, ledger, SERVING, context=CONTEXT, asked=ASKED)
    next(running)
    running.close()
    assert facts_of(ledger) == [[facts[0].id]]
    again = prepared(Ledger.open(ledger.folder), facts)
    assert [one.fact.id for one in again.facts] == [fact.id for fact in facts[1:]]
    assert again.skipped[0].reason == "0001-grace teaches it already."
    assert [one.fact.id for one in again.known] == [facts[0].id]
    teach(ledger, facts)
    assert facts_of(ledger) == [[fact.id] for fact in facts]
    assert teach(ledger, facts) == []
    ledger.disable("0002-grace")
    assert len(prepared(ledger, facts).known) == 2
    assert "0002-grace teaches it already, which is disabled: apply it." in {
        one.reason for one in prepared(ledger, facts).skipped
    }


def test_facts_come_in_batches() -> None:
    facts = prepared(None, world().edits(5)).facts
    many, one = find_edit_method("grace"), find_edit_method("rome")
    assert [len(b) for b in batches_of(many, facts, None)] == [5]
    assert [len(b) for b in batches_of(many, facts, 2)] == [2, 2, 1]
    assert [len(b) for b in batches_of(one, facts, None)] == [1] * 5
    assert batches_of(many, (), None) == []
    with pytest.raises(ConfigurationError, match="edits of 2 facts were asked of rome"):
        batches_of(one, facts, 2)


def test_failures_are_told_one_by_one_and_progress_counts_every_fact(ledger: Ledger) -> None:
    first, second = world().edits(2)
    # The block reads the same for both, so that the second cannot have another answer.
    twin = replace(first, id="twin", target=second.target, relation="another")
    lost = replace(first, id="lost", subject="Nobody")
    done: list[float] = []
    found = prepared(ledger, [first, lost])
    assert [one.id for one in found.failures] == ["lost"]
    context = replace(CONTEXT, advance=done.append)
    batches = [list(prepared(None, [first]).facts), list(prepared(None, [twin]).facts)]
    (one, two) = teach_facts(
        batches, found, ledger, SERVING, context=context,
        asked=replace(ASKED, options={"steps": 1, "lead": 50.0}),
    )  # fmt: skip
    assert (one.edit, two.edit) == (None, None)
    assert [[f.id for f in taught.failures] for taught in (one, two)] == [[first.id], ["twin"]]
    assert sum(done) == 2
    assert ledger.entries == ()


def test_a_fact_that_contradicts_an_older_one_is_refused_or_takes_its_place(
    ledger: Ledger,
) -> None:
    facts = world().edits(3)
    teach(ledger, facts[:1])
    teach(ledger, facts[1:], None)
    alone = replace(facts[0], id="new-0", target=facts[1].target)
    among = replace(facts[1], id="new-1", target=facts[0].target)
    with pytest.raises(EditError, match="facts contradict others") as failure:
        teach(ledger, [alone, among])
    assert "0001-grace" in str(failure.value)
    assert "(--replace)" in str(failure.value)
    assert len(ledger.entries) == 2
    found = prepared(ledger, [alone, among], replacing=True)
    assert found.replaced == {
        "new-0": (("0001-grace", facts[0].id),),
        "new-1": (("0002-grace", facts[1].id),),
    }
    teach(ledger, [alone, among], replacing=True)
    assert facts_of(ledger) == [[facts[2].id], ["new-0"], ["new-1"]]
    # The edit that held one fact alone is kept, and can be applied again.
    assert ledger.entry("0001-grace").state == "disabled"
    assert [line.facts for line in ledger.history] == [(facts[1].id,)]
    assert all(holds(LOADED, found.facts, ledger, SERVING).values())


def test_facts_that_contradict_each_other_are_refused_even_when_replacing(ledger: Ledger) -> None:
    fact, other = world().edits(2)
    twin = replace(fact, id="twin", target=other.target)
    with pytest.raises(EditError, match=f"'twin' teaches '{other.target}'") as failure:
        teach(ledger, [fact, twin], replacing=True)
    assert "--replace" not in str(failure.value)  # it would not help
    assert ledger.entries == ()


def test_the_same_fact_once_more_is_passed_over(ledger: Ledger) -> None:
    fact, other = world().edits(2)
    teach(ledger, [other])
    again = [replace(fact, id=f"{fact.id}-{n}", neighbours=()) for n in (2, 3)]
    found = prepared(ledger, [fact, *again, other, replace(other, id="old")])
    assert [one.fact.id for one in found.facts] == [fact.id]
    assert [one.fact.id for one in found.known] == [other.id]
    assert found.conflicts == ()
    reasons = {one.id: one.reason for one in found.skipped}
    assert reasons[again[1].id] == f"it is the fact {fact.id!r} once more."
    assert reasons["old"] == f"it is the fact {other.id!r} once more."


def test_what_a_method_needs_is_asked_for_once(ledger: Ledger) -> None:
    found = prepared(ledger, world().edits(2))
    asked = Asked("memit")
    with pytest.raises(EditError, match="an edit by memit needs covariance"):
        list(teach_facts([found.facts], found, ledger, SERVING, context=CONTEXT, asked=asked))
