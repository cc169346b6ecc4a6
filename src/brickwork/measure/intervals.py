"""Bootstrap intervals of means per token, and of how much a perplexity rose."""

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.measure.results import Interval

# A rise by more than exp(100) says nothing more; beyond exp(709) it is no number.
_MOST_NATS = 100.0


def resample_counts(
    samples: int, resamples: int, generator: torch.Generator
) -> Float[Tensor, "resamples samples"]:
    """How often each sample is drawn in each bootstrap resample, in float64."""
    drawn = torch.randint(samples, (resamples, samples), generator=generator)
    counts = torch.zeros(resamples, samples, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def per_token(
    nats: Float[Tensor, " samples"],
    tokens: Float[Tensor, " samples"],
    counts: Float[Tensor, "resamples samples"],
) -> Interval:
    """Nats per token over all samples together, with its 95 % percentile interval.

    Args:
        nats: summed over each sample's tokens.
        tokens: how many those are.
        counts: of ``resample_counts``; the same for what is to be compared.
    """
    return _interval(*_ratios(nats, tokens, counts))


def perplexity_increase(
    before: Float[Tensor, " samples"],
    after: Float[Tensor, " samples"],
    tokens: Float[Tensor, " samples"],
    counts: Float[Tensor, "resamples samples"],
) -> Interval:
    """By what share of itself the perplexity rose: 0.5 is 50 % more. Pairs stay together."""
    value, draws = _ratios(after - before, tokens, counts)
    return _interval(value.clamp(max=_MOST_NATS).expm1(), draws.clamp(max=_MOST_NATS).expm1())


def _ratios(nats: Tensor, tokens: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    nats, tokens = nats.double(), tokens.double()
    return nats.sum() / tokens.sum(), (counts @ nats) / (counts @ tokens)


def _interval(value: Tensor, draws: Float[Tensor, " resamples"]) -> Interval:
    low, high = draws.quantile(draws.new_tensor([0.025, 0.975])).tolist()
    return Interval(value=value.item(), low=low, high=high)
