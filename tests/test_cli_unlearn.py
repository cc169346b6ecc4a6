"""``brickwork unlearn``: a brick that takes a behaviour away, and what it says of that."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from brickwork.cli.check import check
from brickwork.cli.main import app
from brickwork.cli.run import run
from brickwork.cli.store import store
from brickwork.cli.unlearn import unlearn
from brickwork.errors import BrickworkError
from tests.world import FOLDER, world

MODEL = str(FOLDER)


@cache
def instances() -> tuple[dict[str, str], ...]:
    """Half of what the world's model knows, as instances of five functionalities."""
    return tuple(
        {"functionality": fact.relation, "prompt": fact.prompt, "response": f"{fact.object} ."}
        for fact in world().facts[::2]
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the instances, and with those of one functionality apart."""
    cities = [one for one in instances() if one["functionality"] == "city"]
    rest = [one for one in instances() if one["functionality"] != "city"]
    for name, kept in (("all", instances()), ("cities", cities), ("rest", rest)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, kept)))
    return tmp_path


def invoke(command: Any, *words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def require_use(place: Path, brick: Path, form: str) -> None:
    """The brick fits the model by ``brickwork check``, and ``brickwork run --bricks`` takes it."""
    checked = invoke(check, brick, "--model", MODEL)
    assert checked.exit_code == 0, checked.output
    assert f"{brick.name} ({form}) fits" in checked.output
    added = invoke(store, "add", brick, "--store", place / "store")
    assert added.exit_code == 0, added.output
    answered = invoke(
        run, "Ada Stone lives in", "--model", MODEL, "--store", place / "store", "--bricks",
        brick.name, "--max-new-tokens", 1, "--json",
    )  # fmt: skip
    assert answered.exit_code == 0, answered.output
    (used,) = json.loads(answered.stdout)["plan"]["rows"][0]["bricks"]
    assert (used["name"], used["form"]) == (f"{brick.name}@1", form)


def test_neurons_of_a_functionality_are_made_silent(place: Path) -> None:
    words = ("--function", "City", "--data", place / "all.jsonl", "--by", "suppression")
    result = invoke(unlearn, MODEL, *words, "--bound", 0.2, "-o", place / "no-city", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["behaviour"], document["data"]) == ("city", "all.jsonl")
    rises = document["perplexity"]
    assert sorted(rises) == ["animal", "city", "dish", "instrument", "trade"]
    assert rises["city"]["low"] > max(rises[name]["value"] for name in rises if name != "city")
    tried = {one["strength"]: one for one in document["tried"]}
    assert tried[document["strength"]]["worst"] <= 0.2
    require_use(place, place / "no-city", "ia3")


def test_what_examples_teach_is_taken_away(place: Path) -> None:
    result = invoke(
        unlearn, MODEL, "--examples", place / "cities.jsonl", "--data", place / "rest.jsonl",
        "--by", "negation", "--bound", 0.5, "--rank", 2, "--epochs", 1, "-o", place / "negated",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "examples (unlearned)" in result.stdout
    assert "negation at strength" in result.stdout
    require_use(place, place / "negated", "lora")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "by --examples or by --function, and what is to stay by --data"),
        (("--function", "city"), "what is to stay by --data; give one of the first two"),
        (("--function", "city", "--examples", "cities", "--data", "all"), "one of the first two"),
        (
            ("--function", "city", "--data", "all", "--by", "suppression", "--epochs", 2),
            "--epochs has no effect on --by suppression",
        ),
        (("--function", "citty", "--data", "all"), "did you mean 'city'"),
        (("--examples", "cities", "--data", "cities"), "have 1 .city.; add instances of others"),
        (
            ("--function", "city", "--data", "all", "--by", "suppression", "--bound", 1e-9),
            "even at strength 0.0005 the perplexity of .* rises by",
        ),
    ],
)
def test_refuses_with_a_reason_and_writes_nothing(
    place: Path, words: tuple[object, ...], message: str
) -> None:
    files = {name: place / f"{name}.jsonl" for name in ("all", "cities", "rest")}
    paths = [word if words[n - 1] == "--function" else files.get(str(word), word)
             for n, word in enumerate(words)]  # fmt: skip
    result = invoke(unlearn, MODEL, *paths, "-o", place / "out")
    with pytest.raises(BrickworkError, match=message):
        raise result.exception or AssertionError(result.output)
    assert not (place / "out").exists()


def test_an_output_that_is_there_and_bounds_of_nothing_are_refused(place: Path) -> None:
    words = (MODEL, "--function", "city", "--data", place / "all.jsonl", "-o", place)
    with pytest.raises(BrickworkError, match=r"a brick was to be written .* is there already"):
        raise invoke(unlearn, *words).exception or AssertionError
    result = invoke(app, "unlearn", *words, "--bound", 0)
    assert result.exit_code == 2
    assert "Invalid value for '--bound'" in result.output
