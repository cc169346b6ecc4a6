"""``brickwork statistics``: from labelled data to a folder that merges read."""

import gzip
import hashlib
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


@pytest.mark.parametrize("parting", ["\n<|endoftext|>\n", "\n\n"])
def test_plain_text_has_documents(place: Path, tmp_path: Path, parting: str) -> None:
    text = parting.join(["the cat is an animal", "a dog", "x" * 300])
    with gzip.open(tmp_path / "some.txt.gz", "wt") as file:
        file.write(text)
    words = ["--data", str(tmp_path / "some.txt.gz"), "--kind", "gram", "--longest", "20"]
    site = ("--site", "layers.0.mlp.down")
    result = run(place, *words, *site, "-o", str(tmp_path / "s"), "--json")
    assert result.exit_code == 0, result.output
    found = open_statistics(tmp_path / "s", "gram")
    assert found.names == ["model.layers.0.mlp.down_proj.weight"]
    # The long one is cut into pieces of about 20 tokens, at 4 letters a token, of which 20 count.
    assert found.spec.instances == 2 + 4
    assert (found.spec.data, found.spec.sites) == ("some.txt.gz", ("layers.0.mlp.down",))
    assert found.spec.data_sha256 == hashlib.sha256(text.encode()).hexdigest()
    few = run(place, *words, "--tokens", "25", "-o", str(tmp_path / "few"), "--json")
    assert few.exit_code == 0, few.output
    assert 25 <= json.loads(few.stdout)["tokens"] < 25 + 20


def test_the_room_of_one_site_is_told_beforehand(place: Path) -> None:
    words = ["--kind", "gram", "--site", "layers.1.mlp.down", "-o", str(place / "dry")]
    result = run(place, *words, "--dry-run", "--json")
    assert json.loads(result.stdout)["bytes"] == 4 * 48 * 48
    result = run(place, "--kind", "gram", "--site", "layers.9.mlp.down", "-o", str(place / "no"))
    assert isinstance(result.exception, UnknownNameError)


def test_plain_text_is_refused_where_answers_are_needed_or_there_is_none(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("\n\n  \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "packed.txt.gz").write_bytes(b"\x1f\x8b\x08 no gzip")
    for name, problem in (
        ("empty.txt", "holds none"),
        ("latin.txt", "name a file in UTF-8"),
        ("packed.txt.gz", "cannot be read"),
        ("missing.txt", "could not be read"),
    ):
        data = ("--data", str(tmp_path / name), "--kind", "gram", "-o", str(tmp_path / "out"))
        result = run(place, *data)
        assert isinstance(result.exception, DataError)
        assert problem in str(result.exception)
    text = ("--data", str(tmp_path / "empty.txt"), "-o", str(tmp_path / "out"))
    for words, problem in (
        (("--kind", "fisher"), "need instances with a response"),
        (("--kind", "gram", "--function", "Math"), "--function has no effect on plain text"),
    ):
        result = run(place, *text, *words)
        assert isinstance(result.exception, ConfigurationError)
        assert problem in str(result.exception)


def test_an_option_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    words = ["reference", "--data", "reference", "-o", str(tmp_path / "out")]
    for kind, option, value in (
        ("gram", "--labels", "sampled"),
        ("fisher", "--tokens", "5"),
        ("fisher", "--site", "layers.0.mlp.down"),
    ):
        with pytest.raises(ConfigurationError, match=f"{option} has no effect"):
            CliRunner().invoke(
                statistics, [*words, "--kind", kind, option, value], catch_exceptions=False
            )
