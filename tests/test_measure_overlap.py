"""Overlap of functional units: equal to sets, pooled by size, beside the null that it needs."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster
from torch import Tensor

from brickwork.errors import DataError
from brickwork.measure.functionality import draw, score_layer
from brickwork.measure.overlap import find_overlap

FUNCTIONS = ["coding", "math", "poetry", "prose"]
SIZES = (100, 60)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_scores() -> list[Tensor]:
    return [torch.rand(size, 4, generator=generator(size)) for size in SIZES]


def nulls() -> list[Tensor]:
    return [torch.rand(9, 6, generator=generator(n), dtype=torch.float64) for n in SIZES]


def best_sets(scores: Tensor, count: int) -> list[set[int]]:
    return [set(column.topk(count).indices.tolist()) for column in scores.T]


def test_matrices_equal_sets() -> None:
    scores = random_scores()
    found = find_overlap(FUNCTIONS, scores, nulls(), 0.1)
    shared = np.zeros((4, 4))
    for layer, matrix, count in zip(scores, found.layers, (10, 6), strict=True):
        best = best_sets(layer, count)
        own = np.array([[len(a & b) for b in best] for a in best])
        assert matrix.values == (own / count).tolist()
        shared += own
    # Sixteenths in float64, multiplied and divided again.
    assert np.allclose(found.pooled.values, shared / 16, rtol=0, atol=1e-12)
    assert found.functions == FUNCTIONS
    assert found.independent == 0.1


def test_nulls_are_over_permutations_and_pairs() -> None:
    first, second = nulls()
    found = find_overlap(FUNCTIONS, random_scores(), [first, second], 0.1)
    pooled = (10 * first + 6 * second) / 16
    for matrix, null in (
        (found.layers[0], first),
        (found.layers[1], second),
        (found.pooled, pooled),
    ):
        of_mean = null.mean(1)  # permutations
        for found_null, values in ((matrix.null, null), (matrix.null_mean, of_mean)):
            low, high = np.quantile(values.numpy(), [0.025, 0.975])
            # The same sums in another order.
            assert found_null.value == pytest.approx(values.mean().item(), abs=1e-12)
            assert found_null.low == pytest.approx(low, abs=1e-12)
            assert found_null.high == pytest.approx(high, abs=1e-12)
        assert matrix.null.low < matrix.null_mean.low < matrix.null_mean.high < matrix.null.high


def test_functionalities_with_the_same_units_are_joined_first() -> None:
    scores = [torch.rand(size, 4, generator=generator(size)) for size in SIZES]
    for layer in scores:
        layer[:, 3] = layer[:, 2] + 1e-6
    found = find_overlap(FUNCTIONS, scores, nulls(), 0.1)
    assert found.linkage[0] == [2.0, 3.0, 0.0, 2.0]
    clusters = fcluster(np.array(found.linkage), 0.5, "distance")
    assert clusters[2] == clusters[3] != clusters[0]


def test_chance_gives_exclusive_labels_less_than_the_share() -> None:
    labels = torch.arange(4).repeat(50)
    draws = draw(labels, permutations=20, resamples=2, generator=generator())
    outcomes = [
        score_layer(
            torch.rand(200, 400, generator=generator(n)), labels, FUNCTIONS,
            layer=n, share=0.05, draws=draws,
        )
        for n in range(2)
    ]  # fmt: skip
    found = find_overlap(
        FUNCTIONS, [o.scores for o in outcomes], [o.null_overlaps for o in outcomes], 0.05
    )
    assert found.pooled.null.value < 0.025  # half of what independent sets would share
    values = np.array(found.pooled.values)[np.triu_indices(4, 1)]
    # Noise lies in its null: the mean of six pairs within the 95 % range of one.
    assert found.pooled.null.low <= values.mean() <= found.pooled.null.high
    assert found.pooled.null.high < found.layers[0].null.high


def test_the_mean_of_all_pairs_of_noise_lies_in_the_null_of_the_mean() -> None:
    labels, inside = torch.arange(4).repeat(20), 0
    for seed in range(10):
        draws = draw(labels, permutations=39, resamples=1, generator=generator(seed))
        activity = torch.rand(80, 60, generator=generator(seed))
        outcome = score_layer(activity, labels, FUNCTIONS, layer=0, share=0.1, draws=draws)
        matrix = find_overlap(FUNCTIONS, [outcome.scores], [outcome.null_overlaps], 0.1).pooled
        mean = np.array(matrix.values)[np.triu_indices(4, 1)].mean()
        inside += bool(matrix.null_mean.low <= mean <= matrix.null_mean.high)
    assert inside >= 7  # nine or ten are to be expected


def test_the_document_holds_plain_numbers() -> None:
    found = find_overlap(FUNCTIONS, random_scores(), nulls(), 0.1)
    assert type(found).model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(("functions", "layers"), [(1, 2), (4, 0)])
def test_refuses_to_compare_nothing(functions: int, layers: int) -> None:
    scores = [layer[:, :functions] for layer in random_scores()[:layers]]
    message = f"there are {functions} of them and {layers} layers; give"
    with pytest.raises(DataError, match=message):
        find_overlap(FUNCTIONS[:functions], scores, nulls()[:layers], 0.1)
