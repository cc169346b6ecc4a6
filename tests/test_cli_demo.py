"""``brickwork demo`` and ``brickwork run``: the main job, as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN_KEYS = {"instruction", "functionality", "bricks", "answer", "base_answer", "loss", "base_loss",
            "seconds", "trace"}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def brickwork(home: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "brickwork", *arguments],
        env={**os.environ, "BRICKWORK_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def document(home: Path) -> dict[str, Any]:
    result = brickwork(home, "demo", "--json")
    assert result.returncode == 0, result.stderr
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def test_the_demo_prints_one_document_of_the_promised_form(document: dict[str, Any]) -> None:
    assert set(document) == {"model", "store", "runs"}
    assert len(document["runs"]) >= 7
    for run in document["runs"]:
        assert set(run) >= RUN_KEYS
        assert all({"name", "score", "weight"} <= set(brick) for brick in run["bricks"])
        assert len(run["trace"]["bricks"]) == sum(brick["weight"] != 0 for brick in run["bricks"])


def test_chosen_bricks_do_the_work_and_the_trace_says_so(document: dict[str, Any]) -> None:
    helped = [run for run in document["runs"] if any(b["weight"] for b in run["bricks"])]
    assert len({b["name"] for run in helped for b in run["bricks"] if b["weight"]}) >= 4
    for run in helped:
        assert run["loss"] < run["base_loss"]
        assert run["trace"]["loss"] == pytest.approx(run["loss"], abs=1e-4)
        assert any(part["gain"] > 0 for part in run["trace"]["bricks"])


def test_where_no_brick_suits_the_base_answers(document: dict[str, Any]) -> None:
    alone = [run for run in document["runs"] if not any(b["weight"] for b in run["bricks"])]
    assert alone
    for run in alone:
        assert run["answer"] == run["base_answer"]
        assert run["loss"] == pytest.approx(run["base_loss"], abs=1e-5)


def test_run_answers_with_named_bricks_and_explains(home: Path) -> None:
    result = brickwork(
        home, "run", "What is 12 + 17?", "--bricks", "addition", "--explain", "--json"
    )
    document = json.loads(result.stdout)
    assert document["answer"] == "29"
    assert document["plan"]["rows"][0]["bricks"][0]["name"] == "addition@1"
    assert document["trace"]["bricks"][0]["gain"] > 0


def test_run_retrieves_by_itself_and_a_dry_run_generates_nothing(home: Path) -> None:
    result = brickwork(home, "run", "-", "--dry-run", "--json", text="What is 17 + 5?")
    document = json.loads(result.stdout)
    assert document["plan"]["rows"][0]["bricks"][0]["name"] == "addition@1"
    assert "retrieved" in document["plan"]["rows"][0]["bricks"][0]["reason"]
    assert "answer" not in document


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--bricks", "adition"], "did you mean 'addition'"),
        (["x", "--bricks", "addition:much"], "weight"),
        (["x", "--bricks", "addition", "--auto"], "only one of"),
        (["x", "--model", "./nowhere"], "nowhere"),
        (["x", "--store", "./nowhere"], "nowhere"),
        (["x", "--temperature", "-1"], "options.temperature"),
        (["", "--raw"], "no tokens"),
    ],
)
def test_mistakes_get_one_clear_message(home: Path, arguments: list[str], message: str) -> None:
    result = brickwork(home, "run", *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
