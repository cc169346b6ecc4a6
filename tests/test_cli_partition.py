"""``brickwork partition``: from a model to a folder, as a user calls it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from brickwork.brick.partition import read_partition
from brickwork.cli.partition import partition
from brickwork.errors import (
    BrickFormatError,
    BrickworkError,
    ConfigurationError,
    DataError,
    UnknownNameError,
)

REFERENCE = ("reference", "--device", "cpu")


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(partition, [str(word) for word in words])


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("clustered") / "parts"
    result = call(*REFERENCE, "--groups", "4", "-o", out, "--json")
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def test_a_partition_is_written_and_told(clustered: tuple[Path, dict[str, object]]) -> None:
    out, document = clustered
    made = read_partition(out)
    assert document["hash"] == made.hash
    assert made.spec.method == "clustering"
    assert made.spec.base.name == "reference"
    assert list(made.owners) == list(range(8))
    layers = document["layers"]
    assert isinstance(layers, list)
    heads = [[0, 1], [2, 3]]
    assert layers[3] == {
        "layer": 3, "groups": 4, "size": 256, "shared": 0, "best": [], "heads": heads
    }  # fmt: skip


def test_an_older_partition_is_replaced(clustered: tuple[Path, dict[str, object]]) -> None:
    out, _ = clustered
    result = call(*REFERENCE, "--method", "random", "--groups", "8", "-o", out)
    assert result.exit_code == 0, result.output
    assert read_partition(out).groups(0) == 8
    assert "reference divided by random" in result.output


def test_data_says_what_is_shared_and_what_groups_serve(tmp_path: Path) -> None:
    result = call(
        *REFERENCE, "--method", "random", "--groups", "8", "--shared", "0.1",
        "--data", "reference", "--instances", "2", "--longest", "64", "-o", tmp_path / "parts",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    made = read_partition(tmp_path / "parts")
    assert (len(made.shared(0)), len(made.members(0)[0])) == (104, 115)
    assert made.spec.data == "reference"
    assert len(made.spec.functions) == 7
    assert made.profile[0].shape == (8, 7)
    assert "104" in result.output
    assert any(name in result.output for name in made.spec.functions)


def test_a_place_where_no_folder_can_be_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "parts"):
        result = call("no-such-model", "--groups", "4", "-o", out)
        assert result.exit_code == 2
        text = " ".join(result.stderr.split())
        assert "was to be a folder, but" in text
        assert "is a file; name another." in text
    assert (tmp_path / "file").read_text() == "mine"


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = call(
        *REFERENCE, "--method", "coactivation", "--groups", "8", "--data", "reference",
        "--instances", "3", "-o", tmp_path / "parts", "--dry-run", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["instances"] == 21
    assert document["sketch_bytes"] == 8 * 1024 * 1024 * 4
    assert [row["size"] for row in document["layers"]] == [128] * 8
    assert not (tmp_path / "parts").exists()
    shown = call(*REFERENCE, "--groups", "8", "-o", tmp_path / "parts", "--dry-run")
    assert "would be divided" in shown.output


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (("--groups", "5"), ConfigurationError, "counts that work"),
        (("--method", "cluster", "--groups", "4"), UnknownNameError, "did you mean 'clustering'"),
        (("--method", "functionality", "--groups", "4"), DataError, "--analysis"),
        (("--method", "experts"), ConfigurationError, "no experts"),
        ((), ConfigurationError, "at least one group"),
        (("--groups", "4", "--data", "nothing.jsonl"), DataError, "nothing.jsonl"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_mistakes_are_the_callers_and_named(
    words: tuple[str, ...], kind: type[BrickworkError], message: str, dry: bool, tmp_path: Path
) -> None:
    result = call(*REFERENCE, *words, "-o", tmp_path / "x", *(["--dry-run"] if dry else []))
    assert isinstance(result.exception, kind)
    assert message in str(result.exception)
    assert not (tmp_path / "x").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = call(*REFERENCE, "--method", "random", "--groups", "4", "-o", tmp_path)
    assert isinstance(result.exception, BrickworkError)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_of_something_else_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    words = ["nowhere", "--groups", "4", "-o", str(tmp_path / "mine")]  # nor is there a model
    result = CliRunner().invoke(partition, words)
    assert isinstance(result.exception, BrickFormatError)
    assert "holds no partition" in str(result.exception)
