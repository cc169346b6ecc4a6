"""Learn coefficients of bricks as a recipe says, and compare them with what needs no learning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from brickwork.brick.brick import Brick
from brickwork.combine.candidates import Pair, Split, by_function
from brickwork.combine.descent import descend, objective_on
from brickwork.combine.learned import Learned, lorahub
from brickwork.combine.search_recipe import LearnSpec
from brickwork.combine.weighted import WeightedBricks
from brickwork.model.load import LoadedModel

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Lesson:
    """Learned coefficients, and losses by name on both sides of the split.

    The losses are nats per response token, a mean over functionalities: of the bare base, of
    uniform weights, of each brick alone, and of what was learned.
    """

    learned: Learned
    search: dict[str, float]
    held_out: dict[str, float]


def learn_coefficients(
    loaded: LoadedModel,
    bricks: Sequence[Brick],
    spec: LearnSpec,
    split: Split,
    *,
    seed: int = 0,
    advance: Advance = lambda _steps: None,
) -> Lesson:
    """Learn on one side of a split, and measure on both.

    Args:
        loaded: the base.
        bricks: of forms that take a weight.
        spec: how to learn.
        split: ``by: entropy`` looks at the prompts of its first side alone.
        seed: of every random choice.
        advance: told the steps done.
    """
    groups = len(loaded.base.of_kind("block")) if spec.layerwise else 1
    work, count = WeightedBricks(loaded, bricks, groups), len(bricks)
    if spec.by == "lorahub":
        learned = lorahub(
            lambda some: [mean_loss(work, [[w] for w in one], split.search) for one in some],
            count, steps=spec.steps, bound=spec.bound, regularisation=spec.regularisation,
            seed=seed, advance=advance,
        )  # fmt: skip
    else:
        objective = objective_on(work, [s for _, s in split.search], spec.by, seed=seed)
        learned = descend(
            objective, torch.full((count, groups), 1 / count), steps=spec.steps, rate=spec.rate,
            bound=spec.bound, regularisation=spec.regularisation, advance=advance,
        )  # fmt: skip
    weights: dict[str, Sequence[Sequence[float]]] = {
        "no brick": [[0.0] * groups] * count,
        "uniform, 1": [[1.0] * groups] * count,
        f"uniform, 1/{count}": [[1 / count] * groups] * count,
        **{
            f"only {brick.spec.name}": [[float(n == own)] * groups for n in range(count)]
            for own, brick in enumerate(bricks)
        },
        "learned": learned.weights,
    }
    search, held_out = (
        {name: mean_loss(work, own, side) for name, own in weights.items()}
        for side in (split.search, split.held_out)
    )
    return Lesson(learned, search, held_out)


def mean_loss(
    bricks: WeightedBricks, weights: Sequence[Sequence[float]], pairs: Sequence[Pair]
) -> float:
    """Nats per response token, each functionality counting as much as the others."""
    parts = by_function(pairs)
    return sum(bricks.mean(weights, own, "loss") for own in parts.values()) / len(parts)
