"""``brickwork grow task``: bricks for a stream of tasks, and what is told of it."""

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from brickwork.brick.brick import Brick
from brickwork.brick.folder import read_brick
from brickwork.cli.main import main
from brickwork.grow.stream_measures import average
from brickwork.grow.task_router import read_router
from brickwork.report.stream import read_stream
from brickwork.store.store import Store
from tests.tiny import tiny_model, tiny_tokenizer

Capture = pytest.CaptureFixture[str]
QUICK = ("--steps", 8, "--batch", 192, "--rate", 2e-2, "--rank", 4, "--evaluation", 4)


def instances(letters: str, name: str, ask: str) -> list[dict[str, str]]:
    """Forty of different prompts, all of one kind."""
    draw = random.Random(name)
    words = draw.sample(["".join(word) for word in product(letters, repeat=3)], 40)
    return [{"prompt": f"{ask} {one}", "response": one[::-1]} for one in words]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, two tasks, and what it could do before."""
    place = tmp_path_factory.mktemp("task")
    tiny_model("llama").save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    for name, letters, ask in (("turn", "aeiou", "turn round"), ("mirror", "13579", "mirror of")):
        lines = instances(letters, name, ask)
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    known = [
        {"functionality": name, **one}
        for name, letters in (("Writing", "xyzwv"), ("Ethics", "klmno"))
        for one in instances(letters, name, "say")
    ]
    (place / "known.jsonl").write_text("\n".join(map(json.dumps, known)))
    return place


def words_of(world: Path, *more: object) -> list[str]:
    """The command on both tasks, with what the base can do."""
    tasks = [f"--task={name}={world / name}.jsonl" for name in ("turn", "mirror")]
    every = [world / "model", *tasks, "--data", world / "known.jsonl", *QUICK, *more]
    return ["grow", "task", *map(str, every)]


def told(capsys: Capture, words: list[str]) -> dict[str, Any]:
    """The document of a command that went well."""
    code = main([*words, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    document: dict[str, Any] = json.loads(said.out)
    return document


def test_each_task_gets_a_brick_in_a_folder_and_in_the_store(
    world: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    more = ("--store", store, "--report", tmp_path / "page", "-o", out, "--strategy", "bricks")
    document = told(capsys, words_of(world, *more, "--strategy", "oracle"))
    assert set(document["bricks"]) == {"turn", "mirror"}
    assert document["routing"]
    with Store.open(store, create=False) as opened:
        for name, reference in document["bricks"].items():
            kept, written = opened.get(reference), read_brick(out / "bricks" / name)
            assert kept == written
            assert len(written.spec.function.exemplars) == 12
    study = read_stream(out)
    bricks, oracle = study.results
    assert [one["loss"]["after"] for one in document["results"]] == [
        average(bricks.losses), average(oracle.losses),
    ]  # fmt: skip
    # Told the true task, a brick that was learned is better than none.
    assert average(oracle.losses) < sum(oracle.losses[0]) / 2
    for one, own in zip(document["results"], study.results, strict=True):
        assert own.moved == one["moved"]["instances"] == 0
        assert one["moved"]["of"] > 0
    assert (tmp_path / "page" / "stream.html").is_file()


def test_a_classifier_is_kept_and_whole_models_forget(
    world: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    told(capsys, words_of(world, "--router", "classifier", "-o", out))
    assert read_router(out / "router").names == ("turn", "mirror")
    more = ("--strategy", "full", "--set", "replay=0.5", "--set", "instances=20")
    full = told(capsys, words_of(world, *more, "-o", tmp_path / "full"))
    (result,) = full["results"]
    assert result["base"]["value"] != 0
    assert full["bricks"] == {}
    assert read_stream(tmp_path / "full").results[0].options["replay"] == 0.5


def test_a_dry_run_learns_and_writes_nothing(world: Path, tmp_path: Path, capsys: Capture) -> None:
    words = words_of(world, "-o", tmp_path / "out", "--dry-run")
    document = told(capsys, words)
    assert not any(tmp_path.iterdir())
    assert {name: own["train"] for name, own in document["tasks"].items()} == {
        "turn": 36, "mirror": 36,
    }  # fmt: skip
    assert document["functionalities"] == {"Ethics": 4, "Writing": 4}
    assert "results" not in document
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "turn: 36 examples to learn from, 4 to measure on" in said
    assert "not to be forgotten: Ethics (4), Writing (4)" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "nowhere to write bricks and measures to"),
        ("-o {world}", "which is there already"),
        ("-o out --task Turn=x.jsonl", "write NAME=FILE"),
        ("-o out --task turn", "write NAME=FILE"),
        ("-o out --strategy brick", "did you mean 'bricks'"),
        ("-o out --set blocks=2", "the options of the strategy 'bricks' are not valid"),
        ("-o out --strategy full --strategy lora --set replay=0.1", "each of which has options"),
    ],
)
def test_a_stream_that_makes_no_sense_is_refused(
    more: str, message: str, world: Path, capsys: Capture
) -> None:
    assert main(words_of(world, *more.format(world=world).split())) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_classifier_needs_to_know_what_the_base_can_do(world: Path, capsys: Capture) -> None:
    words = ["grow", "task", str(world / "model"), f"--task=turn={world / 'turn.jsonl'}"]
    assert main([*words, "--router", "classifier", "-o", "out"]) == 2
    assert "need examples of what the base can do" in " ".join(capsys.readouterr().err.split())


def test_bricks_that_are_alike_become_one_and_every_task_is_measured(
    world: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    document = told(capsys, words_of(world, "-o", out, "--consolidate", -0.99))
    found = document["consolidation"]
    assert [one["group"] for one in found["tasks"]] == ["group-1", "group-1"]
    assert json.loads((out / "consolidation.json").read_text()) == found
    assert all(one["before"] < one["base"] for one in found["tasks"]), "each brick was learned"
    merged, first, second = (
        read_brick(out / "bricks" / name) for name in ("group-1", "turn", "mirror")
    )
    site = first.spec.sites[0]

    def update(brick: Brick) -> torch.Tensor:
        own = brick.by_site[site]
        return own["B"] @ own["A"] * (brick.spec.options["alpha"] / len(own["A"]))

    # Products of float32 in another order.
    assert torch.allclose(update(merged), (update(first) + update(second)) / 2, atol=1e-5)


def test_nothing_is_merged_that_is_not_alike_or_no_brick(
    world: Path, tmp_path: Path, capsys: Capture
) -> None:
    document = told(capsys, words_of(world, "-o", tmp_path / "out", "--consolidate", 1.0))
    assert document["consolidation"] is None
    words = words_of(world, "-o", tmp_path / "more", "--consolidate", 0.5, "--strategy", "full")
    assert main(words) == 2
    assert "makes no brick for each task" in capsys.readouterr().err
