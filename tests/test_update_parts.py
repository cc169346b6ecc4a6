"""One fact out of many: what is left acts as it did, whatever the form."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brickwork.brick.check import problems
from brickwork.brick.forms import effects_of
from brickwork.brick.lora import LoraOptions
from brickwork.errors import EditError, UnknownNameError
from brickwork.update.edit import Edit
from brickwork.update.edit_folder import edit_problems
from brickwork.update.parts import without_facts
from tests.sham_edits import BLOCK, SITES, edit_of, entry_edit, linear_edit, taught

IDS = ("sky", "sea", "sun", "moon")
MANY = {
    "lora": linear_edit(IDS, ranks=2),
    **{form: entry_edit(form, IDS) for form in ("patch", "codebook", "memory")},
}
every_form = pytest.mark.parametrize("form", MANY)
some_ids = st.sets(st.sampled_from(IDS), min_size=1, max_size=len(IDS) - 1)


def delta(edit: Edit, site: str, rows: list[int]) -> torch.Tensor:
    """What chosen ranks of a LoRA add to the matrix at a site, in a plain float64 loop."""
    (add,) = [one for one in effects_of(edit.brick) if one.site == site]
    total = torch.zeros(add.B.shape[0], add.A.shape[1], dtype=torch.float64)
    for row in rows:
        total += add.scaling * add.B[:, row].double()[:, None] * add.A[row].double()
    return total


@every_form
@given(gone=some_ids)
def test_what_stays_is_the_rows_of_the_other_facts(form: str, gone: set[str]) -> None:
    edit = MANY[form]
    rest = without_facts(edit, gone)
    stay = [number for number, id in enumerate(IDS) if id not in gone]
    rows = [row for row, owner in enumerate(edit.record.owners or ()) if owner in stay]
    assert [fact.id for fact in rest.record.facts] == [IDS[number] for number in stay]
    assert rest.record.owners == tuple(n for n in range(len(stay)) for _ in range(2))
    assert edit_problems(rest) == []
    assert rest.brick.hash != edit.brick.hash
    for name, tensor in edit.brick.tensors.items():
        slot = name.rpartition("/")[2]
        where = {"projection": ..., "B": (slice(None), rows)}.get(slot, rows)
        assert torch.equal(rest.brick.tensors[name], tensor[where])
    for site, keys in edit.keys.items():
        assert torch.equal(rest.keys[site], keys[stay])


@given(gone=some_ids)
def test_the_ranks_that_stay_add_what_they_added(gone: set[str]) -> None:
    edit = MANY["lora"]
    rest = without_facts(edit, gone)
    rows = [row for row, owner in enumerate(edit.record.owners or ()) if IDS[owner] not in gone]
    for site in SITES:
        found = delta(rest, site, list(range(len(rows))))
        assert torch.equal(found, delta(edit, site, rows))


@every_form
@given(gone=some_ids)
def test_one_by_one_is_the_same_as_at_once(form: str, gone: set[str]) -> None:
    edit = MANY[form]
    for id in gone:
        edit = without_facts(edit, [id])
    at_once = without_facts(MANY[form], gone)
    assert edit.record == at_once.record
    assert edit.brick.spec.options == at_once.brick.spec.options
    for name, tensor in at_once.brick.tensors.items():
        assert torch.equal(edit.brick.tensors[name], tensor)


@given(st.floats(1e-3, 1e3), st.booleans(), st.lists(st.integers(1, 300), min_size=2, max_size=2))
def test_the_scaling_of_a_lora_stays(alpha: float, rslora: bool, sizes: list[int]) -> None:
    after, before = sorted(sizes)
    tensors = {"h/A": torch.ones(before, 3), "h/B": torch.ones(3, before)}
    options = {"alpha": alpha, "rslora": rslora, "alphas": {}}
    facts = [taught(str(number)) for number in range(before)]
    edit = edit_of(tensors, facts, options=options, owners=tuple(range(before)))
    rest = without_facts(edit, [str(number) for number in range(after, before)])
    scalings = [
        LoraOptions.model_validate(one.brick.spec.options).scaling("h", len(one.record.facts))
        for one in (edit, rest)
    ]
    # Where no alpha divides to the very number, the nearest one is a unit in the last place off.
    assert scalings[1] == pytest.approx(scalings[0], rel=5e-16)


def test_sites_with_an_alpha_of_their_own_keep_their_scaling() -> None:
    tensors = {f"{s}/{slot}": torch.ones(4, 4) for s in ("h", "g") for slot in "AB"}
    options = {"alpha": 8.0, "alphas": {"g": 2.0}}
    facts = [taught(id) for id in IDS]
    edit = edit_of(tensors, facts, options=options, owners=(0, 1, 2, 3))
    rest = without_facts(edit, ["sea"])
    assert [one.scaling for one in effects_of(rest.brick)] == [2.0, 0.5]


def test_the_brick_says_what_it_still_teaches() -> None:
    rest = without_facts(without_facts(MANY["lora"], ["sky"]), ["moon"])
    assert rest.brick.spec.function.text == "The colour of the sea is blue and more"
    assert "moon" not in str(rest.brick.spec.function)
    assert rest.brick.spec.lineage.arguments["without"] == ["sky", "moon"]
    assert rest.brick.spec.lineage.data == "2 facts"
    assert problems(rest.brick) == []


def test_without_no_fact_an_edit_is_itself() -> None:
    assert without_facts(MANY["patch"], []) is MANY["patch"]


def test_refuses_a_fact_that_the_edit_does_not_teach() -> None:
    with pytest.raises(UnknownNameError, match=r"no fact of edit .* 'sum'; did you mean 'sun'"):
        without_facts(MANY["lora"], ["sum"])


def test_refuses_where_rows_serve_several_facts() -> None:
    edit = linear_edit(IDS, owners=None, method="ft")
    with pytest.raises(EditError, match="what ft writes serves its 4 facts together; revoke the"):
        without_facts(edit, ["sky"])


def test_refuses_to_leave_nothing() -> None:
    with pytest.raises(EditError, match=r"4 facts shall be taken out .* revoke the whole edit"):
        without_facts(MANY["codebook"], IDS)
    tensors = {f"{BLOCK}/{slot}": torch.ones(1, 8) for slot in ("key", "value")}
    facts = [taught("sky"), taught("sea")]
    one = edit_of(tensors | {f"{BLOCK}/bias": torch.ones(1)}, facts, form="patch", owners=(0,))
    with pytest.raises(EditError, match=r"the fact 'sky' shall be taken out .* does nothing for"):
        without_facts(one, ["sky"])


def test_the_order_of_facts_stays() -> None:
    rest = without_facts(MANY["lora"], ["sea"])
    places = [IDS.index(fact.id) for fact in rest.record.facts]
    assert all(first < second for first, second in pairwise(places))
