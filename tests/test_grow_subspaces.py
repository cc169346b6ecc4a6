"""O-LoRA: directions that differ, earlier bricks that act and rest, and a base left alone."""

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from brickwork.brick.brick import Brick
from brickwork.brick.check import require_fit
from brickwork.brick.configuration import Configuration, parse_uses
from brickwork.brick.effects import Add
from brickwork.brick.forms import effects_of
from brickwork.brick.spec import Function
from brickwork.errors import ConfigurationError, DataError, GrowthError, MisfitError
from brickwork.grow.subspaces import Orthogonality, shared_directions, train_orthogonal
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.lora import About, LoraRecipe, train_lora
from brickwork.model.train import Encoded
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.score import mean_loss
from tests.bricks import random_brick
from tests.tiny import FAMILIES, tiny_model

RECIPE = LoraRecipe(4, 8, ("q_proj", "down_proj"), rate=1e-2, epochs=6, tokens_per_batch=128,
                    warm_up=2)  # fmt: skip


def about(name: str) -> About:
    return About(name, Function(text="Say it again."), "made up", "Apache-2.0")


def copying(seed: int = 0) -> list[Encoded]:
    chance = torch.Generator().manual_seed(seed)
    words = torch.randint(4, 90, (20, 3), generator=chance).tolist()
    return [Encoded([*w, 3, *w], 4) for w in words]


@pytest.fixture
def loaded() -> LoadedModel:
    return wrap_model(tiny_model("llama"), name="tiny")


def overlap(one: Brick, other: Brick) -> float:
    """How much of what one brick reads the other reads: the mean squared cosine of principal
    angles, by QR in float64."""
    cosines = []
    for site, slots in one.by_site.items():
        bases = [np.linalg.qr(b.by_site[site]["A"].double().numpy().T)[0] for b in (one, other)]
        cosines.append(np.linalg.norm(bases[0].T @ bases[1]) ** 2 / len(slots["A"]))
    return float(np.mean(cosines))


def test_a_penalty_turns_the_new_directions_away(loaded: LoadedModel) -> None:
    recipe = replace(RECIPE, targets=("q_proj",), epochs=9)
    first = train_lora(loaded, copying(), recipe, about("first"))
    found = [
        train_orthogonal(
            loaded, copying(1), recipe, about("second"), earlier=[first],
            weights=Orthogonality(penalty),
        )
        for penalty in (0.0, 0.5)
    ]  # fmt: skip
    free, away = (overlap(first, brick) for brick in found)
    # 4 random directions of 32 share 1/8; Adam's steps end near, not at, no overlap.
    assert away < 0.02
    assert free > 0.08


def test_without_earlier_tasks_it_is_an_ordinary_lora(loaded: LoadedModel) -> None:
    plain = train_lora(loaded, copying(), RECIPE, about("a"))
    first = train_orthogonal(loaded, copying(), RECIPE, about("a"), earlier=[])
    assert all(torch.equal(first.tensors[n], t) for n, t in plain.tensors.items())
    assert first.spec.lineage.method == "O-LoRA, trained with PEFT"


def test_decay_makes_the_new_brick_smaller(loaded: LoadedModel) -> None:
    plain, small = (
        train_orthogonal(
            loaded, copying(), RECIPE, about("a"), earlier=[], weights=Orthogonality(0.0, decay)
        )
        for decay in (0.0, 1.0)
    )
    sizes = [sum(float(t.norm()) for t in b.tensors.values()) for b in (plain, small)]
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_earlier_bricks_act_while_the_new_one_learns(family: str) -> None:
    """The loss of the first batch is that of the earlier bricks: the new one is still nothing."""
    loaded = wrap_model(tiny_model(family))
    addresses = {"layers.0.attn.o", "layers.1.attn.o"}
    paths = tuple(s.path for s in loaded.base.sites.values() if s.address in addresses)
    chance = torch.Generator().manual_seed(0)
    earlier = [
        random_brick("lora", loaded.base, chance, name=name, sites=list(paths[-n:]))
        for name, n in (("one", 2), ("two", 1))
    ]
    state = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    losses: list[float] = []
    recipe = replace(RECIPE, targets=paths, tokens_per_batch=7 * 20, epochs=2)
    brick = train_orthogonal(
        loaded, copying(), recipe, about("three"), earlier=earlier,
        report=lambda _step, _steps, loss: losses.append(loss),
    )  # fmt: skip
    assert set(brick.spec.sites) == set(paths)
    assert brick.spec.lineage.parents == tuple(b.hash for b in earlier)
    require_fit(brick, loaded.base)
    after = loaded.model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert not any("forward" in vars(module) for module in loaded.model.modules())
    model = ConfiguredModel(loaded)
    for one in earlier:
        model.add(one)
    pairs = [(s.ids[:4], s.ids[4:]) for s in copying()]
    expected = mean_loss(model, pairs, Configuration(bricks=parse_uses("one,two")))
    assert losses[0] == pytest.approx(expected, abs=1e-4)  # sums in float32, in another order


def test_the_new_brick_is_that_of_a_loop_over_merged_weights(loaded: LoadedModel) -> None:
    """Independent: earlier bricks merged into the weights, the penalty written out."""
    chance = torch.Generator().manual_seed(0)
    sites = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    recipe = replace(RECIPE, targets=tuple(sites), epochs=2)
    earlier = random_brick("lora", loaded.base, chance, name="one", sites=sites)
    found = train_orthogonal(loaded, copying(), recipe, about("two"), earlier=[earlier])
    merged = wrap_model(tiny_model("llama"), name="tiny")
    adds = [effect for effect in effects_of(earlier) if isinstance(effect, Add)]
    with torch.no_grad():
        for add in adds:
            merged.model.get_submodule(add.site).weight += add.scaling * add.B @ add.A

    def penalty(model: nn.Module) -> torch.Tensor:
        layers: Any = dict(model.named_modules())
        products = [
            layers[f"base_model.model.{add.site}"].lora_A["default"].weight @ add.A.T
            for add in adds
        ]
        return 0.5 * torch.stack([product.abs().sum() for product in products]).sum()

    seeded = replace(recipe, seed=1)  # the second task
    expected = train_lora(merged, copying(), seeded, about("two"), penalty=penalty)
    for name, tensor in expected.tensors.items():
        # Adam's first steps depend on the signs of gradients, and those near 0 on rounding.
        torch.testing.assert_close(found.tensors[name], tensor, atol=2e-3, rtol=0)


def test_shared_directions_are_counted_by_size() -> None:
    one, other = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[-3.0, 5.0]])
    assert shared_directions(one, other) == 9
    assert shared_directions(one, torch.tensor([[0.0, 7.0]])) == 0


def test_refuses_what_does_not_go_together(loaded: LoadedModel) -> None:
    chance = torch.Generator().manual_seed(0)
    bias = random_brick("bias", loaded.base, chance, name="other")
    with pytest.raises(GrowthError, match="brick 'other' is a bias, and only LoRAs have directio"):
        train_orthogonal(loaded, copying(), RECIPE, about("a"), earlier=[bias])
    foreign = random_brick("lora", wrap_model(tiny_model("llama", seed=1)).base, chance)
    with pytest.raises(MisfitError, match="does not fit this base"):
        train_orthogonal(loaded, copying(), RECIPE, about("a"), earlier=[foreign])
    negative = Orthogonality(-1.0)
    with pytest.raises(ConfigurationError, match="neither can be negative"):
        train_orthogonal(loaded, copying(), RECIPE, about("a"), earlier=[], weights=negative)
    with pytest.raises(DataError, match="no training data for brick 'a'"):
        train_orthogonal(loaded, [], RECIPE, about("a"), earlier=[])
    assert not list(islice((m for m in loaded.model.modules() if "forward" in vars(m)), 1))
