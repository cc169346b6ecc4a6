"""The ledger: what it says is what acts, and every edit can be taken back."""

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from string import ascii_lowercase

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brickwork.brick.configuration import BrickUse, Configuration
from brickwork.brick.peft import to_peft
from brickwork.runtime.configured import ConfiguredModel
from brickwork.update import ledger_edits, ledger_mend
from brickwork.update.edit import Edit, keys_of
from brickwork.update.edit_folder import read_edit
from brickwork.update.ledger import Ledger
from brickwork.update.ledger_folder import Entry, LedgerDocument, read_document
from brickwork.update.ledger_mend import verify_ledger
from brickwork.update.parts import without_facts
from tests.ledger_children import add_at_once, deeds, kill_at_steps, prepare, state_of
from tests.served import loaded
from tests.sham_edits import FINGERPRINT, SITES, edit_of, entry_edit, linear_edit, taught
from tests.store_children import context, said

PROMPT = [5, 9, 2, 40, 7, 7, 31]
# Rotary positions, transposed maps, rows and tokens in one axis.
FAMILIES = ("llama", "gpt2", "opt")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty ledger."""
    return Ledger.create(tmp_path / "ledger", FINGERPRINT)


@cache
def edits_for(family: str) -> tuple[Edit, ...]:
    """Four edits of the family's tiny model, one of them with three facts."""
    base = loaded(family).base
    sites = [site.path for site in base.sites.values() if site.address.endswith("mlp.down")]
    facts = (("sky",), ("sea", "sun", "moon"), ("star",), ("moss",))
    return tuple(
        linear_edit(ids, seed, base=base, sites=sites) for seed, ids in enumerate(facts, 1)
    )


def logits(family: str, edits: list[Edit]) -> Tensor:
    """What the tiny model says with these edits, and nothing else, in its configuration."""
    model = ConfiguredModel(loaded(family))
    uses = []
    for number, edit in enumerate(edits):
        model.add(edit.brick, f"edit-{number}")
        uses.append(BrickUse(name=f"edit-{number}"))
    (found,) = model.logits([PROMPT], [Configuration(bricks=tuple(uses))])
    return found


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8)
@given(gone=st.integers(0, 3))
def test_taking_one_out_is_as_if_it_had_never_been_there(family: str, gone: int) -> None:
    edits = edits_for(family)
    rest = [edit for number, edit in enumerate(edits) if number != gone]
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder, "ledger"), loaded(family).base.fingerprint)
        ids = [ledger.add(edit).id for edit in edits]
        every = logits(family, ledger.active())
        assert torch.equal(every, logits(family, list(edits)))
        ledger.disable(ids[gone])
        assert torch.equal(logits(family, ledger.active()), logits(family, rest))
        ledger.apply(ids[gone])
        assert torch.equal(logits(family, ledger.active()), every)
        ledger.revoke(ids[gone])
        left = logits(family, Ledger.open(ledger.folder).active())
        assert torch.equal(left, logits(family, rest))
        assert (left - every).abs().max() > 1e-3  # it did something


@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_out_the_base_is_itself_to_the_bit(family: str, tmp_path: Path) -> None:
    with torch.no_grad():
        before = loaded(family).model(torch.tensor([PROMPT])).logits[0]
    ledger = Ledger.create(tmp_path / "ledger", loaded(family).base.fingerprint)
    for number, edit in enumerate(edits_for(family)):
        entry = ledger.add(edit)
        logits(family, ledger.active())
        ledger.disable(entry.id) if number % 2 else ledger.revoke(entry.id)
    assert ledger.active() == []
    assert torch.equal(logits(family, ledger.active()), before)


@pytest.mark.parametrize("fact", ["sea", "sun", "moon"])
def test_one_fact_of_many_goes_and_the_others_stay_to_the_bit(fact: str, tmp_path: Path) -> None:
    one, many, *more = edits_for("llama")
    ledger = Ledger.create(tmp_path / "ledger", one.record.base)
    ids = [ledger.add(edit).id for edit in (one, many, *more)]
    ledger.revoke(ids[1], fact)
    stay = [n for n, f in enumerate(many.record.facts) if f.id != fact]
    # scaling is alpha / rank: of an alpha of 1 and 3 ranks, what 2 ranks need is 2 / 3
    chosen = {
        name: tensor[stay] if name.endswith("A") else tensor[:, stay]
        for name, tensor in many.brick.tensors.items()
    }
    facts = [many.record.facts[number] for number in stay]
    base = many.record.base
    never = edit_of(chosen, facts, base=base, options={"alpha": 2 / 3}, owners=(0, 1))
    assert torch.equal(
        logits("llama", Ledger.open(ledger.folder).active()),
        logits("llama", [one, never, *more]),
    )
    assert [entry.id for entry in ledger.entries] == ids


def test_what_is_written_is_read_back(ledger: Ledger) -> None:
    edits = [
        linear_edit(("sky", "sea"), 1, ranks=2),
        entry_edit("codebook", ["sun", "moon"], 2),
        entry_edit("memory", ["star"], 3, method="SERAC 2"),
        linear_edit(("moss",), 4, owners=None, method="ft"),
    ]
    added = [ledger.add(edit) for edit in edits]
    assert [entry.id for entry in added] == ["0001-rome", "0002-rome", "0003-serac-2", "0004-ft"]
    again = Ledger.open(ledger.folder, FINGERPRINT)
    assert again.entries == ledger.entries == tuple(added)
    for edit, entry in zip(edits, added, strict=True):
        back = again.edit(entry.id)
        assert (back.brick, back.record, back.id) == (edit.brick, edit.record, entry.id)
        assert set(back.keys) == set(edit.keys)
        assert all(torch.equal(back.keys[site], keys) for site, keys in edit.keys.items())
    assert verify_ledger(ledger.folder) == []
    earlier = keys_of(again.active())
    assert {site: len(keys) for site, keys in earlier.items()} == dict.fromkeys(SITES, 3)


def test_a_linear_edit_lies_there_as_a_peft_adapter(ledger: Ledger) -> None:
    edit = linear_edit(("sky", "sea"))
    entry = ledger.add(edit)
    adapter = ledger.folder / entry.id / "brick"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config == json.loads(json.dumps(to_peft(edit.brick)[0]))


def test_says_what_was_planned_on_top_of_what(ledger: Ledger) -> None:
    first, second = linear_edit(("sky", "sea"), 1, method="memit"), linear_edit(("sun",), 2)
    ids = [ledger.add(first).id, ledger.add(second, "disabled").id]
    acting = tuple(edit.brick.hash for edit in ledger.active())
    third = ledger.add(linear_edit(("moon",), 3, depends_on=acting))
    assert ledger.after(third.id) == ["0001-memit"]
    assert ledger.dependents(ids[0]) == [third]
    assert ledger.dependents(ids[1]) == []
    # Hashes of what an edit was before a fact went, and of edits that are revoked, are known.
    ledger.revoke("0001-memit", "sky")
    fourth = ledger.add(linear_edit(("star",), 4, depends_on=acting))
    ledger.revoke("0001-memit")
    fifth = ledger.add(linear_edit(("moss",), 5, depends_on=acting))
    assert ledger.after(fourth.id) == ledger.after(fifth.id) == ["0001-memit"]
    assert verify_ledger(ledger.folder) == []


def test_nothing_is_lost_without_a_line(ledger: Ledger) -> None:
    batch, one = linear_edit(("sky", "sea", "sun"), 1), linear_edit(("moon",), 2)
    ledger.add(batch)
    ledger.add(one)
    ledger.revoke("0001-rome", "sea")
    ledger.revoke("0002-rome", "moon")  # its only fact: the edit goes
    ledger.revoke("0001-rome")
    lines = Ledger.open(ledger.folder).history
    assert [(line.id, line.facts, line.whole) for line in lines] == [
        ("0001-rome", ("sea",), False),
        ("0002-rome", ("moon",), True),
        ("0001-rome", ("sky", "sun"), True),
    ]
    assert [line.hash for line in lines] == [
        batch.brick.hash, one.brick.hash, without_facts(batch, ["sea"]).brick.hash,
    ]  # fmt: skip
    assert lines[0].when <= lines[1].when <= lines[2].when
    assert sorted(path.name for path in ledger.folder.iterdir()) == ["ledger.json", "lock"]
    assert ledger.add(linear_edit(("star",), 3)).id == "0003-rome"  # a number is not given twice


def test_says_which_facts_are_taught(ledger: Ledger) -> None:
    ledger.add(linear_edit(("sky", "sea"), 1))
    ledger.add(linear_edit(("sun",), 2), "disabled")
    changed = linear_edit(("sky",), 3)
    record = changed.record.model_copy(update={"facts": (taught("sky", "red"),)})
    ledger.add(Edit(changed.brick, record, changed.keys))
    found = ledger.taught()
    assert {id: fact.target for id, fact in found.items()} == {
        "sky": "red", "sea": "blue", "sun": "blue",
    }  # fmt: skip


def test_another_process_sees_and_is_seen(ledger: Ledger) -> None:
    other = Ledger.open(ledger.folder)
    ledger.add(linear_edit(("sky", "sea"), 1))
    assert other.entries == ()
    other.add(linear_edit(("sun",), 2))
    assert [entry.id for entry in other.entries] == ["0001-rome", "0002-rome"]
    other.revoke("0001-rome", "sky")
    ledger.disable("0002-rome")
    assert [fact.id for fact in ledger.edit("0001-rome").record.facts] == ["sea"]
    assert state_of(ledger.folder) == [
        ("0001-rome", "applied", ("sea",)),
        ("0002-rome", "disabled", ("sun",)),
    ]


def test_processes_that_add_at_once_wait_for_each_other(ledger: Ledger) -> None:
    child(add_at_once, ledger.folder, 3, 4)
    assert len(Ledger.open(ledger.folder).taught()) == len(state_of(ledger.folder)) == 12
    assert verify_ledger(ledger.folder) == []


def test_outlives_being_killed_at_some_steps(tmp_path: Path) -> None:
    outlive(tmp_path, range(3, 200, 13))


@pytest.mark.slow
def test_outlives_being_killed_at_every_step(tmp_path: Path) -> None:
    outlive(tmp_path, range(200))


def outlive(root: Path, stops: Sequence[int]) -> None:
    """Kill a process at these steps, and find the state before or after each change."""
    prepare(root / "prepared")
    undisturbed = Path(shutil.copytree(root / "prepared", root / "undisturbed"))
    states = [state_of(undisturbed), *(state_of(undisturbed) for _ in deeds(undisturbed))]
    child(kill_at_steps, root, stops)
    for stop in stops:
        folder, log = root / f"killed-{stop}", root / f"log-{stop}"
        acknowledged = len(said(log, "done"))
        assert verify_ledger(folder) == []
        assert state_of(folder) in states[acknowledged : acknowledged + 2]
        Ledger.open(folder).add(linear_edit(("fresh",), 9))
        assert state_of(folder)[-1][1:] == ("applied", ("fresh",))
        assert not list(folder.glob(".*"))
    assert not said(root / f"log-{stops[0]}", "steps")
    assert said(root / f"log-{stops[-1]}", "steps")  # all of it was tried


def child(work: Callable[..., None], *arguments: object) -> None:
    """Do something in a process that has one thread, and may fork."""
    process = context().Process(target=work, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_leaves_folders_alone_that_it_does_not_know(ledger: Ledger) -> None:
    ledger.add(linear_edit(("sky",), 1))
    before = (ledger.folder / "ledger.json").read_bytes()
    ledger.add(linear_edit(("sea",), 2))
    (ledger.folder / "ledger.json").write_bytes(before)  # an old copy of the file put back
    again = Ledger.open(ledger.folder)
    assert again.add(linear_edit(("sun",), 3)).id == "0003-rome"
    assert read_edit(ledger.folder / "0002-rome").record.facts == (taught("sea"),)


def test_an_edit_that_came_again_is_told_from_its_first_time(ledger: Ledger) -> None:
    first = linear_edit(("sky",), 1)
    on_top = (first.brick.hash,)
    ledger.add(first)
    ledger.add(linear_edit(("sea",), 2, depends_on=on_top))
    ledger.revoke("0001-rome")
    ledger.add(first)
    ledger.add(linear_edit(("sun",), 3, depends_on=on_top))
    assert ledger.after("0002-rome") == ["0001-rome"]
    assert ledger.after("0004-rome") == ["0003-rome"]
    assert [entry.id for entry in ledger.dependents("0003-rome")] == ["0004-rome"]


def test_the_ledger_s_file_does_not_grow_with_what_edits_were_planned_on(ledger: Ledger) -> None:
    for seed in range(3):
        ledger.add(linear_edit((f"fact {seed}",), seed))
    sizes = [len((ledger.folder / "ledger.json").read_bytes())]
    acting = tuple(edit.brick.hash for edit in ledger.active())
    for seed, below in ((3, acting), (4, ())):
        ledger.add(linear_edit((f"fact {seed}",), seed, depends_on=below))
        sizes.append(len((ledger.folder / "ledger.json").read_bytes()))
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]


def test_what_another_process_takes_away_while_it_is_verified_is_not_wrong(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add(linear_edit(("sky", "sea"), 1))
    ledger.add(linear_edit(("sun",), 2))
    document = read_document(ledger.folder)
    ledger.revoke("0001-rome", "sky")
    ledger.revoke("0002-rome")
    answers = iter([document])  # what it says at first
    monkeypatch.setattr(
        ledger_mend, "read_document", lambda folder: next(answers, None) or read_document(folder)
    )
    assert verify_ledger(ledger.folder) == []


def test_opening_ends_though_another_process_goes_on_changing_the_ledger(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(5):
        ledger.add(linear_edit([f"{name} {seed}" for name in ascii_lowercase], seed))
    read, count = ledger_edits._read, itertools.count(1)

    def read_late(folder: Path, document: LedgerDocument, entry: Entry) -> Edit:
        """Every fourth edit is read when a fact of it has just been taken out."""
        if next(count) % 4 == 0:
            ledger.revoke(entry.id, ledger.edit(entry.id).record.facts[0].id)
        return read(folder, document, entry)

    monkeypatch.setattr("brickwork.update.ledger_edits._read", read_late)
    opened = Ledger.open(ledger.folder)
    assert opened.entries == ledger.entries
    assert any(entry.revision for entry in opened.entries)
