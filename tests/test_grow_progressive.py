"""Progressive prompts: what is trained, what is kept to the bit, and that the runtime agrees."""

from dataclasses import replace

import pytest
import torch

from brickwork.brick.brick import Brick
from brickwork.brick.check import require_fit
from brickwork.brick.configuration import Configuration, parse_uses
from brickwork.brick.spec import Function
from brickwork.errors import ConfigurationError, DataError, GrowthError, MisfitError
from brickwork.grow.progressive import PromptRecipe, train_progressive
from brickwork.model.fit import FitRecipe
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.lora import About
from brickwork.model.train import Encoded
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.score import mean_loss
from tests.bricks import random_brick
from tests.tiny import FAMILIES, tiny_model

TRAINING = FitRecipe(8e-2, steps=14, tokens_per_batch=128, warm_up=2)
RECIPE = PromptRecipe(TRAINING, tokens=3)
BRIEF = PromptRecipe(replace(TRAINING, steps=2), tokens=3)


def about(name: str) -> About:
    return About(name, Function(text="Say it again."), "made up", "Apache-2.0")


def copying(seed: int = 0) -> list[Encoded]:
    chance = torch.Generator().manual_seed(seed)
    words = torch.randint(4, 90, (16, 3), generator=chance).tolist()
    return [Encoded([*w, 3, *w], 4) for w in words]


@pytest.fixture
def loaded() -> LoadedModel:
    return wrap_model(tiny_model("llama"), name="tiny")


def loss_with(loaded: LoadedModel, sequences: list[Encoded], brick: Brick | None) -> float:
    model = ConfiguredModel(loaded)
    pairs = [(s.ids[:4], s.ids[4:]) for s in sequences]
    if brick is None:
        return mean_loss(model, pairs, Configuration())
    model.add(brick)
    return mean_loss(model, pairs, Configuration(bricks=parse_uses(brick.spec.name)))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_what_the_runtime_runs(family: str) -> None:
    """At a rate of 0 the loss of the training is that of the brick."""
    loaded = wrap_model(tiny_model(family))
    still = replace(RECIPE, training=replace(TRAINING, rate=0.0, steps=1))
    earlier = train_progressive(loaded, copying(), still, about("first"))
    losses: list[float] = []
    other = replace(still, training=replace(still.training, seed=1))  # begins at other words
    brick = train_progressive(
        loaded, copying(), other, about("second"), earlier=earlier,
        report=lambda _step, _steps, loss: losses.append(loss),
    )  # fmt: skip
    require_fit(brick, loaded.base)
    # The runtime pads on the left, and its sums are of other shapes.
    assert losses[0] == pytest.approx(loss_with(loaded, copying(), brick), abs=1e-4)


@pytest.mark.parametrize("bottleneck", [0, 8])
def test_each_task_gets_a_prompt_that_helps_and_the_others_stay(
    loaded: LoadedModel, bottleneck: int
) -> None:
    recipe = replace(RECIPE, bottleneck=bottleneck)
    state = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    asked = [p.requires_grad for p in loaded.model.parameters()]
    first = train_progressive(loaded, copying(), recipe, about("first"))
    second = train_progressive(loaded, copying(1), recipe, about("second"), earlier=first)
    third = train_progressive(loaded, copying(2), recipe, about("third"), earlier=second)
    vectors = [next(iter(b.tensors.values())) for b in (first, second, third)]
    assert [len(v) for v in vectors] == [3, 6, 9]
    assert torch.equal(vectors[1][3:], vectors[0])
    assert torch.equal(vectors[2][3:], vectors[1])
    assert third.spec.lineage.parents == (second.hash,)
    for number, brick in enumerate((first, second, third)):
        bare = loss_with(loaded, copying(number), None)
        assert loss_with(loaded, copying(number), brick) < bare - 0.1
    after = loaded.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert [p.requires_grad for p in loaded.model.parameters()] == asked
    assert all(p.grad is None for p in loaded.model.parameters())


def test_a_bottleneck_begins_where_it_is_not_there(loaded: LoadedModel) -> None:
    still = replace(RECIPE, training=replace(TRAINING, rate=0.0, steps=1))
    plain = train_progressive(loaded, copying(), still, about("a"))
    bent = train_progressive(loaded, copying(), replace(still, bottleneck=8), about("a"))
    words = loaded.model.get_input_embeddings().weight
    (vectors,), (others,) = plain.tensors.values(), bent.tensors.values()
    assert torch.equal(vectors, others)
    assert all((words == vector).all(1).any() for vector in vectors)


def test_equal_seeds_give_equal_bricks_and_chance_is_left_alone(loaded: LoadedModel) -> None:
    before = torch.get_rng_state()
    one, two = (train_progressive(loaded, copying(), BRIEF, about("a")) for _ in range(2))
    assert one == two
    assert torch.equal(torch.get_rng_state(), before)


def test_a_wider_earlier_prompt_is_not_rounded() -> None:
    wide = wrap_model(tiny_model("llama"))
    first = train_progressive(wide, copying(), BRIEF, about("first"))
    narrow = wrap_model(tiny_model("llama").bfloat16())
    same = first.spec.model_copy(update={"base": narrow.base.fingerprint})
    first = Brick(same, first.tensors)
    second = train_progressive(narrow, copying(), BRIEF, about("second"), earlier=first)
    (vectors,), (earlier,) = second.tensors.values(), first.tensors.values()
    assert torch.equal(vectors[3:], earlier)
    alone = train_progressive(narrow, copying(), BRIEF, about("alone"))
    assert next(iter(alone.tensors.values())).dtype == torch.bfloat16


def test_refuses_what_cannot_be_trained(loaded: LoadedModel) -> None:
    chance = torch.Generator().manual_seed(0)
    with pytest.raises(DataError, match="no training data for brick 'a'"):
        train_progressive(loaded, [], BRIEF, about("a"))
    with pytest.raises(ConfigurationError, match="a prompt of 0 vectors"):
        train_progressive(loaded, copying(), replace(RECIPE, tokens=0), about("a"))
    lora = random_brick("lora", loaded.base, chance, name="other")
    with pytest.raises(GrowthError, match="brick 'other' is a lora, and a prompt can only follow"):
        train_progressive(loaded, copying(), BRIEF, about("a"), earlier=lora)
    foreign = random_brick("prompt", wrap_model(tiny_model("llama", seed=1)).base, chance)
    with pytest.raises(MisfitError, match="does not fit this base"):
        train_progressive(loaded, copying(), BRIEF, about("a"), earlier=foreign)


def test_refuses_more_positions_than_were_learned() -> None:
    loaded = wrap_model(tiny_model("gpt2"))
    with pytest.raises(DataError, match="58 vectors were to stand before up to 7 tokens, but the"):
        train_progressive(loaded, copying(), replace(RECIPE, tokens=58), about("a"))
