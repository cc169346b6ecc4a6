"""Shares and scores of an evaluation: against SciPy, plain loops, and what intervals must hold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, hmean

from brickwork.measure.results import Interval
from brickwork.update.measures import (
    fact_means,
    harmonic_mean,
    mean_interval,
    score_interval,
    share_interval,
    wilson,
)

shares = st.floats(0.01, 1.0)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_share_is_scipys(trial: tuple[int, int]) -> None:
    hits, trials = trial
    found = wilson(hits / trials, trials)
    expected = binomtest(hits, trials).proportion_ci(method="wilson")
    # SciPy takes the quantile with other last digits
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_all_or_nothing_still_has_an_interval(share: float) -> None:
    found = share_interval(torch.full((8,), share))
    assert found.value == share
    assert found.high - found.low > 0.3  # 8 trials do not tell 100 % from 70 %


@given(st.lists(shares, min_size=1, max_size=5))
def test_the_harmonic_mean_is_scipys(values: list[float]) -> None:
    assert harmonic_mean(values) == pytest.approx(hmean(values))


@given(st.lists(st.tuples(shares, shares, shares), min_size=3, max_size=3))
def test_a_score_rises_with_its_parts_so_its_bounds_hold_all_of_them(
    parts: list[tuple[float, float, float]],
) -> None:
    ordered = [sorted(part) for part in parts]
    found = score_interval([Interval(low=a, value=b, high=c) for a, b, c in ordered])
    assert found.low == pytest.approx(hmean([a for a, _, _ in ordered]))
    assert found.low <= found.value * (1 + 1e-12)  # rounding of equal parts
    assert found.value <= found.high * (1 + 1e-12)


def test_nothing_of_one_part_is_nothing_in_all() -> None:
    assert harmonic_mean([1.0, 0.0, 1.0]) == 0.0


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-9, 9)), min_size=1, max_size=20))
def test_every_fact_counts_once_whatever_its_number_of_prompts(
    rows: list[tuple[int, float]],
) -> None:
    found = fact_means(
        torch.tensor([value for _, value in rows], dtype=torch.float64),
        torch.tensor([fact for fact, _ in rows]),
    )
    expected = [
        sum(own) / len(own)
        for fact in sorted({fact for fact, _ in rows})
        for own in [[value for other, value in rows if other == fact]]
    ]
    assert found.tolist() == pytest.approx(expected)


def test_no_prompts_are_of_no_facts() -> None:
    assert fact_means(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_an_interval_of_a_mean_covers_what_resampled_means_cover() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mean_interval(values, torch.Generator().manual_seed(1))
    assert found == mean_interval(values, torch.Generator().manual_seed(1))
    error = 1.96 * values.std().item() / 200**0.5
    assert found.value == pytest.approx(values.mean().item())
    # 1000 resamples know a quantile to about a tenth of the error
    assert found.low == pytest.approx(found.value - error, abs=0.3 * error)
    assert found.high == pytest.approx(found.value + error, abs=0.3 * error)
