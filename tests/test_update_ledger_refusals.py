"""What a ledger refuses: other bases, damage, unsound edits, and whatever its files claim."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from brickwork.errors import EditError, UnknownNameError
from brickwork.update.edit import Edit
from brickwork.update.edit_folder import write_edit
from brickwork.update.ledger import Ledger
from brickwork.update.ledger_folder import locked
from brickwork.update.ledger_mend import drop_damaged, verify_ledger
from tests.bricks import paper_base
from tests.ledger_children import state_of
from tests.sham_edits import FINGERPRINT, SITES, edit_of, linear_edit, taught


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty ledger."""
    return Ledger.create(tmp_path / "ledger", FINGERPRINT)


def test_refuses_to_wait_for_ever(ledger: Ledger) -> None:
    with (
        locked(ledger.folder),
        pytest.raises(EditError, match=r"another process has been changing .* 0.05 seconds; wait"),
        locked(ledger.folder, patience=0.05),
    ):
        pass


def test_refuses_another_base(ledger: Ledger) -> None:
    other = paper_base(layers=2, weights="weights-2")
    with pytest.raises(
        EditError, match=r"another base than this one:\s+- the base's weights differ"
    ):
        Ledger.open(ledger.folder, other.fingerprint)
    with pytest.raises(EditError, match=r"was to be added .* for another base:[\s\S]*plan it"):
        ledger.add(linear_edit(base=other))


def test_refuses_what_is_no_ledger(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(EditError, match=r"opened as a ledger of edits, but .* has no file"):
        Ledger.open(tmp_path)
    with pytest.raises(EditError, match=r"a ledger was to be written to .* is there already"):
        Ledger.create(ledger.folder, FINGERPRINT)
    (ledger.folder / "ledger.json").write_text("[]")
    assert verify_ledger(ledger.folder)[0].startswith("'")
    with pytest.raises(EditError, match="holds no JSON object"):
        Ledger.open(ledger.folder)


def test_refuses_the_same_edit_twice(ledger: Ledger) -> None:
    ledger.add(linear_edit(), "disabled")
    with pytest.raises(EditError, match=r"already, as 0001-rome \(disabled\); apply that one"):
        ledger.add(linear_edit())


def test_refuses_an_edit_on_top_of_an_unknown_one(ledger: Ledger) -> None:
    edit = linear_edit(depends_on=("ab" * 32,))
    with pytest.raises(EditError, match=r"on top of abababababab, which .* never had; add that"):
        ledger.add(edit)
    assert ledger.entries == ()


def test_refuses_ids_that_it_does_not_have(ledger: Ledger) -> None:
    ledger.add(linear_edit(("sky", "sea")))
    for act in (ledger.apply, ledger.disable, ledger.revoke, ledger.edit, ledger.dependents):
        with pytest.raises(UnknownNameError, match="did you mean '0001-rome'"):
            act("0001-rom")
    with pytest.raises(UnknownNameError, match="fact of 0001-rome is called 'skies'; did you"):
        ledger.revoke("0001-rome", "skies")
    assert state_of(ledger.folder) == [("0001-rome", "applied", ("sky", "sea"))]


def test_refuses_to_part_facts_that_share_rows(ledger: Ledger) -> None:
    ledger.add(linear_edit(("sky", "sea"), owners=None, method="ft"))
    with pytest.raises(EditError, match="what ft writes serves its 2 facts together"):
        ledger.revoke("0001-ft", "sky")
    assert ledger.history == ()


def other_brick(place: Path) -> None:
    """Exchange the edit for a sound one with another brick."""
    shutil.rmtree(place)
    write_edit(linear_edit(("sky",), 8), place)


def edited_record(place: Path) -> None:
    text = (place / "edit.json").read_text()
    (place / "edit.json").write_text(text.replace("blue", "red"))


def edited_keys(place: Path) -> None:
    content = bytearray((place / "keys.safetensors").read_bytes())
    content[-1] ^= 1
    (place / "keys.safetensors").write_bytes(content)


def edited_brick(place: Path) -> None:
    path = place / "brick" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def emptied_prompt(place: Path) -> None:
    document = json.loads((place / "edit.json").read_text())
    document["facts"][0]["prompt"] = ""
    (place / "edit.json").write_text(json.dumps(document))


def linked_record(place: Path) -> None:
    (place / "edit.json").rename(place.parent / "elsewhere.json")
    (place / "edit.json").symlink_to(place.parent / "elsewhere.json")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "the brick in .* has the hash .* but the ledger knows": other_brick,
    "the record in .* has the hash .* but the ledger knows": edited_record,
    "the keys in .* should have the hash": edited_keys,
    "has changed since it was written": edited_brick,
    "leads out of its folder": linked_record,
    "has no file 'edit.json'": shutil.rmtree,
    "has no file 'keys.safetensors'": lambda place: (place / "keys.safetensors").unlink(),
    "facts.0.prompt: String should have at least 1 character": emptied_prompt,
    "is not JSON": lambda place: (place / "edit.json").write_text("{"),
    "layers: Field required": lambda place: (place / "edit.json").write_text("{}"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_refuses_what_is_damaged_until_it_is_dropped(message: str, ledger: Ledger) -> None:
    ledger.add(linear_edit(("sky",), 1))
    kept = ledger.add(linear_edit(("sea",), 2))
    DAMAGE[message](ledger.folder / "0001-rome")
    with pytest.raises(
        EditError, match=rf"is damaged:\s+- 0001-rome: .*{message}[\s\S]*from a copy"
    ):
        Ledger.open(ledger.folder)
    (line,) = verify_ledger(ledger.folder)
    assert line.startswith("0001-rome: ")
    (gone,) = drop_damaged(ledger.folder)
    again = Ledger.open(ledger.folder)
    assert (gone.id, gone.facts, again.entries) == ("0001-rome", (), (kept,))
    assert again.history == (gone,)
    assert verify_ledger(ledger.folder) == []


def test_verifying_looks_at_every_byte(ledger: Ledger) -> None:
    place = ledger.folder / ledger.add(linear_edit(("sky",), 1)).id
    config = place / "brick" / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    (place / "notes.txt").write_text("mine")
    Ledger.open(ledger.folder)  # neither changes what the edit is
    assert verify_ledger(ledger.folder) == [
        "0001-rome: brick/adapter_config.json is of other content",
        "0001-rome: notes.txt does not belong there",
    ]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", "../../etc", "String should match pattern"),
        ("id", "0001-rome/../..", "String should match pattern"),
        ("hash", "abc", "String should match pattern"),
        ("state", "on", "Input should be 'applied' or 'disabled'"),
        ("revision", -1, "greater than or equal to 0"),
        ("path", "/", "Extra inputs are not permitted"),
    ],
)
def test_trusts_nothing_in_the_ledger_s_file(
    field: str, value: object, message: str, ledger: Ledger
) -> None:
    ledger.add(linear_edit())
    path = ledger.folder / "ledger.json"
    document = json.loads(path.read_text())
    document["entries"][0][field] = value
    path.write_text(json.dumps(document))
    with pytest.raises(EditError, match=f"is no ledger of edits: entries.0.*{message}"):
        Ledger.open(ledger.folder)


def test_refuses_numbers_out_of_order(ledger: Ledger) -> None:
    for seed, id in enumerate(("sky", "sea")):
        ledger.add(linear_edit((id,), seed))
    path = ledger.folder / "ledger.json"
    document = json.loads(path.read_text())
    document["entries"].reverse()
    path.write_text(json.dumps(document))
    with pytest.raises(EditError, match="entries are not in the order of their numbers"):
        Ledger.open(ledger.folder)


UNSOUND = {
    "the fact 'sky' is in it 2 times": lambda: linear_edit(("sky", "sky")),
    "has 1 rows, but 2 have owners": lambda: linear_edit(owners=(0, 0)),
    "row 0 is for fact 1, but there are 1 facts": lambda: linear_edit(owners=(1,)),
    "keys at 'h', where its brick has no tensors": lambda: with_keys("h", torch.ones(1, 24)),
    r"keys of shape \[2, 24\], but 1 facts": lambda: with_keys(SITES[0], torch.ones(2, 24)),
    "keys of 5 numbers, but 24 go in": lambda: with_keys(SITES[0], torch.ones(1, 5)),
    "keys that are no finite numbers": lambda: with_keys(SITES[0], torch.full((1, 24), torch.nan)),
    "depends on 'abc', which is no brick's hash": lambda: linear_edit(depends_on=("abc",)),
    "no rows of a brick of the form bias": lambda: edit_of(
        {f"{SITES[0]}/bias": torch.ones(8)}, [taught("sky")], form="bias", owners=(0,)
    ),
    "NaN or infinite": lambda: edit_of(
        {"h/A": torch.full((1, 2), torch.nan), "h/B": torch.ones(2, 1)}, [taught("sky")]
    ),
}


def with_keys(site: str, keys: Tensor) -> Edit:
    """An edit that has these keys alone."""
    edit = linear_edit()
    return Edit(edit.brick, edit.record, {site: keys})


@pytest.mark.parametrize("message", UNSOUND)
def test_refuses_to_write_an_edit_that_is_not_sound(message: str, tmp_path: Path) -> None:
    with pytest.raises(
        EditError, match=rf"is not sound:[\s\S]*{message}[\s\S]*plan the edit again"
    ):
        write_edit(UNSOUND[message](), tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


def test_refuses_more_edits_than_its_file_has_room_for(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(12):  # until it is the longest of all files
        ledger.add(linear_edit((f"fact {seed}",), seed))
    size = (ledger.folder / "ledger.json").stat().st_size
    monkeypatch.setattr("brickwork.brick.files._JSON_LIMIT", size)
    with pytest.raises(EditError, match=r"no room for 13 edits .* Put more facts into one edit"):
        ledger.add(linear_edit(("sea",), 12))
    assert len(Ledger.open(ledger.folder).entries) == 12


def test_follows_no_link_to_its_lock(ledger: Ledger, tmp_path: Path) -> None:
    (ledger.folder / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EditError, match=r"was to be changed, but it cannot be written"):
        ledger.add(linear_edit())
    assert not (tmp_path / "elsewhere").exists()


def test_an_edit_read_before_an_older_ledger_was_put_back_is_read_again(
    ledger: Ledger, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(ledger.folder, tmp_path / "older"))
    ledger.add(linear_edit(("sky",), 1))
    Ledger.open(older).add(linear_edit(("sea",), 2))
    shutil.rmtree(ledger.folder)
    older.rename(ledger.folder)
    ledger.disable("0001-rome")
    assert ledger.edit("0001-rome").record.facts == (taught("sea"),)
