"""The packaged model, probe set and bricks are what the card says."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from brickwork.brick.brick import Brick
from brickwork.brick.configuration import Configuration, Options, parse_uses
from brickwork.brick.folder import read_brick
from brickwork.brick.spec import FUNCTIONALITIES
from brickwork.measure.perplexity import response_losses
from brickwork.model.load import LoadedModel, load_model
from brickwork.reference.bricks import split
from brickwork.reference.builtin import builtin_store
from brickwork.reference.paths import NAME, bricks_folder, model_folder
from brickwork.reference.probe import probe_instances
from brickwork.reference.tasks import TASKS, additions
from brickwork.reference.tokenizer import encode_instances
from brickwork.runtime.configured import ConfiguredModel

CARD = model_folder().parent / "MODEL_CARD.md"
FOLDERS = sorted(p for p in bricks_folder().iterdir() if p.is_dir())


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(model_folder()), dtype="float32", device="cpu", name=NAME)


def card_rows(first: str) -> dict[str, list[str]]:
    """The rows of the card's table whose head starts with ``first``."""
    lines = CARD.read_text().split(f"| {first}")[1].splitlines()[2:]
    rows = [line.strip("| ").split("|") for line in lines[: lines.index("")]]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}


def test_the_package_stays_small() -> None:
    size = sum(p.stat().st_size for p in model_folder().parent.rglob("*") if p.is_file())
    assert size < 40e6


def test_the_probe_set_is_balanced_and_says_where_it_is_from() -> None:
    counts = Counter(i.functionality for i in probe_instances())
    assert set(counts) == set(FUNCTIONALITIES)
    assert min(counts.values()) >= 150


def test_the_card_gives_the_losses_that_are_measured(loaded: LoadedModel) -> None:
    probe = probe_instances()
    assert loaded.tokenizer is not None
    encoded = encode_instances(loaded.tokenizer, probe, 1024)
    losses = response_losses(loaded.model, encoded, [i.functionality for i in probe])
    rows = card_rows("functionality")
    assert set(rows) == set(losses)
    for name, loss in losses.items():
        # two decimals in the card, and float32 sums in another order
        assert float(rows[name][-1]) == pytest.approx(loss, abs=0.011)


def test_the_shipped_model_is_better_than_the_seed_everywhere() -> None:
    training = json.loads((model_folder() / "training.json").read_text())
    for name, (seed, ours, seed_packaged, ours_packaged) in card_rows("functionality").items():
        assert float(ours) == pytest.approx(training["response_loss"][name], abs=0.006)
        assert float(ours) < float(seed)
        assert float(ours_packaged) < float(seed_packaged)


def test_there_is_a_brick_for_every_task_with_figures_in_the_card() -> None:
    assert {folder.name for folder in FOLDERS} == {task.name for task in TASKS}
    rows = card_rows("brick")
    for folder in FOLDERS:
        loss, exact = read_brick(folder).spec.metrics
        figures = [float(f) for cell in rows[folder.name][-2:] for f in re.findall(r"[\d.]+", cell)]
        assert figures == pytest.approx(
            [loss.before, loss.after, exact.before, exact.after], abs=0.01
        )
        assert loss.before is not None
        assert loss.after < loss.before - 0.3


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_plain_peft_loads_the_brick_to_the_same_logits(folder: Path, loaded: LoadedModel) -> None:
    brick: Brick = read_brick(folder)
    assert "/" not in json.dumps(brick.spec.peft)
    model = ConfiguredModel(loaded)
    model.add(brick)
    ids = model.encode(list(brick.spec.function.exemplars[:2]))
    uses = Configuration(bricks=parse_uses(folder.name))
    ours = model.logits(ids, [uses, uses])
    plain = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, str(folder)).eval()
    with torch.inference_mode():
        for row, logits in zip(ids, ours, strict=True):
            expected = theirs(input_ids=torch.tensor([row])).logits[0]
            # float32, products in another order
            torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


def test_the_addition_brick_adds_what_it_has_not_seen(loaded: LoadedModel) -> None:
    model = ConfiguredModel(loaded)
    model.add(read_brick(bricks_folder() / "addition"))
    held_out = split(additions(Path()))[0][:30]
    options = Options(max_new_tokens=4)
    right = {}
    for bricks in ("addition", ""):
        configuration = Configuration(bricks=parse_uses(bricks), options=options)
        answers = model.generate([i.prompt for i in held_out], [configuration] * len(held_out))
        right[bricks] = sum(a.text == i.response for a, i in zip(answers, held_out, strict=True))
    assert right["addition"] > right[""] + 5


def test_the_built_in_store_is_made_once(tmp_path: Path) -> None:
    for _ in range(2):
        with builtin_store(tmp_path) as store:
            assert [e.reference for e in store.list()] == [f"{f.name}@1" for f in FOLDERS]
            assert store.verify() == []
