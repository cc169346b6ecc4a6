"""``brickwork edit``: from facts to a ledger, and to a checkpoint that transformers loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer

from brickwork.cli.edit import edit
from brickwork.cli.ledger import ledger
from brickwork.cli.run import run
from brickwork.errors import BrickworkError
from brickwork.update.facts import Fact
from brickwork.update.ledger import Ledger
from tests.world import FOLDER, corpus, world

MODEL = str(FOLDER)
FACTS = world().edits(3)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with facts and texts, and a home of its own."""
    monkeypatch.setenv("BRICKWORK_HOME", str(tmp_path / "home"))
    lines = [json.dumps(written(fact)) for fact in FACTS]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    (tmp_path / "texts.txt").write_text("\n\n".join(corpus()))
    return tmp_path


def written(fact: Fact) -> dict[str, str]:
    names = ("id", "subject", "prompt", "target", "target_true", "relation")
    return {name: getattr(fact, name) for name in names}


def invoke(command: Any, *words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def edited(place: Path, *words: object) -> dict[str, Any]:
    """What the command says of these facts, with a ledger."""
    result = invoke(
        edit,
        MODEL,
        "--edits",
        place / "facts.jsonl",
        "--ledger",
        place / "ledger",
        *words,
        "--json",
    )
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def answer(prompt: str, place: Path, *words: object) -> str:
    result = invoke(
        run, prompt, "--model", MODEL, "--bricks", "", "--max-new-tokens", 1, "--json",
        "--edits", place / "ledger", *words,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return str(json.loads(result.stdout)["answer"]).strip()


def test_one_fact_is_taught_run_and_switched_off(place: Path) -> None:
    fact = FACTS[0]
    one = ("--prompt", fact.prompt, "--subject", fact.subject, "--target", fact.target)
    result = invoke(edit, MODEL, *one, "--method", "grace", "--ledger", place / "ledger", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    id = fact.subject.lower().replace(" ", "-")
    assert (document["asked"], document["holds"]) == (1, {id: True})
    assert document["edits"][0]["id"] == "0001-grace"
    assert answer(fact.prompt, place) == fact.target
    assert invoke(ledger, "disable", place / "ledger", "0001-grace").exit_code == 0
    assert answer(fact.prompt, place) == fact.target_true


def test_rome_finds_its_place_keeps_its_statistics_and_bakes(place: Path) -> None:
    words = ("--method", "rome", "--data", place / "texts.txt", "-o", place / "out")
    document = edited(place, *words, "--only", FACTS[1].id, "--only", FACTS[0].id)
    assert [one["facts"] for one in document["edits"]] == [[FACTS[1].id], [FACTS[0].id]]
    assert document["located"]
    assert document["site"].endswith("@last")  # where this model recalls
    assert document["statistics"]["data"] == "texts.txt"
    assert document["baked"]["facts"] == 2
    kept = list((place / "home" / "statistics").iterdir())
    again = edited(place, *words[:4], "--site", document["site"])
    assert [one["id"] for one in again["skipped"]] == [FACTS[0].id, FACTS[1].id]
    done = [id for one in again["edits"] for id in one["facts"]]
    assert [*done, *(one["id"] for one in again["failed"])] == [FACTS[2].id]
    assert again["statistics"] == document["statistics"]
    assert list((place / "home" / "statistics").iterdir()) == kept
    assert str(place) not in (place / "out" / "brickwork_edits.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(place / "out")
    tokenizer = AutoTokenizer.from_pretrained(place / "out")
    for fact in FACTS[:2]:
        ids = torch.tensor([tokenizer(fact.prompt).input_ids])
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == fact.target
    assert model.dtype == torch.bfloat16


def test_statistics_of_too_few_tokens_are_told(place: Path) -> None:
    (place / "few.txt").write_text("\n\n".join(corpus(4)))
    result = invoke(
        edit, MODEL, "--edits", place / "facts.jsonl", "--first", 1, "--site", "layers.3@last",
        "--data", place / "few.txt", "--ledger", place / "ledger", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    tokens = json.loads(result.stdout)["statistics"]["tokens"]
    assert f"statistics of {tokens} tokens say little of 256 neurons" in result.stderr


def test_a_dry_run_tells_and_writes_nothing(place: Path) -> None:
    words = ("--method", "memit", "--data", place / "texts.txt", "--batch", 2, "--dry-run")
    document = edited(place, *words)
    assert [len(one["facts"]) for one in document["edits"]] == [2, 1]
    assert document["located"]
    # Three layers of 256 neurons, in float32.
    assert document["statistics_bytes"] == 3 * 4 * 256**2
    assert sorted(path.name for path in place.iterdir()) == ["facts.jsonl", "texts.txt"]
    shown = invoke(edit, MODEL, "--edits", place / "facts.jsonl", *words)
    assert "3 of 3 facts would be taught by memit, in 2 edits" in shown.output
    assert "statistics of that place are measured once" in shown.output


def test_facts_that_fail_are_told_one_by_one(place: Path) -> None:
    records = [written(FACTS[0]), {**written(FACTS[1]), "subject": "Nobody"},
               {**written(FACTS[2]), "target": FACTS[2].target_true}]  # fmt: skip
    (place / "facts.jsonl").write_text("\n".join(map(json.dumps, records)))
    document = edited(place, "--method", "grace")
    assert [one["id"] for one in document["failed"]] == [FACTS[1].id]
    assert [one["id"] for one in document["skipped"]] == [FACTS[2].id]
    shown = invoke(
        edit, MODEL, "--edits", place / "facts.jsonl", "--method", "grace",
        "--ledger", place / "another",
    )  # fmt: skip
    assert f"failed {FACTS[1].id}: the subject 'Nobody' was looked for" in shown.output
    assert "1 of 3 facts taught by grace; the model says 1 of them" in shown.output


def test_what_is_taught_but_not_said_is_told_each_time(place: Path) -> None:
    # Four small steps make the answer likelier (0.18), and another one stays the likeliest.
    words = ("--edits", place / "facts.jsonl", "--method", "ft", "--site", "layers.3@last", "--set",
             "steps=4", "--set", "lr=0.06", "--first", 1, "--ledger", place / "ledger")  # fmt: skip
    lost = f"{FACTS[0].id}: taught, but the model says the old answer still"
    for count, tail in enumerate(("1 of 1 facts taught by ft;", "taught by ft, and 1 before;")):
        shown = invoke(edit, MODEL, *words)
        assert shown.exit_code == 0, shown.output
        assert lost in shown.output
        assert f"{tail} the model says 0 of them" in shown.output
        assert ("0001-ft teaches it already" in shown.output) == bool(count)
    assert edited(place, *words[2:-4], "--first", 1)["holds"] == {FACTS[0].id: False}


def test_an_answer_that_is_gone_is_told_from_one_that_is_still_there(place: Path) -> None:
    words = ("--edits", place / "facts.jsonl", "--only", FACTS[1].id, "--ledger", place / "ledger")
    silent = ("--set", "share=0.01", "--set", "threshold=0.02")  # many neurons
    shown = invoke(edit, MODEL, *words, "--method", "knowledge-neurons", *silent)
    assert f"{FACTS[1].id}: taught, but the model says neither it nor the old" in shown.output


def test_nothing_taught_is_no_success(place: Path) -> None:
    one = ("--prompt", FACTS[0].prompt, "--subject", FACTS[0].subject, "--method", "ft")
    with pytest.raises(BrickworkError, match=r"none of 1 facts could be taught by ft:.*\n.*no tok"):
        refuse(*one, "--target", "", "--ledger", place / "ledger")
    said = str(FACTS[0].target_true)
    with pytest.raises(BrickworkError, match=f"no edit acts:.*\n.*the model says '{said}' alread"):
        refuse(*one, "--target", said, "-o", place / "out")
    assert not (place / "out").exists()


def test_a_contradiction_is_refused_and_can_replace_the_older_fact(place: Path) -> None:
    words = ("--method", "grace", "--first", 1)
    edited(place, *words)
    changed = {**written(FACTS[0]), "id": "new", "target": FACTS[0].target_true}
    (place / "facts.jsonl").write_text(json.dumps(changed))
    with pytest.raises(BrickworkError, match=r"revoke the fact .* of 0001-grace.*\n.*--replace"):
        refuse("--edits", place / "facts.jsonl", "--ledger", place / "ledger", *words)
    given = ("--edits", place / "facts.jsonl", "--ledger", place / "ledger")
    shown = invoke(edit, MODEL, *given, *words, "--replace", "--dry-run").output
    assert f"the fact {FACTS[0].id!r} of 0001-grace gives way to the new one" in shown
    assert "contradiction" not in shown
    document = edited(place, *words, "--replace")
    assert document["replaced"] == [["0001-grace", FACTS[0].id]]
    states = [entry.state for entry in Ledger.open(place / "ledger").entries]
    assert states == ["disabled", "applied"]


def test_a_checkpoint_is_refused_before_work_if_older_edits_cannot_be_in_it(place: Path) -> None:
    edited(place, "--method", "grace", "--first", 1)
    words = ("--edits", place / "facts.jsonl", "--ledger", place / "ledger", "-o", place / "out")
    with pytest.raises(BrickworkError, match="is of the form codebook"):
        refuse(*words, "--data", place / "texts.txt")
    assert len(Ledger.open(place / "ledger").entries) == 1


def refuse(*words: object) -> None:
    result = invoke(edit, MODEL, *words)
    assert result.exception is not None, result.output
    raise result.exception


ONE = ("--prompt", FACTS[0].prompt, "--subject", FACTS[0].subject, "--target", FACTS[0].target)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no facts were given: name a file with --edits, or one fact .--prompt, --subject"),
        (ONE[:4], r"or one fact \(--target is missing\)"),
        (ONE, "there is nowhere to write to; name a folder for the edits"),
        ((*ONE, "--first", 2, "--dry-run"), "--first has no effect on the one fact"),
        (("--edits", "FACTS", *ONE[:2]), "--prompt has no effect on the facts of --edits"),
        ((*ONE, "--ledger", "L"), "an edit by rome needs texts .* or statistics with --statistics"),
        ((*ONE, "--method", "grace", "-o", "O"), "an edit by grace is a codebook"),
        ((*ONE, "--method", "grace", "--ledger", "L", "--tokens", 9), "--tokens has no effect on"),
        (("--edits", "FACTS", "--train", "FACTS", "--dry-run"), "--train has no effect on an edit"),
        ((*ONE, "--method", "gracr", "--dry-run"), "did you mean 'grace'"),
        ((*ONE, "--set", "step=3", "--dry-run"), "no option of rome is called 'step'"),
        ((*ONE, "--set", "steps", "--dry-run"), "'steps' is no option with a value"),
        ((*ONE, "--set", "steps=0", "--dry-run"), "the options of rome are not valid: steps"),
        ((*ONE, "--set", "lr=1e999", "--dry-run"), "the options of rome are not valid: lr is inf"),
        ((*ONE, "--site", "layers.1-2", "--dry-run"), "by rome is made in one layer, but"),
        ((*ONE, "--site", "layers.7@last", "--dry-run"), "names layer 7, but world_model has 6"),
        ((*ONE, "--site", "layers.1@lost", "--dry-run"), "did you mean 'last'"),
        ((*ONE, "--site", "1@last", "--dry-run"), "is no place to edit; write layers"),
        ((*ONE, "--batch", 2, "--dry-run"), "edits of 2 facts were asked of rome"),
        (("--edits", "FACTS", "--only", "nobody", "--dry-run"), "no fact in .* is called 'nobody'"),
        ((*ONE, "--template", "no", "--dry-run"), "has 0 places for the prompt"),
    ],
)  # fmt: skip
def test_refuses_before_it_works(place: Path, words: tuple[object, ...], message: str) -> None:
    places = {"FACTS": place / "facts.jsonl", "L": place / "ledger", "O": place / "out"}
    with pytest.raises(BrickworkError, match=message):
        refuse(*(places.get(str(word), word) for word in words))
