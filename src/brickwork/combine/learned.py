"""Coefficients of bricks, learned from a few examples without gradients.

Source: Huang et al. 2023, LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA
Composition (arXiv:2307.13269).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from brickwork.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from cmaes import CMA

    Vector = np.ndarray[Any, np.dtype[np.float64]]

Advance = Callable[[float], None]
# The losses of several candidates, one coefficient for each brick: they may run side by side.
Losses = Callable[[Sequence[Sequence[float]]], Sequence[float]]
_FIRST_STEP = 1 / 3  # of the bound: the first candidates reach about as far as it


@dataclass(frozen=True)
class Learned:
    """Coefficients and how they were found.

    Attributes:
        weights: for every brick one number for each group of layers; one group is all of it.
        objective: of these weights, what regularises included.
        history: the best objective after each step.
        evaluations: how many candidates were tried.
    """

    weights: tuple[tuple[float, ...], ...]
    objective: float
    history: tuple[float, ...]
    evaluations: int


def lorahub(
    losses: Losses,
    count: int,
    *,
    steps: int = 40,
    bound: float = 1.5,
    regularisation: float = 0.05,
    seed: int = 0,
    advance: Advance = lambda _steps: None,
) -> Learned:
    """Weights of bricks that make a loss small, found by an evolution strategy (CMA-ES).

    The search starts at no brick at all. It tries whole generations at once, so that their losses
    can be computed in one batch.

    Args:
        losses: of several candidates; a loss that is not finite counts as the worst.
        count: how many bricks there are.
        steps: candidates to try, at least; the last generation is finished.
        bound: the largest size of a weight.
        regularisation: of the mean size of the weights, added to the loss.
        seed: equal seeds, equal weights.
        advance: told the number of candidates that have just been tried.

    Returns:
        The best candidate of all.

    Raises:
        ConfigurationError: if a number is out of range, or no loss of a generation is finite.
        MissingExtraError: if the extra ``search`` is not installed.

    Source:
        Huang et al. 2023, arXiv:2307.13269, with their start, bound and regularisation. They search
        with Shiwa of nevergrad, which chooses among many strategies; for a few continuous numbers
        that is in the end CMA-ES (Hansen 2016, arXiv:1604.00772), which we call directly.
    """
    if count < 1 or steps < 1 or not bound > 0 or regularisation < 0:
        raise ConfigurationError(
            f"a search over {count} weights in {steps} steps within {bound:g} was asked for, "
            f"regularised by {regularisation:g}; give at least 1 weight and step, a bound above 0 "
            "and a regularisation of 0 or more."
        )
    strategy, history = _strategy(count, bound, seed), []
    best, best_objective, tried = np.zeros(count), float("inf"), 0
    while tried < steps:
        asked = [strategy.ask() for _ in range(strategy.population_size)]
        if not tried:
            asked[0] = np.zeros(count)  # what nothing at all achieves is always known
        scores = _objectives(losses, asked, regularisation)
        for candidate, score in zip(asked, scores, strict=True):
            if score < best_objective:
                best, best_objective = candidate, score
            history.append(best_objective)
        worst = max([best_objective, *filter(np.isfinite, scores)])
        ranked = [score if np.isfinite(score) else worst + 1 for score in scores]
        strategy.tell(list(zip(asked, ranked, strict=True)))
        tried += len(asked)
        advance(len(asked))
    return Learned(tuple((float(w),) for w in best), best_objective, tuple(history), tried)


def _objectives(losses: Losses, asked: Sequence["Vector"], regularisation: float) -> list[float]:
    found = losses([[float(value) for value in candidate] for candidate in asked])
    if not any(map(np.isfinite, found)):
        raise ConfigurationError(
            f"none of {len(asked)} candidates has a finite loss; look at the bricks and the data, "
            "or lower the bound."
        )
    return [
        float(loss) + regularisation * float(np.abs(candidate).mean())
        if np.isfinite(loss)
        else float("inf")
        for loss, candidate in zip(found, asked, strict=True)
    ]


def _strategy(count: int, bound: float, seed: int) -> "CMA":
    try:
        from cmaes import CMA  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("searching for coefficients", "search") from None
    return CMA(
        mean=np.zeros(count),
        sigma=bound * _FIRST_STEP,
        bounds=np.tile([-bound, bound], (count, 1)),
        seed=seed,
    )
