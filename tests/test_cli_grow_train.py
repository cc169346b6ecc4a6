"""``brickwork grow train`` and ``grow learned``: what they train, write, tell and refuse."""

import json
import random
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from brickwork.brick.folder import write_brick
from brickwork.cli.main import main
from brickwork.grow.fresh import fresh_masks
from brickwork.grow.memory import MemoryRecipe, remember
from brickwork.grow.record import read_growth
from brickwork.model.load import load_model
from brickwork.model.train import Encoded
from brickwork.report.growth import read_curve
from tests.tiny import tiny_model, tiny_tokenizer

Capture = pytest.CaptureFixture[str]
QUICK = ("--steps", 6, "--batch", 128, "--rate", 5e-3, "--warm-up", 1, "--every", 3)


def instances(letters: str, name: str) -> list[dict[str, str]]:
    """Twenty of different prompts."""
    draw = random.Random(name)
    words = draw.sample(["".join(word) for word in product(letters, repeat=3)], 20)
    return [{"functionality": name, "prompt": one, "response": one[::-1]} for one in words]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a grown one, data of two functionalities, older data, and a recipe."""
    place = tmp_path_factory.mktemp("train")
    tiny_model("llama").save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    lines = [*instances("aeiou", "Vowels"), *instances("13579", "Digits")]
    (place / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (place / "old.jsonl").write_text("\n".join(map(json.dumps, instances("xyzw", "Old"))))
    (place / "larger.yaml").write_text(
        "steps:\n- {part: width, by: split, options: {times: 2}}\n"
        "- {part: depth, by: blocks, options: {blocks: 1}}\n"
    )
    recipe = [str(place / name) for name in ("model", "larger.yaml", "grown")]
    assert main(["grow", "recipe", *recipe[:2], "-o", recipe[2], "--no-check"]) == 0
    return place


def told(capsys: Capture, command: str, *words: object) -> dict[str, Any]:
    """The document of a command that went well."""
    code = main(["grow", command, *map(str, words), "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    document: dict[str, Any] = json.loads(said.out)
    return document


def refused(capsys: Capture, command: str, *words: object) -> str:
    """What a command says that exits 2."""
    assert main(["grow", command, *map(str, words)]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_training_tells_how_each_functionality_went(
    world: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, report = tmp_path / "trained", tmp_path / "page"
    words = (world / "grown", "--data", world / "data.jsonl", "--for", "Vowels", *QUICK)
    document = told(capsys, "train", *words, "-o", out, "--report", report)
    assert document["learned"] == {"Vowels": 16}
    assert document["watched"] == {"Digits": 4, "Vowels": 4}
    assert document["trained"] == document["parameters"]
    curve = read_curve(out)
    assert curve.steps == (0, 3, 6)
    for name, own in document["losses"].items():
        assert own["before"] == curve.losses[name][0]
        assert own["after"] == curve.losses[name][-1]
    assert document["losses"]["Vowels"]["change"] < document["losses"]["Digits"]["change"]
    assert (report / "training.html").is_file()
    AutoModelForCausalLM.from_pretrained(out)


def test_only_what_is_new_is_trained_and_stays_known(
    world: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "trained"
    words = (world / "grown", "--data", world / "data.jsonl", "--only-new", *QUICK)
    document = told(capsys, "train", *words, "-o", out)
    before, after = (AutoModelForCausalLM.from_pretrained(f) for f in (world / "grown", out))
    masks = fresh_masks(before, read_growth(world / "grown").fresh)
    changed, new = 0, 0
    for path, parameter in before.named_parameters():
        mask = masks.get(path, torch.zeros(parameter.shape, dtype=torch.bool))
        fresh = torch.ones_like(parameter).bool() if mask is None else mask
        moved = parameter != after.get_parameter(path)
        assert not (moved & ~fresh).any(), path
        changed, new = changed + int(moved.sum()), new + int(fresh.sum())
    assert document["trained"] == new
    assert changed > new / 2
    assert read_growth(out) == read_growth(world / "grown")


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_older_instances_are_replayed_from_a_file_or_a_memory(
    kind: str, world: Path, tmp_path: Path, capsys: Capture
) -> None:
    replay = world / "old.jsonl"
    if kind == "memory":
        replay = tmp_path / "memory"
        loaded = load_model(str(world / "model"))
        old = [Encoded([5, 6, 7, n], 3) for n in range(8, 28)]
        write_brick(remember(loaded, "old", old, MemoryRecipe(instances=20)), replay)
    words = (world / "grown", "--data", world / "data.jsonl", "--replay", replay, "--share", 0.5)
    document = told(capsys, "train", *words, *QUICK, "-o", tmp_path / "out")
    assert document["replayed"] == 20
    assert read_curve(tmp_path / "out").share == 0.5


def test_what_is_measured_on_is_not_replayed(world: Path, capsys: Capture) -> None:
    same = world / "data.jsonl"
    words = (world / "grown", "--data", same, "--replay", same, "--dry-run")
    assert told(capsys, "train", *words)["replayed"] == 32


def test_a_dry_run_trains_and_writes_nothing(world: Path, tmp_path: Path, capsys: Capture) -> None:
    leave = shutil.ignore_patterns("*.safetensors")
    bare = shutil.copytree(world / "grown", tmp_path / "grown", ignore=leave)
    words = (bare, "--data", world / "data.jsonl", "--only-new", "--dry-run")
    document = told(capsys, "train", *words, "-o", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [bare]
    assert "losses" not in document
    assert 0 < document["trained"] < document["parameters"]
    assert document["training_flops"] > 0
    assert main(["grow", "train", *map(str, words)]) == 0
    assert "learned from: Digits (16), Vowels (16)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{grown} -o {out}", "without anything to learn from; name labelled instances"),
        ("{grown} --data {data}", "nowhere to write the trained model to; name a folder (-o)"),
        ("{grown} --data {data} --share 0.5 --dry-run", "--share was given without --replay"),
        ("{grown} --data {data} --for Vowel -o {out}", "did you mean 'Vowels'?"),
        ("{model} --data {data} --only-new -o {out}", "was to be a grown model"),
        ("{grown} --data {data} -o {model}", "which is there already"),
    ],
)
def test_training_that_makes_no_sense_is_refused(
    words: str, message: str, world: Path, tmp_path: Path, capsys: Capture
) -> None:
    places = {"grown": world / "grown", "model": world / "model", "data": world / "data.jsonl"}
    asked = words.format(**places, out=tmp_path / "out").split()
    assert message in refused(capsys, "train", *asked)
    assert not (tmp_path / "out").exists()


def test_learned_growth_starts_as_the_small_model_and_writes_the_large_one(
    world: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = (world / "model", world / "larger.yaml", "--data", world / "data.jsonl")
    planned = told(capsys, "learned", *words, "--dry-run")
    quick = ("--steps", 3, "--batch", 128)
    document = told(capsys, "learned", *words, *quick, "-o", tmp_path / "grown")
    assert planned["after"] == document["after"]
    assert document["trained"] > 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
    assert sum(p.numel() for p in model.parameters()) == document["after"]["parameters"]
    record = json.loads((tmp_path / "grown" / "brickwork.json").read_text())
    assert record["operation"] == "learned growth"
    assert len(record["losses"]) == 3
    assert main(["grow", "learned", *map(str, words), "--dry-run"]) == 0
    assert "width by split, depth by blocks" in capsys.readouterr().out


def test_learned_growth_needs_data_and_a_place(world: Path, capsys: Capture) -> None:
    words = (world / "model", world / "larger.yaml")
    assert "one of them is missing" in refused(capsys, "learned", *words, "--dry-run")
    more = ("--data", world / "data.jsonl")
    assert "one of them is missing" in refused(capsys, "learned", *words, *more)
