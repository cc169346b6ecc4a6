"""build_task: a LoRA that helps on its task, and a base that is as it was."""

import pytest
import torch

from brickwork.brick.configuration import Configuration, parse_uses
from brickwork.brick.spec import Function
from brickwork.build.task import About, LoraRecipe, build_task
from brickwork.errors import DataError
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.train import Encoded
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.score import mean_loss
from tests.tiny import tiny_model

ABOUT = About("copy", Function(text="Say it again."), "made up", "Apache-2.0")


def recipe(*targets: str) -> LoraRecipe:
    return LoraRecipe(4, 8, targets, rate=1e-2, epochs=6, tokens_per_batch=128, warm_up=2)


@pytest.fixture
def loaded() -> LoadedModel:
    return wrap_model(tiny_model("llama"), name="tiny")


@pytest.fixture
def copying() -> list[Encoded]:
    chance = torch.Generator().manual_seed(0)
    words = torch.randint(4, 90, (40, 3), generator=chance).tolist()
    return [Encoded([*w, 3, *w], 4) for w in words]


def test_the_brick_helps_and_the_base_is_untouched(
    loaded: LoadedModel, copying: list[Encoded]
) -> None:
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    brick = build_task(loaded, copying, recipe("q_proj", "v_proj", "down_proj"), ABOUT)
    after = loaded.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert brick.spec.peft is not None  # the order of a set would give each process its own hash
    assert brick.spec.peft["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    model = ConfiguredModel(loaded)
    model.add(brick)
    pairs = [(s.ids[:4], s.ids[4:]) for s in copying]
    bare = mean_loss(model, pairs, Configuration())
    assert mean_loss(model, pairs, Configuration(bricks=parse_uses("copy"))) < bare - 0.1


def test_equal_seeds_give_equal_bricks(loaded: LoadedModel, copying: list[Encoded]) -> None:
    first, second = (build_task(loaded, copying, recipe("q_proj"), ABOUT) for _ in range(2))
    assert first.hash == second.hash


def test_the_brick_tells_how_it_was_made(loaded: LoadedModel, copying: list[Encoded]) -> None:
    seen: list[tuple[int, int]] = []
    brick = build_task(
        loaded,
        copying,
        recipe("q_proj"),
        ABOUT,
        lambda step, steps, loss: seen.append((step, steps)),
    )
    assert brick.spec.lineage.data == "made up"
    assert brick.spec.lineage.arguments["rank"] == 4
    assert brick.spec.base == loaded.base.fingerprint
    assert [step for step, _ in seen] == list(range(1, seen[0][1] + 1))


def test_refuses_to_train_on_nothing(loaded: LoadedModel) -> None:
    with pytest.raises(DataError, match="no training data for brick 'copy'"):
        build_task(loaded, [], recipe("q_proj"), ABOUT)
