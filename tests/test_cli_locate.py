"""``brickwork locate``, as a user calls it: one fact, a file of them, pages, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from brickwork.brick.address import Address
from brickwork.cli.edit_inputs import parse_site
from brickwork.cli.locate import locate
from brickwork.errors import ConfigurationError, EditError
from brickwork.report.locate import read_location
from tests.world import FOLDER, world

QUICK = ("--samples", "1", "--raw")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command in a folder of its own; with ``--json`` the document, else the text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words: str) -> Any:
        result = CliRunner().invoke(locate, [str(FOLDER), *words, *QUICK], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in words else result.stdout

    return call


PROMPT, SUBJECT = ("--prompt", "PROMPT"), ("--subject", "SUBJECT")


def one(words: tuple[str, ...] = PROMPT + SUBJECT) -> list[str]:
    """The words with those of the first fact in them."""
    fact = world().edits(1)[0]
    said = {"PROMPT": fact.prompt, "SUBJECT": fact.subject}
    return [said.get(word, word) for word in words]


def fact_file(folder: Path, number: int) -> str:
    lines = [
        {
            "id": f.id, "subject": f.subject, "prompt": f.prompt, "target": f.target,
            "target_true": f.target_true, "paraphrases": list(f.paraphrases),
        }
        for f in world().edits(number)
    ]  # fmt: skip
    (folder / "facts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "facts.jsonl"


def test_a_fact_gets_a_table_of_places_and_the_site_to_edit(run: Any) -> None:
    document = run(*one(), "--target", world().edits(1)[0].target_true, "--json")
    assert document["site"].endswith("@last")
    assert parse_site(document["site"], world().loaded).place == "last"
    (fact,) = document["tracing"]["facts"]
    assert fact["answer"] == world().edits(1)[0].target_true
    assert set(fact["effects"]) == {"residual", "mlp", "attention"}
    text = run(*one())
    assert f"site to edit: {document['site']}" in text
    assert "subject_last" in text


def test_without_a_target_the_models_own_answer_is_traced(run: Any) -> None:
    (fact,) = run(*one(), "--kind", "mlp", "--json")["tracing"]["facts"]
    assert fact["answer"].split()[0] == world().edits(1)[0].target_true
    assert list(fact["effects"]) == ["mlp"]


def test_a_file_of_facts_is_averaged_and_drawn(run: Any, tmp_path: Path) -> None:
    document = run("--facts", fact_file(tmp_path, 3), "--first", "2", "-o", "page", "--json")
    location = read_location(tmp_path / "page")
    assert len(location.tracing.facts) == 2
    assert location.model_dump(mode="json").items() <= document.items()
    assert {file.name for file in (tmp_path / "page" / "locate-figures").glob("*.svg")} == {
        "fact-1.svg", "fact-2.svg", "places-map.svg",
    }  # fmt: skip
    assert document["out"] == "page/locate.html"


def test_neurons_are_told_as_addresses_and_checked(run: Any, tmp_path: Path) -> None:
    words = ("--facts", fact_file(tmp_path, 1), "--neurons", "--kind", "mlp")
    document = run(*words, "--json")
    (addresses,) = document["addresses"].values()
    assert all(Address.parse(address).part == "mlp.neurons" for address in addresses)
    (found,) = document["neurons"]
    assert found["check"]["silent"] < found["check"]["random_silent"]
    assert len(found["prompts"]) == 5  # the sixth wording is what they are checked on
    assert addresses[0] in run(*words)


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        ((), ConfigurationError, "give --prompt and --subject, or --facts"),
        (PROMPT, ConfigurationError, "give --prompt and --subject, or --facts"),
        (
            (*PROMPT, *SUBJECT, "--first", "2"),
            ConfigurationError,
            "--first counts the facts of a file",
        ),
        ((*PROMPT, "--subject", "Nobody"), EditError, "'Nobody' was looked for in the prompt"),
        ((*PROMPT, *SUBJECT, "--target", "Mars"), EditError, "it gives none of 1"),
    ],
)
def test_what_contradicts_itself_is_refused(
    run: Any, words: tuple[str, ...], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        run(*one(words))


def test_a_file_and_a_prompt_are_refused_together(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--prompt, --subject would have no effect"):
        run("--facts", fact_file(tmp_path, 1), *one())
