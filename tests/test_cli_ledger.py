"""``brickwork ledger``: what is there, switched on and off, taken back, baked and mended."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from brickwork.cli.ledger import ledger
from brickwork.errors import EditError, MergeError, UnknownNameError
from brickwork.model.export import write_checkpoint
from brickwork.model.load import load_model
from brickwork.runtime.configured import ConfiguredModel
from brickwork.update.ledger import Ledger
from tests.bricks import random_brick
from tests.sham_edits import edit_of, linear_edit, taught
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 9, 33, 90, 4]])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A tiny model, and a ledger with an edit of one fact and one of two."""
    write_checkpoint(tiny_model("llama"), tmp_path / "model", tokenizer=tiny_tokenizer())
    base = load_model(str(tmp_path / "model")).base
    kept = Ledger.create(tmp_path / "ledger", base.fingerprint)
    kept.add(linear_edit(["sky"], 1, base=base))
    kept.add(linear_edit(["sea", "sun"], 2, base=base))
    return tmp_path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(ledger, [str(word) for word in words])


def done(*words: object) -> dict[str, Any]:
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_shows_every_edit_with_its_facts(place: Path) -> None:
    document = done("show", place / "ledger")
    assert [(one["id"], one["state"]) for one in document["edits"]] == [
        ("0001-rome", "applied"), ("0002-rome", "applied"),
    ]  # fmt: skip
    assert [fact["id"] for fact in document["edits"][1]["facts"]] == ["sea", "sun"]
    shown = invoke("show", place / "ledger").output
    for word in ("0001-rome", "applied", "layers.1@last", "sky", "blue"):
        assert word in shown


def test_edits_are_switched_and_unknown_ones_change_nothing(place: Path) -> None:
    result = invoke("disable", place / "ledger", "0001-rome", "0002-roem")
    assert isinstance(result.exception, UnknownNameError)
    assert len(Ledger.open(place / "ledger").active()) == 2
    states = [one["state"] for one in done("disable", place / "ledger", "0001-rome")["edits"]]
    assert states == ["disabled", "applied"]
    states = [one["state"] for one in done("apply", place / "ledger", "0001-rome")["edits"]]
    assert states == ["applied", "applied"]


def test_edits_that_do_not_go_together_are_told_before_they_are_applied(place: Path) -> None:
    done("disable", place / "ledger", "0001-rome")
    base = load_model(str(place / "model")).base
    blue = linear_edit(["sky"], 3, base=base)
    green = edit_of(blue.brick.tensors, [taught("sky", "green")], base=base.fingerprint)
    Ledger.open(place / "ledger").add(green)
    result = invoke("apply", place / "ledger", "0001-rome", "--json")
    assert "the fact 'sky' of 0001-rome teaches 'blue' where the fact 'sky' of 0003" in " ".join(
        result.stderr.split()
    )
    assert {one["state"] for one in json.loads(result.stdout)["edits"]} == {"applied"}
    again = invoke("apply", place / "ledger", "0001-rome", "--json")
    assert again.stderr == ""  # it acts already


def test_a_fact_or_a_whole_edit_is_revoked(place: Path) -> None:
    gone = done("revoke", place / "ledger", "0002-rome", "--fact", "sea")
    assert (gone["facts"], gone["whole"]) == (["sea"], False)
    result = invoke("revoke", place / "ledger", "0001-rome")
    assert "revoked edit 0001-rome: sky" in result.output
    shown = invoke("show", place / "ledger").output
    assert "revoked: sea of 0002-rome" in shown
    assert "revoked: 0001-rome" in shown


def test_bakes_the_edits_that_act(place: Path) -> None:
    done("disable", place / "ledger", "0001-rome")
    model = ("--model", place / "model")
    document = done("bake", place / "ledger", *model, "-o", place / "out")
    assert (document["edits"], document["facts"]) == (["0002-rome"], 2)
    loaded = load_model(str(place / "model"))
    edits = Ledger.open(place / "ledger").active()
    with ConfiguredModel(loaded).applied([edit.brick for edit in edits]), torch.no_grad():
        expected = loaded.model(IDS).logits
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(place / "out")(IDS).logits
    # The same products in float32, summed in another order, through two layers.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    record = json.loads((place / "out" / "brickwork_edits.json").read_text())
    assert [one["id"] for one in record["edits"]] == ["0002-rome"]
    assert [fact["id"] for fact in record["edits"][0]["facts"]] == ["sea", "sun"]


def test_refuses_to_bake_what_cannot_be(place: Path) -> None:
    model = ("--model", place / "model")
    result = invoke("bake", place / "ledger", *model, "-o", place / "ledger")
    assert "a model was to be written" in str(result.exception), result.output
    write_checkpoint(tiny_model("llama", seed=1), place / "other", tokenizer=tiny_tokenizer())
    result = invoke("bake", place / "ledger", "--model", place / "other", "-o", place / "out")
    assert isinstance(result.exception, EditError)
    assert "for another base than this one" in str(result.exception)
    done("disable", place / "ledger", "0001-rome", "0002-rome")
    result = invoke("bake", place / "ledger", *model, "-o", place / "out")
    assert isinstance(result.exception, EditError)
    assert "none of the 2 acts; let some act" in str(result.exception)
    base = load_model(str(place / "model")).base
    brick = random_brick("codebook", base, torch.Generator().manual_seed(0))
    moon = edit_of(brick.tensors, [taught("moon")], form="codebook", base=base.fingerprint)
    Ledger.open(place / "ledger").add(moon)
    result = invoke("bake", place / "ledger", *model, "-o", place / "out")
    assert isinstance(result.exception, MergeError)
    assert "is of the form codebook" in str(result.exception)
    assert not (place / "out").exists()


def test_damage_is_told_and_taken_out(place: Path) -> None:
    assert done("verify", place / "ledger") == {"problems": [], "dropped": []}
    (place / "ledger" / "0001-rome" / "edit.json").write_text("{}")
    result = invoke("verify", place / "ledger")
    assert result.exit_code == 1
    assert "0001-rome" in result.output
    dropped = done("verify", place / "ledger", "--drop")
    assert [line["id"] for line in dropped["dropped"]] == ["0001-rome"]
    assert dropped["problems"] == []
