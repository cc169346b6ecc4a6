"""``brickwork evaluate edits``, as a user calls it: on the world model, with an edit that acts."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from brickwork.cli.main import app
from brickwork.errors import BrickworkError, ConfigurationError, EditError
from brickwork.model.load import load_model
from brickwork.report.edits import read_edit_evaluation
from brickwork.update.edit import TaughtFact
from brickwork.update.facts import Fact
from brickwork.update.ledger import Ledger
from tests.sham_edits import edit_of
from tests.world import FOLDER, world

LAYER = "model.layers.3.mlp.down_proj"


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return world().edits(5, neighbours=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, facts: list[Fact]) -> Path:
    """A ledger of an edit of three facts that disturbs the model, files of facts, and data."""
    folder = tmp_path_factory.mktemp("evaluate")
    base = load_model(str(FOLDER), device="cpu", name="world").base.fingerprint
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{LAYER}/A": torch.randn(3, 256, generator=generator),
        f"{LAYER}/B": torch.randn(96, 3, generator=generator),
    }
    names = ("id", "subject", "prompt", "target", "target_true", "relation")
    taught = [TaughtFact(**{name: getattr(fact, name) for name in names}) for fact in facts[:3]]
    Ledger.create(folder / "edits", base).add(edit_of(tensors, taught, base=base))
    write_facts(folder / "facts.jsonl", facts)
    words = ("Ada Stone", "Hugo Snow")
    lines = [
        {"functionality": name, "prompt": f"{who} {verb}", "response": "piano"}
        for name, verb in (("music", "plays the"), ("food", "likes to eat"))
        for who in words
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_facts(path: Path, facts: list[Fact]) -> None:
    path.write_text("".join(json.dumps(asdict(fact)) + "\n" for fact in facts))


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command where the ledger is; with ``--json`` the document, else the text."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "120")
    words = ["evaluate", "edits", str(FOLDER), "--ledger", "edits", "--dtype", "float32"]

    def call(*more: str) -> Any:
        result = CliRunner().invoke(app, [*words, *more], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in more else result.stdout

    return call


def test_a_file_adds_the_prompts_that_the_ledger_lacks(run: Any, facts: list[Fact]) -> None:
    bare = run("--json", "--generate", "0")
    assert bare["score"] is None
    assert bare["paraphrase"]["strict"] is None
    assert bare["fluency"] is None
    full = run("--json", "--facts", "facts.jsonl", "--generate", "2")
    assert [fact["id"] for fact in full["facts"]] == [fact.id for fact in facts[:3]]
    assert full["score"] is not None
    assert full["paraphrase"]["strict"]["prompts"] == sum(len(f.paraphrases) for f in facts[:3])
    assert full["others"]["prompts"] == 2  # the facts of the file that are not edited
    assert full["efficacy"]["strict"] == bare["efficacy"]["strict"]
    assert full["fluency"]["texts"] == 2
    assert full["raw"] is True  # as the edit was planned


def test_the_table_and_the_page_name_the_facts_that_do_not_stick(
    run: Any, facts: list[Fact], tmp_path: Path
) -> None:
    out = tmp_path / "page"
    text = run("--facts", "facts.jsonl", "--data", "data.jsonl", "-o", str(out))
    found = read_edit_evaluation(out)
    assert set(found.perplexity) == {"food", "music"}
    assert found.failed
    for fact in found.failed:
        assert f"did not stick: {fact.id}: {fact.target!r} was to be said" in text
        assert fact.id in (out / "evaluation.html").read_text("utf-8")
    assert "neighbourhood, lenient" in text
    assert "perplexity, music" in text


def test_known_facts_of_another_file_count_too(run: Any, place: Path) -> None:
    known = [replace(fact, id=f"known-{fact.id}") for fact in world().edits(6, seed=9)]
    write_facts(place / "known.jsonl", known)
    found = run("--json", "--known", "known.jsonl", "--generate", "0")["others"]
    assert found["prompts"] + found["left_out"] == 6


def test_what_would_be_passed_over_is_refused(run: Any) -> None:
    with pytest.raises(ConfigurationError, match="--template says how files of facts are read"):
        run("--template", "Now: {prompt}")
    with pytest.raises(ConfigurationError, match="--instances says how labelled instances"):
        run("--instances", "3")


def test_a_file_of_other_facts_or_of_another_template_is_refused(
    run: Any, place: Path, facts: list[Fact]
) -> None:
    write_facts(place / "other.jsonl", facts[3:])
    with pytest.raises(EditError, match="has none of the 3 facts that the ledger teaches"):
        run("--facts", "other.jsonl")
    with pytest.raises(EditError, match=r"(?s)was taught with the prompt.*the same --template"):
        run("--facts", "facts.jsonl", "--template", "Now: {prompt}")


def test_a_ledger_without_edits_that_act_is_refused(run: Any, place: Path) -> None:
    Ledger.open(place / "edits").disable("0001-rome")
    try:
        with pytest.raises(BrickworkError, match="so there is nothing to evaluate"):
            run()
    finally:
        Ledger.open(place / "edits").apply("0001-rome")
