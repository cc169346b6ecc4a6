"""``brickwork moe``, as a user calls it."""

import gzip
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from brickwork.brick.folder import write_brick
from brickwork.brick.partition import write_partition
from brickwork.cli.moe import moe
from brickwork.errors import ConfigurationError, ModelError
from brickwork.model.load import load_model
from brickwork.reference.paths import probe_file
from tests.moe import dense, divide, router_brick


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a partition of it, a router brick for that, and labelled instances."""
    folder = tmp_path_factory.mktemp("moe")
    tiny = dense("llama")
    assert tiny.tokenizer is not None
    tiny.model.save_pretrained(folder / "model")
    tiny.tokenizer.save_pretrained(folder / "model")
    loaded = load_model(str(folder / "model"))
    groups = divide(loaded)
    write_partition(groups, folder / "groups")
    write_brick(router_brick(loaded, groups), folder / "router")
    with gzip.open(probe_file(), "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    names = sorted({record["functionality"] for record in records})[:2]
    few = [r for name in names for r in [s for s in records if s["functionality"] == name][:12]]
    for record in few:  # the tiny tokenizer knows few letters, and the model 64 positions
        record["prompt"], record["response"] = record["prompt"][:20], record["response"][:20]
    text = "".join(json.dumps(record) + "\n" for record in few if record["response"].strip())
    (folder / "few.jsonl").write_text(text)
    return folder


def run(place: Path, *words: str) -> dict[str, Any]:
    result = CliRunner().invoke(
        moe,
        [str(place / "model"), "--partition", str(place / "groups"), "--json", *words],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_a_dry_run_writes_nothing_and_says_what_will_be(place: Path, tmp_path: Path) -> None:
    document = run(place, "-o", str(tmp_path / "m"), "--top-k", "2", "--dry-run")
    assert not (tmp_path / "m").exists()
    written = run(place, "-o", str(tmp_path / "m"), "--top-k", "2")
    assert document == written
    assert document["target"] == "qwen2_moe"
    assert (document["experts"], document["neurons_per_expert"], document["top_k"]) == (4, 12, 2)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert document["parameters"] == sum(p.numel() for p in read.parameters())
    assert document["active_parameters"] < document["parameters"]
    assert document["servers"] == {"transformers": [], "vllm": []}


def test_losses_are_measured_where_there_is_data(place: Path, tmp_path: Path) -> None:
    document = run(
        place, "-o", str(tmp_path / "m"), "--top-k", "1", "--data", str(place / "few.jsonl"),
        "--tune-steps", "3", "--tune-experts",
    )  # fmt: skip
    losses = document["losses"]
    assert document["measured_on"] == 2 * 1  # a fifteenth, at least one, of two functionalities
    assert list(losses) == ["dense", "all_experts", "top_k", "top_k_tuned"]
    assert losses["all_experts"] == pytest.approx(losses["dense"], abs=1e-4)
    assert abs(losses["top_k"] - losses["dense"]) > 1e-3
    assert losses["top_k_tuned"] != losses["top_k"]


def test_a_router_brick_is_used(place: Path, tmp_path: Path) -> None:
    document = run(place, "-o", str(tmp_path / "m"), "--router", str(place / "router"))
    assert document["router"] == "router"
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    # Its rows are all alike, so nothing is left of them but rounding.
    assert read.model.layers[1].mlp.gate.weight.abs().max() == 0


def test_a_person_reads_a_table(place: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        moe,
        [str(place / "model"), "--partition", str(place / "groups"), "-o", str(tmp_path / "m"),
         "--target", "mixtral", "--top-k", "2", "--dry-run"],
        catch_exceptions=False,
    )  # fmt: skip
    text = " ".join(result.output.split())
    assert "mixtral" in text
    assert "4 of 12 neurons" in text
    assert "vLLM" in text
    assert "checkpoint, not written (dry run):" in text


@pytest.mark.parametrize(
    "words", [["--tune-steps", "3"], ["--tune-experts", "--data", "few.jsonl"]]
)
def test_training_needs_steps_and_data(place: Path, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="one of them is missing; give both"):
        run(place, "-o", str(tmp_path / "m"), *words)


def test_an_existing_folder_is_refused_before_the_work(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="which is there already"):
        run(place, "-o", str(tmp_path), "--data", "nowhere.jsonl")


def test_it_is_a_command_with_an_example_of_its_own() -> None:
    assert isinstance(moe, click.Command)
    assert "brickwork moe reference" in (moe.help or "")
