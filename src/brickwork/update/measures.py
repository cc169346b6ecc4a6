"""Shares, means and scores of an evaluation, with their 95 % intervals.

Facts are what was drawn at random, so every fact counts once, whatever its number of prompts.
Intervals of shares are Wilson's (1927) for as many trials as there are facts; for means within
facts, which vary less than single trials, they are wide enough. Intervals of other means are of a
bootstrap over facts.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from brickwork.measure.intervals import per_token, resample_counts
from brickwork.measure.results import Interval

_Z = 1.959963984540054  # 95 % of a normal distribution lie within
_RESAMPLES = 1000


def fact_means(
    values: Float[Tensor, " questions"], fact: Int[Tensor, " questions"]
) -> Float[Tensor, " facts"]:
    """The mean over each fact's questions, for the facts that have some, in their order.

    >>> fact_means(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([4, 4, 2]))
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    _, own = fact.unique(return_inverse=True)
    count = int(own.max()) + 1 if len(own) else 0
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, own, values.double())
    means: Tensor = sums / own.bincount(minlength=count)
    return means


def share_interval(shares: Float[Tensor, " facts"]) -> Interval:
    """The mean of values from 0 to 1, at least one, with Wilson's interval."""
    return wilson(shares.double().mean().item(), len(shares))


def wilson(share: float, trials: int) -> Interval:
    """A share of so many trials with its interval, which is never without width.

    Source:
        Wilson 1927, Probable inference, the law of succession, and statistical inference.

    >>> wilson(1.0, 10)
    Interval(value=1.0, low=0.722..., high=1.0)
    """
    spread = _Z**2 / trials
    middle = (share + spread / 2) / (1 + spread)
    reach = _Z / (1 + spread) * math.sqrt((share * (1 - share) + spread / 4) / trials)
    low, high = max(0.0, middle - reach), min(1.0, middle + reach)
    return Interval(value=share, low=min(low, share), high=max(high, share))


def mean_interval(values: Float[Tensor, " facts"], generator: torch.Generator) -> Interval:
    """The mean of at least one value, with its percentile interval over resamples.

    What is to be compared is given as differences, so that pairs stay together.
    """
    counts = resample_counts(len(values), _RESAMPLES, generator)
    return per_token(values, torch.ones_like(values), counts)


def harmonic_mean(values: Sequence[float]) -> float:
    """The harmonic mean of values from 0 on; 0 if one of them is.

    >>> harmonic_mean([1.0, 0.5]), harmonic_mean([1.0, 0.0])
    (0.666..., 0.0)
    """
    return 0.0 if min(values) == 0 else len(values) / math.fsum(1 / value for value in values)


def score_interval(parts: Sequence[Interval]) -> Interval:
    """The harmonic mean of shares; its bounds are those of all shares together.

    It rises with each of them, so its interval is at least as wide as it must be.
    """
    value, low, high = (
        harmonic_mean([getattr(part, bound) for part in parts])
        for bound in ("value", "low", "high")
    )
    return Interval(value=value, low=low, high=high)
