"""Functionality scores: planted units are found, noise is not, and every number has its meaning."""

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score
from torch import Tensor

from brickwork.errors import ConfigurationError, DataError
from brickwork.measure.average_precision import average_precision, null_mean
from brickwork.measure.functionality import (
    Draws,
    LayerOutcome,
    agreement,
    draw,
    functional_units,
    one_hot,
    rank_correlation,
    resident_units,
    score_layer,
    selectivity,
    shared_parts,
)

FUNCTIONS = ["coding", "math", "poetry"]
# The same sums in another order.
ROUNDING = 1e-12


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(each: int = 40) -> Tensor:
    return torch.arange(len(FUNCTIONS)).repeat(each)


def noise(units: int, samples: int = 120, seed: int = 0) -> Tensor:
    return torch.randn(samples, units, generator=generator(seed)).abs()


def planted(units: int = 60, size: float = 2.0) -> Tensor:
    """Noise, but units 5, 15, 25 are more active where their functionality is needed."""
    activity = noise(units)
    for function, unit in enumerate((5, 15, 25)):
        activity[labels_of() == function, unit] += size
    return activity


def draws_of(labels: Tensor, permutations: int = 19, seed: int = 0) -> Draws:
    return draw(labels, permutations=permutations, resamples=50, generator=generator(seed))


def outcome_of(activity: Tensor, seed: int = 0, share: float = 0.05) -> LayerOutcome:
    labels = labels_of(len(activity) // 3)
    return score_layer(
        activity, labels, FUNCTIONS, layer=2, share=share, draws=draws_of(labels, seed=seed)
    )


def test_planted_units_are_found() -> None:
    summary = outcome_of(planted()).summary
    assert (summary.layer, summary.units, summary.resident) == (2, 60, [])
    for name, unit in zip(FUNCTIONS, (5, 15, 25), strict=True):
        found = summary.functions[name]
        assert found.best_unit == unit
        assert found.best_p == 1 / 20  # none of 19 permutations is as good
        assert found.above_null >= 1
        assert found.best.low < found.best.value < found.best.high
        assert found.best.low > found.null.best
        assert found.other_half > found.null.best_95


def test_noise_is_not_found() -> None:
    p_values, above = [], 0
    for seed in range(40):
        labels = labels_of()
        summary = score_layer(
            noise(30, seed=seed), labels, FUNCTIONS, layer=0, share=0.05,
            draws=draws_of(labels, seed=seed),
        ).summary  # fmt: skip
        p_values += [found.best_p for found in summary.functions.values()]
        above += sum(found.above_null > 0 for found in summary.functions.values())
    p = torch.tensor(p_values)
    # 120 values, uniform if the null is right: mean 0.525, its standard error 0.026 (more, as the
    # three of a layer hang together); 6 of them at the smallest p, and 6 layers above the null.
    assert p.mean().item() == pytest.approx(0.525, abs=0.12)
    assert 1 <= (p <= 0.05).sum() <= 16
    assert 1 <= above <= 16


def test_the_null_is_that_of_permuted_labels() -> None:
    activity, labels = planted(), labels_of()
    draws, summary = draws_of(labels), outcome_of(planted()).summary
    null = torch.stack([average_precision(activity, one_hot(p, 3)) for p in draws.permuted])
    best = null.amax(1)  # permutations functions
    nulls = [found.null for found in summary.functions.values()]
    assert nulls[0] == nulls[1] == nulls[2]  # of equal size, so their chances are put together
    assert nulls[0].mean == pytest.approx(null.mean().item(), abs=ROUNDING)
    assert nulls[0].single_95 == pytest.approx(null.quantile(0.95).item(), abs=ROUNDING)
    assert nulls[0].best == pytest.approx(best.mean().item(), abs=ROUNDING)
    assert nulls[0].best_95 == pytest.approx(best.quantile(0.95).item(), abs=ROUNDING)
    assert nulls[0].per_mille == nulls[0].best  # 5 in a thousand of 60 is one unit
    # 19 permutations of 60 units that depend on each other.
    assert nulls[0].mean == pytest.approx(null_mean(120, 40), abs=0.01)


def test_each_size_of_a_functionality_has_its_own_null() -> None:
    labels = torch.tensor([0] * 150 + [1] * 25 + [2] * 25)
    activity, draws = noise(40, samples=200), draws_of(labels, permutations=39)
    outcome = score_layer(activity, labels, FUNCTIONS, layer=0, share=0.05, draws=draws)
    big, *small = (found.null for found in outcome.summary.functions.values())
    null = torch.stack([average_precision(activity, one_hot(p, 3)) for p in draws.permuted])
    assert small[0] == small[1]
    for own, scores, count in ((big, null[..., :1], 150), (small[0], null[..., 1:], 25)):
        best = scores.amax(1)  # permutations functions
        assert own.mean == pytest.approx(scores.mean().item(), abs=ROUNDING)
        assert own.best == pytest.approx(best.mean().item(), abs=ROUNDING)
        assert own.best_95 == pytest.approx(best.quantile(0.95).item(), abs=ROUNDING)
        # 39 permutations of 40 units that depend on each other.
        assert own.mean == pytest.approx(null_mean(200, count), abs=0.01)
    assert big.mean > small[0].best_95


def test_noise_is_not_found_for_a_large_nor_for_a_small_functionality() -> None:
    labels = torch.tensor([0] * 75 + [1] * 15 + [2] * 10)
    layers = [
        score_layer(
            noise(30, samples=100, seed=seed), labels, FUNCTIONS, layer=0, share=0.05,
            draws=draws_of(labels, seed=seed),
        ).summary
        for seed in range(12)
    ]  # fmt: skip
    for name in FUNCTIONS:
        # One layer in 20 has a neuron above the 95 % bound of its best, a few more with as few
        # permutations. One bound for all sizes would put every neuron of the large one above it.
        above = [layer.functions[name].above_null for layer in layers]
        assert sum(count > 0 for count in above) <= 4
        assert max(above) <= 3


def test_scores_and_their_summary_equal_scikit_learn() -> None:
    activity, outcome = planted(400), outcome_of(planted(400))
    for function, name in enumerate(FUNCTIONS):
        truth = (labels_of() == function).numpy()
        scores = [average_precision_score(truth, x.numpy()) for x in activity.T]
        slow = torch.tensor(scores, dtype=torch.float64)
        found = outcome.summary.functions[name]
        torch.testing.assert_close(outcome.scores[:, function], slow, rtol=0, atol=ROUNDING)
        assert found.mean == pytest.approx(slow.mean().item(), abs=ROUNDING)
        assert found.best.value == pytest.approx(slow.max().item(), abs=ROUNDING)
        # Two of 400 units are 5 in a thousand.
        assert found.per_mille == pytest.approx(slow.sort().values[-2].item(), abs=ROUNDING)


def test_halves_equal_a_slow_comparison() -> None:
    activity, labels = planted(), labels_of()
    draws, summary = draws_of(labels), outcome_of(planted()).summary
    halves = [draws.halves, ~draws.halves]
    first, second = (average_precision(activity[h], one_hot(labels[h], 3)) for h in halves)
    for function, name in enumerate(FUNCTIONS):
        a, b, found = first[:, function], second[:, function], summary.functions[name]
        assert found.other_half == pytest.approx(
            ((a[b.argmax()] + b[a.argmax()]) / 2).item(), abs=ROUNDING
        )
        assert found.split_half == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)
        best = [set(half.topk(3).indices.tolist()) for half in (a, b)]  # 5 % of 60
        assert found.split_overlap == pytest.approx(len(best[0] & best[1]) / 3)


def test_halves_take_half_of_every_functionality() -> None:
    labels = torch.tensor([0] * 10 + [1] * 7 + [2] * 2)
    draws = draws_of(labels)
    assert [int(draws.halves[labels == f].sum()) for f in range(3)] == [5, 3, 1]
    assert draws.permuted.sort(dim=1).values.equal(labels.expand(19, -1))
    assert draws.counts.sum(1).tolist() == [19.0] * 50


def test_equal_seeds_give_equal_results() -> None:
    first, again, other = (outcome_of(planted(), seed) for seed in (3, 3, 4))
    assert first.summary == again.summary != other.summary
    assert first.null_overlaps.equal(again.null_overlaps)
    assert first.scores.equal(other.scores)


@pytest.mark.parametrize("units", [1, 4])
def test_few_units_are_enough(units: int) -> None:
    activity = noise(units)
    activity[labels_of() == 1, 0] += 5.0
    outcome = outcome_of(activity)
    for found in outcome.summary.functions.values():
        assert found.per_mille == found.best.value
        assert found.split_overlap is None
        assert (found.split_half is None) == (units == 1)
    assert outcome.summary.functions["math"].best_p == 1 / 20
    assert outcome.null_overlaps.shape == (19, 3)


def test_a_dead_layer_is_at_chance() -> None:
    summary = outcome_of(torch.zeros(120, 30)).summary
    for found in summary.functions.values():
        assert (found.best_p, found.above_null, found.best_unit) == (1.0, 0, 0)
        assert found.split_half is None
        assert found.best.value == pytest.approx(1 / 3)
        assert found.null.best_95 == pytest.approx(1 / 3)


def test_half_precision_rows_are_scored_as_they_are() -> None:
    rows = planted().half()
    assert outcome_of(rows).summary == outcome_of(rows.float()).summary


def test_null_overlaps_are_those_of_permuted_labels() -> None:
    activity, draws = planted(), draws_of(labels_of())
    outcome = outcome_of(activity, share=0.1)
    for permuted, found in zip(draws.permuted, outcome.null_overlaps, strict=True):
        scores = average_precision(activity, one_hot(permuted, 3))
        best = [set(column.topk(6).indices.tolist()) for column in scores.T]
        slow = [len(best[f] & best[g]) / 6 for f, g in ((0, 1), (0, 2), (1, 2))]
        assert found.tolist() == pytest.approx(slow)


def test_functional_units_are_the_best_and_ties_go_by_number() -> None:
    scores = torch.tensor([[0.1, 0.5], [0.9, 0.5], [0.3, 0.5], [0.9, 0.5], [0.2, 0.6]])
    assert functional_units(scores, 0.4).tolist() == [[1, 3], [0, 4]]
    assert functional_units(scores, 0.0).tolist() == [[1], [4]]
    assert functional_units(scores, 1.0).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert functional_units(torch.rand(100, 1), 0.29).shape == (1, 29)


def test_shared_parts_equal_sets() -> None:
    first = functional_units(torch.rand(50, 3, generator=generator()), 0.2)
    second = functional_units(torch.rand(50, 2, generator=generator(1)), 0.2)
    slow = [[len(set(a.tolist()) & set(b.tolist())) / 10 for b in second] for a in first]
    assert shared_parts(first, second).tolist() == slow
    assert shared_parts(first, first).diagonal().tolist() == [1.0] * 3


def test_rank_correlation_equals_scipy_also_under_ties() -> None:
    first = torch.randint(5, (40,), generator=generator()).double()
    second = first + torch.randint(5, (40,), generator=generator(1))
    slow = spearmanr(first, second).statistic
    assert rank_correlation(first, second) == pytest.approx(slow, abs=1e-12)  # of 40 ranks
    assert rank_correlation(first, torch.ones(40)) is None
    assert rank_correlation(first[:1], first[:1]) is None


def test_resident_units_are_large_for_every_functionality() -> None:
    magnitude = noise(200)
    magnitude[:, 7] += 9.0
    magnitude[labels_of() == 0, 11] += 99.0  # for one functionality only
    assert resident_units(magnitude, labels_of()).tolist() == [7]
    assert resident_units(magnitude.half(), labels_of()).tolist() == [7]
    assert resident_units(magnitude[:, :19], labels_of()).tolist() == []
    assert resident_units(magnitude[:, :20], labels_of(), share=0.1).tolist() == [7]


def test_no_unit_is_resident_if_none_is_large_for_all() -> None:
    magnitude = noise(100)
    for function in range(3):
        magnitude[labels_of() == function, function] += 9.0
    assert resident_units(magnitude, labels_of()).tolist() == []


def test_selectivity_is_the_lead_over_the_others() -> None:
    scores = torch.rand(9, 3, generator=generator(), dtype=torch.float64)
    positives = [20, 30, 50]
    found = selectivity(scores, torch.tensor([4]), positives=positives, samples=100)
    chance = [null_mean(100, count) for count in positives]
    for unit, row in enumerate(scores.tolist()):
        own = [(score - c) / (1 - c) for score, c in zip(row, chance, strict=True)]
        slow = [own[f] - max(own[:f] + own[f + 1 :]) for f in range(3)]
        expected = [-float("inf")] * 3 if unit == 4 else slow
        assert found[unit].tolist() == pytest.approx(expected, abs=ROUNDING)


def test_selectivity_of_two_equal_best_scores_is_nothing() -> None:
    scores = torch.tensor([[0.8, 0.8, 0.2]])
    none = torch.empty(0, dtype=torch.int64)
    found = selectivity(scores, none, positives=[5, 5, 5], samples=15)
    assert found[0, :2].tolist() == [0.0, 0.0]
    assert found[0, 2] < 0


def test_agreement_compares_each_functionality() -> None:
    first = torch.rand(40, 3, generator=generator())
    second = first.clone()
    second[:, 1] = -first[:, 1]
    second[:, 2] = 0.5
    correlation, overlap = agreement(first, second, 0.1, FUNCTIONS)
    assert correlation == pytest.approx({"coding": 1.0, "math": -1.0, "poetry": 0.0})
    assert overlap["coding"] == 1.0
    assert overlap["math"] == 0.0


def test_refuses_to_draw_nothing() -> None:
    with pytest.raises(ConfigurationError, match="0 permutations and 5 resamples; ask for"):
        draw(labels_of(), permutations=0, resamples=5, generator=generator())


def test_refuses_what_cannot_be_halved() -> None:
    with pytest.raises(DataError, match="functionality 1 has one of 4 samples"):
        draws_of(torch.tensor([0, 0, 0, 1]))


def test_refuses_a_functionality_without_samples() -> None:
    labels = torch.tensor([0, 1] * 10)
    with pytest.raises(DataError, match="label 2 is true of 0 of 20 samples"):
        score_layer(noise(4, 20), labels, FUNCTIONS, layer=0, share=0.05, draws=draws_of(labels))


def test_refuses_draws_of_other_labels() -> None:
    with pytest.raises(DataError, match="layer 5 has 120 labels, but the draws are of 60"):
        score_layer(
            noise(4), labels_of(), FUNCTIONS, layer=5, share=0.05, draws=draws_of(labels_of(20))
        )
