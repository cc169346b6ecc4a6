"""Conflicts: who teaches the same, who writes where others read, who claims the same states."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from brickwork.update.conflicts import Conflict, Party, find_conflicts
from brickwork.update.edit import Edit
from brickwork.update.facts import Fact
from brickwork.update.key_damage import damages
from tests.sham_edits import BLOCK, SITES, edit_of, entry_edit, linear_edit, taught


def fact(id: str, target: str = "blue", **fields: str) -> Fact:
    return Fact(**taught(id, target, **fields).model_dump(exclude={"note"}))


def named(conflicts: list[Conflict]) -> list[tuple[str, str, str]]:
    return [(one.kind, one.new.fact, one.old.fact) for one in conflicts]


def in_ledger(edit: Edit, id: str) -> Edit:
    return replace(edit, id=id)


def test_another_answer_to_the_same_question_is_a_contradiction() -> None:
    old = in_ledger(linear_edit(("sky", "sea")), "0001-memit")
    (found,) = find_conflicts(
        [fact("new", "red", subject="The  SKY", prompt="the colour of The  SKY  is")], [old]
    )
    assert (found.kind, found.size) == ("contradiction", 1)
    assert (found.new, found.old) == (Party("new"), Party("sky", "0001-memit"))
    assert found.advice == (
        "the fact 'new' teaches 'red' where the fact 'sky' of 0001-memit teaches 'blue'; revoke "
        "the fact 'sky' of 0001-memit, or leave the fact 'new' out."
    )


def test_the_same_answer_is_a_repetition() -> None:
    (found,) = find_conflicts([fact("sky", " Blue")], [linear_edit()])
    assert found.kind == "repetition"
    assert "as the fact 'sky' of edit (" in found.advice
    assert found.advice.endswith("does already; leave the fact 'sky' out.")


def test_a_relation_s_name_stands_for_its_prompts() -> None:
    old = edit_of(
        {"h/A": torch.ones(1, 2), "h/B": torch.ones(2, 1)},
        [taught("sky", relation="Colour", prompt="Look, the sky is")],
    )
    same = fact("a", "red", subject="the sky", relation="colour")
    other_relation = fact("b", "red", subject="the sky", relation="hue")
    same_prompt = fact("c", "red", subject="The Sky", relation="hue", prompt="look, The Sky is")
    other_subject = fact("d", "red", relation="colour")
    found = find_conflicts([same, other_relation, same_prompt, other_subject], [old])
    assert named(found) == [
        ("contradiction", "a", "sky"), ("contradiction", "c", "sky"), ("repetition", "c", "b"),
    ]  # fmt: skip


def test_facts_of_one_batch_are_compared_with_each_other() -> None:
    batch = [
        fact("sky"),
        fact("sea"),
        fact("sky-2", "red", subject="the sky", prompt="The colour of the sky is"),
    ]
    assert named(find_conflicts(batch, [])) == [("contradiction", "sky-2", "sky")]


def test_the_same_subject_in_another_place_is_another_question() -> None:
    asked = [
        fact("a", "red", subject="Rome", prompt="Rome is north of"),
        fact("b", "blue", subject="Rome", prompt="north of Rome is"),
        fact("c", "blue", subject="", prompt="north of Rome is"),
    ]
    assert find_conflicts(asked, []) == []


def written(edit: Edit, keys: dict[str, Tensor], number: int) -> float:
    """The length of what an edit writes at a fact's keys, over all sites, in float64."""
    total = 0.0
    for site, slots in edit.brick.by_site.items():
        if site in keys:
            alpha = float(str(edit.brick.spec.options["alpha"]))
            matrix = alpha / len(slots["A"]) * slots["B"].double() @ slots["A"].double()
            total += float((matrix @ keys[site][number].double()).square().sum())
    return total**0.5


def loop_damage(writer: Edit, reader: Edit) -> Tensor:
    keys = dict(reader.keys)
    facts = range(len(reader.record.facts))
    return torch.tensor([written(writer, keys, n) / written(reader, keys, n) for n in facts])


def test_damage_equals_a_slow_loop() -> None:
    edits = [
        linear_edit(("sky",), 1),
        linear_edit(("sea", "sun"), 2, ranks=3),
        linear_edit(("moon",), 3, sites=SITES[:1]),
        linear_edit(("star", "moss"), 4, sites=SITES[1:], owners=None),
    ]
    found = damages(edits, edits)
    for number, writer in enumerate(edits):
        expected = torch.cat([loop_damage(writer, reader) for reader in edits])
        # float32 against float64
        torch.testing.assert_close(
            found[number].size, expected, rtol=1e-4, atol=1e-6, check_dtype=False
        )
    own = torch.cat([loop_damage(edit, edit) for edit in edits])
    torch.testing.assert_close(own, torch.ones(6), check_dtype=False)


def at_keys(keys: Tensor, values: Tensor, ids: list[str], **record: object) -> Edit:
    """A linear edit of one site that writes these values at these keys, which are orthonormal."""
    owners = tuple(range(len(ids)))
    tensors = {f"{SITES[0]}/A": keys, f"{SITES[0]}/B": values.T}
    return edit_of(
        tensors,
        [taught(id) for id in ids],
        keys={SITES[0]: keys},
        owners=owners,
        options={"alpha": float(len(ids))},
        **record,
    )


def test_names_the_facts_whose_keys_meet() -> None:
    axes = torch.eye(24)
    old = in_ledger(at_keys(axes[:2], torch.full((2, 8), 0.5), ["sky", "sea"]), "0001-memit")
    mixed = torch.stack([axes[5], (0.8 * axes[1] + 0.6 * axes[6])])
    new = at_keys(mixed, torch.ones(2, 8), ["sun", "moon"])
    (found,) = find_conflicts(new, [old], bound=0.5)
    assert (found.kind, found.new.fact, found.old.fact) == ("interference", "moon", "sea")
    # values twice as long as the old ones, at a cosine of 0.8; the other way round it is 0.4
    assert found.size == pytest.approx(1.6)
    assert "writes 160% of what the fact 'sea' of 0001-memit writes at its key" in found.advice
    assert find_conflicts(new, [old], bound=1.7) == []
    assert named(find_conflicts(old, [new], bound=0.5)) == [("interference", "sea", "moon")]


def test_an_edit_planned_while_another_acted_is_not_harmed_by_it() -> None:
    axes = torch.eye(24)
    strong = at_keys(axes[:1], torch.ones(1, 8), ["sky"])
    key = 0.8 * axes[:1] + 0.6 * axes[1:2]
    apart = at_keys(key, torch.full((1, 8), 0.1), ["sea"])
    (found,) = find_conflicts(apart, [strong], bound=0.5)
    assert found.size == pytest.approx(8)
    assert found.advice.endswith(f"plan {apart.label} again while {strong.label} acts.")
    on_top = at_keys(key, torch.full((1, 8), 0.1), ["sea"], depends_on=(strong.brick.hash,))
    assert find_conflicts(on_top, [strong], bound=0.5) == []


def test_an_edit_whose_facts_share_rows_is_named_as_a_whole() -> None:
    axes = torch.eye(24)
    old = at_keys(axes[:2], torch.ones(2, 8), ["sky", "sea"])
    shared = at_keys(axes[1:3], torch.ones(2, 8), ["sun", "moon"])
    record = shared.record.model_copy(update={"owners": None, "method": "ft"})
    found = find_conflicts(replace(shared, record=record, id="0002-ft"), [old])
    assert found[0].new == Party("", "0002-ft")
    assert found[0].advice.startswith("0002-ft writes 100%")


def test_contradictions_are_not_told_again_as_interference() -> None:
    key = torch.eye(24)[:1]
    old = at_keys(key, torch.ones(1, 8), ["sky"])
    new = at_keys(key, torch.ones(1, 8), ["sky"])
    record = new.record.model_copy(update={"facts": (taught("sky", "red"),)})
    assert named(find_conflicts(replace(new, record=record), [old])) == [
        ("contradiction", "sky", "sky")
    ]


def codebook(keys: list[float], radius: float, ids: list[str], value: float, target: str) -> Edit:
    size = len(keys)
    tensors = {
        f"{BLOCK}/key": torch.tensor(keys)[:, None] * torch.eye(8)[:1],
        f"{BLOCK}/value": torch.full((size, 8), value),
        f"{BLOCK}/radius": torch.full((size,), radius),
    }
    facts = [taught(id, target) for id in ids]
    return edit_of(tensors, facts, form="codebook", owners=tuple(range(size)))


def test_codebooks_that_claim_the_same_states_overlap() -> None:
    old = in_ledger(codebook([0.0, 10.0], 1.0, ["sky", "sea"], 1.0, "blue"), "0001-grace")
    new = codebook([1.5, 12.5], 1.0, ["sun", "moon"], 2.0, "red")
    (found,) = find_conflicts(new, [old])
    assert (found.kind, found.new.fact, found.old.fact) == ("overlap", "sun", "sky")
    assert found.size == pytest.approx(0.25)  # 1.5 apart, of 2 together
    assert "claim the same states, 25% of their radii, for different answers" in found.advice


def test_codebooks_with_the_same_value_or_answer_may_overlap() -> None:
    old = codebook([0.0], 1.0, ["sky"], 1.0, "blue")
    assert find_conflicts(codebook([0.5], 1.0, ["sun"], 1.0, "red"), [old]) == []
    assert find_conflicts(codebook([0.5], 1.0, ["sun"], 2.0, "blue"), [old]) == []


def test_memories_are_compared_under_one_projection_only() -> None:
    old = entry_edit("memory", ["sky"], 1)
    wide = {**old.brick.tensors, f"{BLOCK}/radius": torch.full((2,), 100.0)}
    other = {**wide, f"{BLOCK}/value": torch.zeros(2, 8)}
    facts = [taught("sun", "red")]
    new = edit_of(other, facts, form="memory", owners=(0, 0))
    assert named(find_conflicts(new, [old])) == [("overlap", "sun", "sky")]
    turned = {**other, f"{BLOCK}/projection": torch.ones(3, 8)}
    assert find_conflicts(edit_of(turned, facts, form="memory", owners=(0, 0)), [old]) == []


@pytest.mark.parametrize(("one", "other"), [*product(("lora", "patch", "codebook"), repeat=2)])
def test_edits_of_any_two_forms_can_be_compared(one: str, other: str) -> None:
    def made(form: str, id: str, seed: int) -> Edit:
        return linear_edit((id,), seed) if form == "lora" else entry_edit(form, [id], seed)

    for conflict in find_conflicts(made(one, "sky", 1), [made(other, "sea", 2)], bound=1e3):
        assert one == other == "codebook", conflict


def test_the_worst_comes_first() -> None:
    edits = [linear_edit((f"old {seed}",), seed) for seed in range(20)]
    new = linear_edit(("new", "newer"), 99)
    twice = [fact("old 3", "red"), fact("old 4")]
    assert [one.kind for one in find_conflicts(twice, edits)] == ["contradiction", "repetition"]
    found = find_conflicts(new, edits, bound=0.01)
    assert len(found) > 20
    sizes = [one.size for one in found]
    assert sizes == sorted(sizes, reverse=True)
    assert all(one.size > 0.2 for one in find_conflicts(new, edits, bound=0.2))


def test_a_space_at_the_subject_s_edge_does_not_hide_a_contradiction() -> None:
    old = edit_of(
        {"h/A": torch.ones(1, 2), "h/B": torch.ones(2, 1)},
        [taught("sky", prompt="The colour of the sky is")],
    )
    new = fact("a", "red", subject=" the sky", prompt="The colour of the sky is")
    assert named(find_conflicts([new], [old])) == [("contradiction", "a", "sky")]
