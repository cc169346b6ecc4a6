"""``brickwork router``: from labelled data and groups to a brick, and to a table of losses."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from brickwork.brick.folder import read_brick
from brickwork.brick.partition import Partition, PartitionSpec, write_partition
from brickwork.cli.router import ListType, router
from brickwork.errors import BrickworkError
from brickwork.measure.selection_results import RouterQuality
from brickwork.model.load import load_model
from brickwork.reference.paths import model_folder, probe_file
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small labelled file, and groups of the reference model."""
    folder = tmp_path_factory.mktemp("router")
    with gzip.open(probe_file(), "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    short = sorted(records, key=lambda record: len(record["prompt"] + record["response"]))
    names = sorted({record["functionality"] for record in records})[:2]
    few = [r for name in names for r in [s for s in short if s["functionality"] == name][:12]]
    (folder / "few.jsonl").write_text("".join(json.dumps(record) + "\n" for record in few))
    base = load_model(str(model_folder()), device="cpu", name="reference").base
    spec = PartitionSpec(base=base.fingerprint, method="striped")
    write_partition(Partition(spec, {n: torch.arange(1024) % 32 for n in range(8)}),
                    folder / "groups")  # fmt: skip
    return folder


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(router, [str(word) for word in words])


def test_a_gate_is_trained_and_is_a_brick_of_the_model(place: Path) -> None:
    result = run(
        "train", "reference", "--kind", "gate", "--partition", place / "groups", "--data",
        place / "few.jsonl", "--density", "0.25", "-o", place / "gate", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    brick = read_brick(place / "gate")
    assert (document["hash"], document["layers"]) == (brick.hash, 8)
    assert 0 < document["captured"] < 1
    assert brick.spec.options == {"density": 0.25, "level": "token"}
    assert brick.spec.lineage.data == "few.jsonl"
    assert str(place) not in brick.spec.model_dump_json()


def test_a_brick_that_is_there_is_replaced_only_if_asked(place: Path) -> None:
    words = ("train", "reference", "--kind", "magnitude", "--data", place / "few.jsonl",
             "--level", "prompt", "-o", place / "twice")  # fmt: skip
    first = run(*words)
    assert first.exit_code == 0, first.output
    assert "magnitude-router: 8 layers" in first.stdout
    assert "density 0.2 by prompt captures" in first.stdout
    again = run(*words)
    assert isinstance(again.exception, BrickworkError)
    assert "there already" in str(again.exception)
    assert run(*words, "--replace").exit_code == 0
    before_the_work = run(*words, "--data", place / "nowhere.jsonl")
    assert "ask to --replace it" in str(before_the_work.exception)


def test_routers_are_compared_in_a_table_and_a_file(place: Path) -> None:
    result = run(
        "compare", "reference", "--partition", place / "groups", "--data", place / "few.jsonl",
        "--kinds", "threshold,centroid,random", "--densities", "0.5,1", "-o", place / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "rise of the loss over" in result.stdout
    assert "on 2 instances" in result.stdout
    found = RouterQuality.model_validate(json.loads((place / "out" / "routers.json").read_text()))
    assert [(r.router, r.density) for r in found.rows] == [
        (name, density) for name in ("threshold", "centroid", "random") for density in (0.5, 1.0)
    ]
    assert (found.model, found.data) == ("reference", "few.jsonl")
    assert found.instances == 2 * 1  # a fifteenth of 12, at least one, of two functionalities
    assert all(r.losses == pytest.approx(found.base_losses) for r in found.rows if r.density == 1)


def test_layers_of_experts_are_named_and_left_alone(place: Path) -> None:
    folder = place / "moe"
    tiny_model("qwen3_moe").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    result = run("train", folder, "--kind", "threshold", "--data", place / "few.jsonl",
                 "-o", place / "moe-router", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "layers 1 are mixtures of experts" in result.stderr
    assert json.loads(result.stdout)["layers"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kind", "gat"), "no training of a router is called 'gat'; did you mean"),
        (("--kind", "gate"), "'gate' chooses groups, but no partition was given"),
        (("--kind", "threshold", "--partition", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_named(place: Path, words: tuple[str, ...], message: str) -> None:
    result = run("train", "reference", *words, "--data", place / "few.jsonl", "-o", place / "no")
    assert isinstance(result.exception, BrickworkError)
    assert message in str(result.exception)
    assert not (place / "no").exists()


def test_a_list_that_is_none_is_named(place: Path) -> None:
    result = run("compare", "reference", "--densities", "0.1,half", "--data",
                 place / "few.jsonl", "-o", place / "no")  # fmt: skip
    assert result.exit_code == 2
    assert "'0.1,half' is no list of numbers; write for example 0.1,0.5" in result.output


def test_an_empty_list_and_partitions_that_look_alike_are_refused_before_the_work(
    place: Path,
) -> None:
    words = ("compare", "reference", "--data", "nowhere.jsonl", "-o", place / "no")
    empty = run(*words, "--kinds", ",")
    assert empty.exit_code == 2
    assert "',' lists nothing; name some" in empty.output
    alike = run(*words, "--partition", place / "groups", "--partition", place / "groups")
    assert isinstance(alike.exception, BrickworkError)
    assert "several partitions by striped with 32 groups" in str(alike.exception)
    assert not (place / "no").exists()


def test_what_is_named_twice_is_measured_once() -> None:
    assert ListType(float).convert("0.5, 1,0.5", None, None) == (0.5, 1.0)
