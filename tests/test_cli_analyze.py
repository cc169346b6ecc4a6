"""``brickwork analyze``: from labelled data to a report, as a user calls it."""

import gzip
import json
import os
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from brickwork.cli.main import main
from brickwork.reference.paths import probe_file
from brickwork.report.read import read_analysis


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small labelled file: 30 short instances of each functionality."""
    folder = tmp_path_factory.mktemp("analyze")
    with gzip.open(probe_file(), "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    short = sorted(records, key=lambda record: len(record["prompt"] + record["response"]))
    names = sorted({record["functionality"] for record in records})[:3]
    few = [r for name in names for r in [s for s in short if s["functionality"] == name][:30]]
    (folder / "few.jsonl").write_text("".join(json.dumps(record) + "\n" for record in few))
    return folder


def analyze(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "brickwork", "analyze", *words],
        cwd=place, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


QUICK = ("--data", "few.jsonl", "--permutations", "3")


@pytest.fixture(scope="module")
def made(place: Path) -> dict[str, object]:
    result = analyze(place, "reference", *QUICK, "-o", "out", "--source", "task:^[a-z]+", "--json")
    assert result.returncode == 0, result.stderr
    document: dict[str, object] = json.loads(result.stdout)
    return document


def test_everything_promised_is_written(place: Path, made: dict[str, object]) -> None:
    assert set(made) == {"out", "report", "files", "seconds", "peak_memory", "findings"}
    out = place / "out"
    assert {"analysis.json", "scores.safetensors", "report.html"} <= {p.name for p in out.iterdir()}
    assert all((out / file).is_file() for file in made["files"])  # type: ignore[attr-defined]
    analysis = read_analysis(out)
    assert analysis.model.name == "reference"
    assert [f.evaluation for f in analysis.data.functions] == [2, 2, 2]
    html = (out / "report.html").read_text(encoding="utf-8")
    assert analysis.command in unescape(html)
    assert str(place) not in html


def test_the_command_can_be_given_again(place: Path, made: dict[str, object]) -> None:
    command = read_analysis(place / "out").command
    assert command == (
        "brickwork analyze reference --data few.jsonl --out out --source 'task:^[a-z]+' "
        "--permutations 3"
    )


def test_a_dry_run_writes_nothing_and_says_the_cost(place: Path) -> None:
    result = analyze(place, "reference", *QUICK, "-o", "dry", "--dry-run", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["instances"] == 90
    # 84 rows of 8 layers of 1024 neurons, 4 heads and the layer; 18 of neurons alone; float32
    assert document["disk"] == 4 * 8 * (84 * (1024 + 4 + 1) + 18 * 1024)
    assert set(document["seconds"]) >= {"collect", "score", "mask", "perturb", "total"}
    assert not (place / "dry").exists()
    shown = analyze(place, "reference", *QUICK, "-o", "dry", "--dry-run")
    assert "disk 3.4 MB" in shown.stdout


def test_a_shard_collects_and_stops(place: Path) -> None:
    result = analyze(place, "reference", *QUICK, "-o", "parts", "--shard", "2/3")
    assert result.returncode == 0, result.stderr
    assert "run the same command" in result.stdout.replace("\n", " ")
    assert (place / "parts" / "rows" / "done-2-of-3.npy").exists()
    assert not (place / "parts" / "analysis.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reference", "--data", "nothing.jsonl", "-o", "x"), "nothing.jsonl"),
        (("reference", "--data", "few.jsonl", "-o", "x", "--shard", "4/3"), "no part of a whole"),
        (("reference", "--data", "few.jsonl", "-o", "x", "--source", "tsk"), "did you mean 'task'"),
        (("no-such-model", "--data", "few.jsonl", "-o", "x"), "no-such-model"),
        (("reference", "--data", "few.jsonl", "-o", "x", "--mapping", "infinty"), "infinity-instr"),
        (("reference", "--data", "few.jsonl", "-o", "x", "--share", "0.9"), "0.9 is not in"),
        (("reference", "--data", "few.jsonl", "-o", "out", "--seed", "3"), "another model, data"),
    ],
)
@pytest.mark.usefixtures("made")
def test_mistakes_are_the_callers_and_named(
    place: Path,
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    assert main(["analyze", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (place / "x").exists()
