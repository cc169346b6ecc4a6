"""Learned coefficients: planted ones are found, gradients are right, bricks run as they merge."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.configuration import BrickUse, Configuration
from brickwork.combine.descent import descend, objective_on
from brickwork.combine.learned import lorahub
from brickwork.combine.weighted import WeightedBricks
from brickwork.errors import ConfigurationError, MergeError
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.runtime.configured import ConfiguredModel
from tests.bricks import random_brick
from tests.test_measure_activations import instances
from tests.tiny import FAMILIES, tiny_model

planted = st.lists(st.floats(-1.2, 1.2), min_size=1, max_size=4)


def bowl(target: Sequence[float]) -> object:
    """A loss whose least value is at the target."""
    return lambda some: [
        sum((w - t) ** 2 for w, t in zip(one, target, strict=True)) for one in some
    ]


@settings(max_examples=15)
@given(planted, st.integers(0, 5))
def test_lorahub_finds_planted_weights(target: list[float], seed: int) -> None:
    found = lorahub(bowl(target), len(target), steps=400, regularisation=0, seed=seed)  # type: ignore[arg-type]
    # 400 candidates in at most 4 dimensions bring CMA-ES to a few hundredths.
    assert [w for (w,) in found.weights] == pytest.approx(target, abs=0.05)
    assert list(found.history) == sorted(found.history, reverse=True)


def test_lorahub_regularises_stays_in_bounds_and_repeats() -> None:
    first = lorahub(bowl([0.8, 0.02]), 2, steps=400, seed=3)  # type: ignore[arg-type]
    assert first == lorahub(bowl([0.8, 0.02]), 2, steps=400, seed=3)  # type: ignore[arg-type]
    # Where 2 (w - target) is the regularisation's slope of 0.05 / 2; as near as above.
    assert [w for (w,) in first.weights] == pytest.approx([0.7875, 0.0075], abs=0.02)
    (found,) = lorahub(bowl([9.0]), 1, steps=100).weights  # type: ignore[arg-type]
    assert 1.4 < found[0] <= 1.5


def test_lorahub_begins_with_nothing_and_passes_over_losses_that_are_not_finite() -> None:
    seen: list[Sequence[float]] = []

    def losses(some: Sequence[Sequence[float]]) -> list[float]:
        seen.extend(some)
        return [float("nan") if one[0] > 0.5 else (one[0] - 0.4) ** 2 for one in some]

    found = lorahub(losses, 2, steps=100, regularisation=0)
    assert list(seen[0]) == [0.0, 0.0]
    assert found.weights[0][0] == pytest.approx(0.4, abs=0.05)
    with pytest.raises(ConfigurationError, match="has a finite loss"):
        lorahub(lambda some: [float("inf") for _ in some], 2)
    with pytest.raises(ConfigurationError, match="over 0 weights"):
        lorahub(losses, 0)


def some_bricks(loaded: LoadedModel, seed: int = 0) -> list[Brick]:
    """One of each form that a weight can be learned of, small enough to stay in bounds."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for form in ("lora", "ia3", "bias", "steering"):
        brick = random_brick(form, loaded.base, generator, name=f"b-{form}")
        tensors = {name: 0.2 * t for name, t in brick.tensors.items()}
        found.append(Brick(brick.spec, tensors))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_weighted_bricks_give_the_logits_of_the_runtime(family: str) -> None:
    loaded = wrap_model(tiny_model(family))
    bricks, weights = some_bricks(loaded), [0.5, -0.3, 1.2, 0.7]
    runtime = ConfiguredModel(loaded)
    for brick in bricks:
        runtime.add(brick)
    uses = tuple(BrickUse(name=b.spec.name, weight=w) for b, w in zip(bricks, weights, strict=True))
    ids = [5, 9, 13, 17, 21]
    expected = runtime.logits([ids] * 2, [Configuration(bricks=uses)] * 2)
    weighted = WeightedBricks(loaded, bricks)
    with torch.no_grad(), weighted.at_work(torch.tensor(weights)[:, None], 2):
        found = loaded.model(torch.tensor([ids] * 2), use_cache=False).logits
    for row, own in zip(found, expected, strict=True):
        torch.testing.assert_close(row, own, rtol=1e-4, atol=1e-4)  # sums in another order


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("signal", ["loss", "entropy"])
def test_gradients_of_weights_equal_finite_differences(groups: int, signal: str) -> None:
    model = tiny_model("llama").double()
    loaded = wrap_model(model)
    bricks = WeightedBricks(loaded, some_bricks(loaded), groups)
    batch = instances(3)
    start = torch.full((4, groups), 0.3, dtype=torch.float64)

    def mean(weights: Tensor) -> Tensor:
        nats, tokens = bricks.signals(weights, batch, signal)  # type: ignore[arg-type]
        return nats.sum() / tokens.sum()

    weights = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mean(weights), [weights])
    for brick in range(4):
        for group in range(groups):
            step = torch.zeros_like(start)
            step[brick, group] = 1e-3
            slope = (mean(start + step) - mean(start - step)) / 2e-3
            # Losses are rounded to float32 inside: 1e-7 * |loss| / 2e-3.
            assert gradient[brick, group].item() == pytest.approx(slope.item(), abs=2e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_descent_lowers_the_loss_and_the_entropy() -> None:
    loaded = wrap_model(tiny_model("llama"))
    bricks, sequences = WeightedBricks(loaded, some_bricks(loaded), 2), instances(8)
    start = torch.zeros(4, 2)
    for signal in ("loss", "entropy"):
        before = bricks.mean(start.tolist(), sequences, signal)  # type: ignore[arg-type]
        objective = objective_on(bricks, sequences, signal)  # type: ignore[arg-type]
        found = descend(objective, start, steps=20)
        assert bricks.mean(found.weights, sequences, signal) < before  # type: ignore[arg-type]


def test_descent_finds_planted_weights_and_refuses_what_is_not_finite() -> None:
    target = torch.tensor([[0.5, -0.4], [1.9, 0.0]])
    found = descend(lambda w, _step: ((w - target) ** 2).sum(), torch.zeros(2, 2), steps=300)
    # Adam with steps of 0.05 stays within one step of the place; 1.9 is out of bounds.
    expected = torch.tensor([[0.5, -0.4], [1.5, 0.0]])
    torch.testing.assert_close(torch.tensor(found.weights), expected, rtol=0, atol=0.05)
    with pytest.raises(ConfigurationError, match="in step 0"):
        descend(lambda w, _step: w.sum() / 0, torch.zeros(1, 1))
    with pytest.raises(ConfigurationError, match="0 steps"):
        descend(lambda w, _step: w.sum(), torch.zeros(1, 1), steps=0)


def test_refuses_forms_without_a_weight_and_too_many_groups() -> None:
    loaded = wrap_model(tiny_model("llama"))
    prompt = random_brick("prompt", loaded.base, torch.Generator().manual_seed(0))
    with pytest.raises(MergeError, match="acts as a whole or not at all"):
        WeightedBricks(loaded, [prompt])
    with pytest.raises(MergeError, match="3 groups of layers"):
        WeightedBricks(loaded, some_bricks(loaded), 3)
