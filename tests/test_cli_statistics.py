"""``brickwork statistics``: from labelled data to a folder that merges read."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from brickwork.cli.statistics import statistics
from brickwork.errors import ConfigurationError, DataError, UnknownNameError
from brickwork.measure.merge_statistics import open_statistics
from brickwork.model.export import write_checkpoint
from brickwork.model.load import load_model
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and a labelled file."""
    folder = tmp_path_factory.mktemp("statistics")
    write_checkpoint(tiny_model("llama"), folder / "model", tokenizer=tiny_tokenizer())
    records = [{"functionality": f, "prompt": f"{f} {n}", "response": "the"}
               for f in ("Sums", "Words") for n in range(5)]  # fmt: skip
    (folder / "few.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def run(place: Path, *words: str) -> Result:
    data = ("--data", str(place / "few.jsonl"))
    return CliRunner().invoke(statistics, [str(place / "model"), *data, *words])


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_statistics_say_of_what_they_are(place: Path, kind: str) -> None:
    out = place / kind
    result = run(place, "--kind", kind, "--function", "Sums", "-o", str(out), "--json")
    assert result.exit_code == 0, result.output
    found = open_statistics(out, kind)  # type: ignore[arg-type]
    assert found.spec.base == load_model(str(place / "model")).base.fingerprint
    assert (found.spec.data, found.spec.instances) == ("few.jsonl", 5)
    assert json.loads(result.stdout)["sha256"] == found.spec.sha256
    assert str(place) not in (out / "statistics.json").read_text()


def test_a_dry_run_says_how_much_it_would_take(place: Path) -> None:
    result = run(place, "--kind", "fisher", "-o", str(place / "dry"), "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    parameters = sum(p.numel() for p in tiny_model("llama").parameters())
    assert json.loads(result.stdout)["bytes"] == 4 * parameters
    assert not (place / "dry").exists()


def test_refuses_a_taken_place_and_an_unknown_functionality(place: Path) -> None:
    result = run(place, "--kind", "gram", "-o", str(place / "model"))
    assert isinstance(result.exception, DataError)
    result = run(place, "--kind", "gram", "--function", "Word", "-o", str(place / "no"))
    assert isinstance(result.exception, UnknownNameError)


def test_an_option_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    words = ["reference", "--data", "reference", "-o", str(tmp_path / "out")]
    for kind, option, value in (("gram", "--labels", "sampled"), ("fisher", "--tokens", "5")):
        with pytest.raises(ConfigurationError, match=f"{option} has no effect"):
            CliRunner().invoke(
                statistics, [*words, "--kind", kind, option, value], catch_exceptions=False
            )
