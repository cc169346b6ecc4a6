"""The reference model's training script, on a few made-up instructions."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from brickwork.reference import train as training
from brickwork.reference.corpus import is_withheld, training_instances
from brickwork.reference.tasks import additions, robot_commands
from brickwork.reference.train import Recipe, rate_factor, train_reference

SMALL = replace(
    Recipe(), vocabulary=300, hidden=32, intermediate=48, layers=2, heads=2, kv_heads=1,
    tokens=4096, tokens_per_step=512, tokens_per_pass=256, warm_up=2,
)  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "instructions").mkdir(parents=True)
    (root / "text").mkdir()
    tasks = ["sums", "closed", "tldr_command"]
    lines = [
        {"id": f"{task}-{i}", "functionality": "Math", "task": task,
         "prompt": f"What is {i} and {i}?", "response": str(2 * i)}
        for task in tasks for i in range(60)
    ]  # fmt: skip
    content = "\n".join(map(json.dumps, lines)).encode()
    for name in ("train", "probe"):
        (root / "instructions" / f"{name}.jsonl.gz").write_bytes(gzip.compress(content))
    (root / "instructions" / "tasks.tsv").write_text(
        "task\tlicence\nsums\tMIT\nclosed\tCC BY-SA 4.0\ntldr_command\tCC BY 4.0\n"
    )
    (root / "text" / "a.txt.gz").write_bytes(gzip.compress(b"one two three four " * 200))
    return root


def test_leaves_out_share_alike_and_withheld_tasks(data: Path) -> None:
    assert {i.task for i in training_instances(data)} == {"sums"}
    assert is_withheld("tatoeba_fr_en")


def test_trains_writes_a_standard_folder_and_learns(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = train_reference(data, tmp_path / "out", SMALL, "cpu", said.append)
    assert result["tokens"] > 2000
    # Untrained, 300 tokens are guessed at ln 300 = 5.7 nats.
    assert result["response_loss"]["Math"] < 5.5
    assert load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == result


def test_a_stopped_run_goes_on_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_reference(data, tmp_path / "whole", SMALL, "cpu", lambda line: None)
    real, calls = training.train_step, iter(range(100))

    def stops_after_three(*arguments: object) -> float:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train_step", stops_after_three)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        train_reference(data, tmp_path / "parts", SMALL, "cpu", lambda line: None)
    monkeypatch.undo()
    train_reference(data, tmp_path / "parts", SMALL, "cpu", lambda line: None)
    whole, parts = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    rates = [rate_factor(step, 1000, Recipe()) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / Recipe().warm_up)
    assert rates[500] == 1
    assert rates[-1] == 0
    assert rates[650:] == sorted(rates[650:], reverse=True)


def test_generated_tasks_are_right_and_without_repeats() -> None:
    sums = additions(Path())
    assert len({i.id for i in sums}) == 3600
    for instance in sums[:500]:
        assert sum(map(int, instance.id.split("-")[1:3])) == int(instance.response)
    commands = robot_commands(Path())
    assert len({i.prompt.split(": ")[-1] for i in commands}) > 2000
    found = [i.response for i in commands if "jump left twice after walk" in i.prompt]
    assert "WALK TURN-LEFT JUMP TURN-LEFT JUMP" in found
