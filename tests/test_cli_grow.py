"""``brickwork grow`` and its parts: what is written, what is told, what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from brickwork.brick.forms import load_target
from brickwork.brick.partition import write_partition
from brickwork.cli import grow_part
from brickwork.cli.grow_check import tolerance
from brickwork.cli.grow_options import PartCommand, flag_of
from brickwork.cli.main import main
from brickwork.grow import width
from brickwork.grow.growths import growths
from brickwork.grow.record import read_growth
from brickwork.model.load import load_model
from tests.moe import divide
from tests.tiny import tiny_model, tiny_tokenizer

Capture = pytest.CaptureFixture[str]
KNOWN = 101
TOKENS = torch.randint(2, KNOWN, (2, 20), generator=torch.Generator().manual_seed(0))
# One of each part; what it makes of the configuration.
PARTS = (
    ("width --times 1.5", {"intermediate_size": 72}),
    ("heads --by queries --heads 8 --start zero", {"num_attention_heads": 8}),
    ("hidden --size 40", {"hidden_size": 40}),
    ("depth --after 0 --after 0 --after 1", {"num_hidden_layers": 5}),
    ("vocab --token wombat", {}),
    ("experts --experts 4 --top-k 2", {"model_type": "mixtral"}),
    ("context --tokens 128", {"max_position_embeddings": 128}),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and a partition of it beside."""
    place = tmp_path_factory.mktemp("grow")
    tiny_model("llama").save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    write_partition(divide(load_model(str(place / "model"))), place / "groups")
    return place / "model"


def told(capsys: Capture, *words: object) -> dict[str, Any]:
    """The document of a command that went well."""
    code = main(["grow", *map(str, words), "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    document: dict[str, Any] = json.loads(said.out)
    return document


def refused(capsys: Capture, *words: object) -> str:
    """What a command says that exits 2."""
    assert main(["grow", *map(str, words)]) == 2
    return " ".join(capsys.readouterr().err.split())


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    """Of the tokens that the old tokenizer has."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    found: Tensor = model(TOKENS).logits[..., :KNOWN]
    return found


@pytest.mark.parametrize(("words", "entries"), PARTS)
def test_each_part_writes_a_model_that_says_the_same_and_a_dry_run_foretells_it(
    words: str, entries: dict[str, Any], tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    part, *options = words.split()
    document = told(capsys, part, tiny, *options, "-o", tmp_path / "grown")
    # Sums in another order, in float32, as for the laws of growth.
    torch.testing.assert_close(logits(tmp_path / "grown"), logits(tiny), atol=1e-4, rtol=0)
    found = document["equivalence"]
    assert found["promised"]
    assert found["difference"] <= found["tolerance"] < 1e-3 * found["largest"]
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    assert entries.items() <= config.items()
    assert [step.part for step in read_growth(tmp_path / "grown").steps] == [part]
    # A dry run tells the same, where there are no weights to be read, and writes nothing.
    leave = shutil.ignore_patterns("*.safetensors")
    bare = shutil.copytree(tiny, tmp_path / "bare" / "model", ignore=leave)
    planned = told(capsys, part, bare, *options, "--dry-run")
    assert list((tmp_path / "bare").iterdir()) == [bare]
    assert planned["equivalence"] is None
    same = planned.keys() - {"out", "dry_run", "equivalence"}
    assert {key: planned[key] for key in same} == {key: document[key] for key in same}
    weights = load_file(tmp_path / "grown" / "model.safetensors")
    assert planned["after"]["parameters"] == sum(t.numel() for t in weights.values())


def test_the_report_for_people_names_axes_layers_and_sizes(tiny: Path, capsys: Capture) -> None:
    assert main(["grow", "depth", str(tiny), "--by", "stack", "--overlap", "1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "depth by stack: keeps nothing promised" in said
    assert "layers: 2 -> 2, new: 1" in said
    assert main(["grow", "width", str(tiny), "--neurons", "64", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "neurons: 48 -> 64" in said
    assert "keeps all logits" in said


def test_a_growth_that_changes_the_model_says_by_how_much(
    tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["grow", "depth", str(tiny), "--by", "copy", "--after", "1", "-o", str(tmp_path / "g")]
    assert main(words) == 0
    said = capsys.readouterr()
    measured = (logits(tiny) - logits(tmp_path / "g")).abs().max().item()
    assert measured > 0.1
    assert "warning: this growth changes what the model says" in said.err
    assert "logits differ by" in said.out


def test_redrawn_experts_are_not_said_to_keep_anything(
    tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = ("--experts", 4, "--redrawn", 0.5, "-o", tmp_path / "grown")
    document = told(capsys, "experts", tiny, *options)
    assert document["steps"][0]["keeps"] == "nothing promised"
    assert not document["equivalence"]["promised"]


def test_a_broken_promise_is_our_failure(
    tiny: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = width.added
    monkeypatch.setattr(width, "added", lambda *a, **how: honest(*a, **(how | {"shares": None})))
    out = tmp_path / "grown"
    assert main(["grow", "width", str(tiny), "--times", "2", "-o", str(out), "--json"]) == 1
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["equivalence"]["difference"] > document["equivalence"]["tolerance"]
    assert "BrokenPromise: the grown model was to say what the old one says" in said.err
    assert str(out) in said.err


def test_more_is_tolerated_where_a_short_format_rounds_and_it_suffices(
    tmp_path: Path, capsys: Capture
) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "short")
    for number, (words, dtypes) in enumerate(
        ((("width", "--times", 2), set()), (("hidden", "--size", 40), {torch.bfloat16}))
    ):
        part, *options = words
        out = tmp_path / f"grown {number}"
        found = told(capsys, part, tmp_path / "short", *options, "-o", out)["equivalence"]
        assert found["tolerance"] == pytest.approx(tolerance(dtypes) * found["largest"])
        assert found["difference"] <= found["tolerance"]
        assert (found["difference"] > tolerance(set()) * found["largest"]) == bool(dtypes)


def test_models_too_large_to_check_are_not_unless_asked(
    tiny: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brickwork.cli.grow_check.MOST_BYTES", 1000)
    options = ("width", tiny, "--times", 2, "-o")
    assert main(["grow", *map(str, options), str(tmp_path / "a"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["equivalence"] is None
    assert "not checked: both models together take 0.0 GB" in said.err
    assert told(capsys, *options, tmp_path / "b", "--check")["equivalence"]["promised"]


def test_tokens_come_from_a_file_and_from_options(
    tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "words.txt").write_text("wombat\n\nquokka\n", encoding="utf-8")
    more = ("--tokens-from", tmp_path / "words.txt", "--token", "numbat")
    document = told(capsys, "vocab", tiny, "--by", "pieces", *more, "-o", tmp_path / "grown")
    assert document["steps"][0]["options"]["tokens"] == ["wombat", "quokka", "numbat"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "grown")
    assert len(tokenizer("numbat", add_special_tokens=False)["input_ids"]) == 1


def test_the_tokenizer_learns_of_longer_texts(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    assert AutoTokenizer.from_pretrained(tiny).model_max_length == 64
    told(capsys, "context", tiny, "--tokens", 96, "--no-check", "-o", tmp_path / "grown")
    assert AutoTokenizer.from_pretrained(tmp_path / "grown").model_max_length == 96


def test_groups_of_a_partition_become_experts(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    ways = ("--by", "partition", "--partition", tiny.parent / "groups")
    planned = told(capsys, "experts", tiny, *ways, "--top-k", 2, "--dry-run")
    assert planned["experts"] == 4
    whole = told(capsys, "experts", tiny, *ways, "-o", tmp_path / "whole")
    assert whole["equivalence"]["promised"]
    torch.testing.assert_close(logits(tmp_path / "whole"), logits(tiny), atol=1e-4, rtol=0)
    some = told(capsys, "experts", tiny, *ways, "--top-k", 2, "-o", tmp_path / "some")
    assert not some["equivalence"]["promised"]
    assert some["parameters"] == planned["parameters"]


def test_a_recipe_grows_step_after_step(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = tmp_path / "larger.yaml"
    recipe.write_text(
        "seed: 3\nsteps:\n"
        "- {part: width, by: split, options: {times: 2}}\n"
        "- {part: depth, by: blocks, options: {blocks: 2}}\n"
    )
    document = told(capsys, "recipe", tiny, recipe, "-o", tmp_path / "grown")
    assert [step["part"] for step in document["steps"]] == ["width", "depth"]
    assert document["equivalence"]["promised"]
    assert [step.seed for step in read_growth(tmp_path / "grown").steps] == [3, 4]
    other = told(capsys, "recipe", tiny, recipe, "--seed", 8, "--dry-run")
    assert other["after"] == document["after"]
    recipe.write_text("steps: [{part: widht, by: split}]")
    assert "did you mean 'width'?" in refused(capsys, "recipe", tiny, recipe, "--dry-run")
    recipe.write_text("steps: []")
    assert "larger.yaml is no recipe of growth" in refused(
        capsys, "recipe", tiny, recipe, "--dry-run"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("width --times 2", "nowhere to write the grown model to; name a folder (-o)"),
        ("width --times 2 -o {tiny}", "which is there already"),
        (
            "width --by zero --shares even",
            "--shares has no effect on width by zero, whose options are --neurons, --times, --part",
        ),
        ("depth --by blocks", "depth by blocks was asked for without --blocks; give it"),
        ("depth --by nonsense", "'nonsense' is not one of 'identity', 'blocks', 'copy', 'stack'"),
        ("vocab", "without --token; give it (the options are --token, --tokens-from)"),
        ("width --neurons 0", "neurons: Input should be greater than or equal to 1, not 0"),
        ("width --neurons 8", "8 neurons were asked for, and there are 48 already"),
        ("experts --experts 2 --partition {tiny}", "--partition has no effect on experts by"),
        ("experts --by partition", "without the folder of a partition; make one"),
        (
            "experts --by partition --partition {tiny} --experts 3",
            "--experts has no effect on experts by partition, whose options are --partition, --top",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(
    words: str, message: str, tiny: Path, capsys: Capture
) -> None:
    part, *options = words.format(tiny=tiny).split()
    dry = [] if "nowhere" in message or "there already" in message else ["--dry-run"]
    assert message in refused(capsys, part, tiny, *options, *dry)


@pytest.mark.parametrize("row", growths().values(), ids=lambda row: f"{row.part}-{row.name}")
def test_every_option_of_every_row_can_be_written(row: Any) -> None:
    command = getattr(grow_part, row.part)
    assert isinstance(command, PartCommand)
    options = {p.opts[0]: p for p in command.get_params(click.Context(command)) if p.name}
    by = options["--by"].type
    assert isinstance(by, click.Choice)
    assert row.name in by.choices
    for name, field in load_target(row.options).model_fields.items():
        assert flag_of(name, field) in options
        assert field.description, f"{row.options} does not say what {name} is"


def test_the_help_of_a_part_loads_nothing_heavy() -> None:
    # Else --offline, which libraries look for as they load, would come too late.
    code = (
        "import sys; from brickwork.cli.main import main; main(['grow', 'width', '--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--shares [even|uneven]" in found.stdout
    assert "For split: Shares that copies have" in " ".join(found.stdout.split())
