"""``brickwork stitch``, as a user calls it: a plan, a family with its curve, and answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from brickwork.cli.stitch import stitch
from brickwork.combine.stitch_family import open_stitched, read_stitching
from brickwork.errors import BrickworkError, ConfigurationError, MergeError, ModelError
from brickwork.model.load import load_model
from tests.stitching import narrow, wide

DATA = "data.jsonl"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models of different width and family, and labelled instances."""
    folder = tmp_path_factory.mktemp("stitch")
    for name, loaded in (("small", narrow("llama")), ("large", wide("gpt2"))):
        assert loaded.tokenizer is not None
        loaded.model.save_pretrained(folder / name)
        loaded.tokenizer.save_pretrained(folder / name)
    lines = [
        {"functionality": name, "prompt": f"{verb} {number} to it", "response": f"{word} {number}"}
        for name, verb, word in (("sums", "add", "it is"), ("words", "say", "the word"))
        for number in range(12)
    ]
    (folder / DATA).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command in a folder of its own; with ``--json`` the document, else the text."""
    for name in ("small", "large", DATA):
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: str) -> Any:
        result = CliRunner().invoke(stitch, ["small", "large", *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in words else result.stdout

    return call


def test_a_dry_run_says_the_costs_that_the_family_will_have(run: Any) -> None:
    plan = run("--dry-run", "--points", "1:1,1:2", "--json")
    made = run("--data", DATA, "--points", "1:1,1:2", "-o", "out", "--json")
    fields = ("name", "parameters", "flops")
    assert plan["members"] == [{f: m[f] for f in fields} for m in made["members"]]
    assert [m["name"] for m in plan["members"]] == ["front", "1:1", "1:2", "back"]
    assert "1:2" in run("--dry-run")


def test_a_family_is_fitted_tuned_kept_drawn_and_opened_again(run: Any) -> None:
    words = ("--data", DATA, "--count", "2", "--tune-steps", "2", "--answer", "add 3 to it")
    found = run(*words, "-o", "out", "--report", "page", "--json")
    assert sum(found["measured_on"].values()) == 4
    assert found["fitted_on"] == 20
    assert found["members"][1]["untuned"].keys() == {"sums", "words"}
    assert found["members"][1]["explained"] <= 1
    assert Path(found["report"]).read_text().count("<figure>") == 2
    small, large = (load_model(name, device="cpu") for name in ("small", "large"))
    family = open_stitched(Path("out"), small, large)
    assert [str(s.point) for s in family.stitches] == [m["name"] for m in found["members"][1:-1]]
    assert read_stitching(Path("out")).tune_steps == 2
    assert str(Path.cwd()) not in Path("out/stitch.json").read_text()
    again = run("--open", "out", "--answer", "add 3 to it", "--json")
    assert again["answers"] == found["answers"]
    assert again["answers"].keys() == {m["name"] for m in found["members"]}


def test_equal_seeds_write_equal_bytes(run: Any) -> None:
    words = ("--data", DATA, "--count", "1", "--tune-steps", "2")
    run(*words, "-o", "one")
    run(*words, "-o", "two")
    for name in ("stitch.json", "stitches.safetensors"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_a_person_reads_the_curve(run: Any) -> None:
    text = run("--data", DATA, "--count", "1", "--tune-steps", "1", "-o", "out")
    for words in ("small", "large", "untuned loss", "from the line", "held-out", "maps: out"):
        assert words in text


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["--data", DATA], ConfigurationError, "nowhere to write to"),
        (["-o", "out"], ConfigurationError, "none were named"),
        (["-o", "small", "--data", DATA], ModelError, "there already"),
        (["--points", "2-1", "--dry-run"], ConfigurationError, "no point"),
        (["--points", "1:3", "--dry-run"], MergeError, "block 0 to 2 of large"),
        (["--open", "small", "--data", DATA], ConfigurationError, "--data would have no effect"),
        (["--open", "small"], ConfigurationError, "nothing to do with it"),
    ],
)
def test_mistakes_are_told(
    run: Any, words: list[str], kind: type[BrickworkError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(*words)


def test_points_and_their_number_are_not_both_given() -> None:
    words = ["reference", "reference", "--points", "2:2", "--count", "3", "--dry-run"]
    with pytest.raises(ConfigurationError, match="--count would have no effect"):
        CliRunner().invoke(stitch, words, catch_exceptions=False)
