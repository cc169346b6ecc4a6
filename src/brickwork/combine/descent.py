"""Coefficients of bricks learned by gradient: on labelled answers, or on how sure the model is.

Source: Yang et al. 2023, AdaMerging: Adaptive Model Merging for Multi-Task Learning
(arXiv:2310.02575).
"""

import random
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.combine.learned import Learned
from brickwork.combine.weighted import Signal, WeightedBricks
from brickwork.errors import ConfigurationError
from brickwork.model.train import Encoded

Advance = Callable[[float], None]
# The mean of what is to be small on some examples, for coefficients; the number is the step's.
Objective = Callable[[Float[Tensor, "bricks groups"], int], Float[Tensor, ""]]


@torch.enable_grad()
def descend(
    objective: Objective,
    start: Float[Tensor, "bricks groups"],
    *,
    steps: int = 50,
    rate: float = 0.05,
    bound: float = 1.5,
    regularisation: float = 0.0,
    advance: Advance = lambda _steps: None,
) -> Learned:
    """Follow the gradient of an objective from a start, by Adam.

    Args:
        objective: differentiable in the coefficients.
        start: the first coefficients; with several groups each layer block has its own.
        steps: how many.
        rate: how far a step goes, about.
        bound: the largest size of a coefficient.
        regularisation: of the mean size of the coefficients, added to the objective.
        advance: told after each step.

    Returns:
        The mean of the coefficients over the last quarter of the steps, which single batches move
        less than the last ones; its objective is the mean over the same steps.

    Raises:
        ConfigurationError: if there is no step, or the objective is not finite.
    """
    if steps < 1:
        raise ConfigurationError(f"{steps} steps were asked for; give at least 1.")
    weights = start.detach().clone().float().requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=rate)
    kept, history = [], []
    for step in range(steps):
        value = objective(weights, step) + regularisation * weights.abs().mean()
        if not value.isfinite():
            raise ConfigurationError(
                f"the objective is {value.item()} in step {step}; lower the rate or the bound."
            )
        (weights.grad,) = torch.autograd.grad(value, [weights])
        optimiser.step()
        with torch.no_grad():
            weights.clamp_(-bound, bound)
        history.append(value.item())
        kept.append(weights.detach().clone())
        advance(1)
    last = max(1, steps // 4)
    mean = torch.stack(kept[-last:]).mean(0)
    objective_now = sum(history[-last:]) / last
    rows = tuple(tuple(float(w) for w in row) for row in mean)
    return Learned(rows, objective_now, tuple(history), steps)


def objective_on(
    bricks: WeightedBricks,
    sequences: Sequence[Encoded],
    signal: Signal,
    *,
    rows: int = 16,
    seed: int = 0,
) -> Objective:
    """What ``descend`` makes small: the loss, or the entropy (AdaMerging), on random examples.

    Args:
        bricks: on their base.
        sequences: prompts, with responses for ``loss``.
        signal: as in ``WeightedBricks.signals``.
        rows: examples of each step.
        seed: decides which.

    Source:
        Yang et al. 2023, arXiv:2310.02575. They classify, and take the entropy of the class; ours
        is that of the first token of the answer. One weight for a brick is their task-wise, one
        for each brick and group of layers their layer-wise variant.
    """

    def objective(weights: Float[Tensor, "bricks groups"], step: int) -> Float[Tensor, ""]:
        drawn = random.Random(f"{seed} {step}").sample(sequences, min(rows, len(sequences)))
        nats, tokens = bricks.signals(weights.to(bricks.loaded.dtype), drawn, signal)
        return nats.sum() / tokens.sum()

    return objective
