"""Intervals: the plain ratio in the middle, numpy's resampling around it, and calibrated."""

import math

import numpy as np
import pytest
import torch

from brickwork.measure.intervals import per_token, perplexity_increase, resample_counts


def test_counts_are_draws_with_replacement() -> None:
    counts = resample_counts(40, 2000, torch.Generator().manual_seed(0))
    assert torch.equal(counts.sum(1), torch.full((2000,), 40.0, dtype=torch.float64))
    assert counts.mean().item() == pytest.approx(1.0)
    # binomial(40, 1/40): variance 39/40, within four standard errors of 80,000 draws
    assert counts.var().item() == pytest.approx(39 / 40, abs=0.03)


def test_the_value_is_the_ratio_and_the_interval_numpys() -> None:
    chance = np.random.default_rng(0)
    nats, tokens = chance.gamma(3.0, 10.0, 60), chance.integers(1, 30, 60).astype(float)
    counts = resample_counts(60, 4000, torch.Generator().manual_seed(1))
    found = per_token(torch.tensor(nats), torch.tensor(tokens), counts)
    assert found.value == pytest.approx(nats.sum() / tokens.sum())
    draws = chance.integers(0, 60, (4000, 60))
    expected = np.quantile(nats[draws].sum(1) / tokens[draws].sum(1), [0.025, 0.975])
    # two independent sets of 4,000 resamples; the ends differ by their own spread
    assert (found.low, found.high) == pytest.approx(expected, rel=0.04)


def test_the_increase_is_of_the_perplexity_and_pairs_stay_together() -> None:
    before = torch.tensor([10.0, 20.0, 5.0])
    tokens = torch.tensor([5.0, 10.0, 5.0])
    counts = resample_counts(3, 500, torch.Generator().manual_seed(0))
    found = perplexity_increase(before, before + 0.2 * tokens, tokens, counts)
    # every token costs 0.2 nats more, in every resample
    assert [found.value, found.low, found.high] == pytest.approx([math.expm1(0.2)] * 3)
    assert perplexity_increase(before, before, tokens, counts).value == 0.0


def test_what_is_lost_beyond_measure_stays_a_number() -> None:
    counts = resample_counts(2, 10, torch.Generator().manual_seed(0))
    zero = torch.zeros(2)
    found = perplexity_increase(zero, torch.full((2,), 1e6), torch.ones(2), counts)
    assert math.isfinite(found.high)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    chance = torch.Generator().manual_seed(3)
    hits = 0
    for _ in range(300):
        tokens = torch.randint(1, 20, (40,), generator=chance).double()
        nats = tokens * (2 + torch.randn(40, generator=chance, dtype=torch.float64))
        found = per_token(nats, tokens, resample_counts(40, 300, chance))
        hits += found.low <= 2 <= found.high
    # 95 % of 300, less the known shortfall of the percentile bootstrap at 40 samples
    assert 0.89 * 300 <= hits <= 0.99 * 300
