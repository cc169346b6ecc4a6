"""Average precision: equal to scikit-learn for every kind of activity, blind to what it must be."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score
from torch import Tensor

from brickwork.errors import DataError
from brickwork.measure import average_precision as module
from brickwork.measure.average_precision import (
    average_precision,
    bootstrap_precision,
    null_mean,
)
from brickwork.measure.intervals import resample_counts

# Sums of up to 1,500 float64 quotients, in another order than scikit-learn's.
ROUNDING = 1e-12
SAMPLES = (2, 3, 50, 257, 1500)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exclusive(samples: int, functions: int = 7, seed: int = 0) -> Tensor:
    """Every sample in one of the columns."""
    order = torch.randperm(samples, generator=generator(seed))
    return (order % functions).unsqueeze(1) == torch.arange(functions)


def expected(activity: Tensor, labels: Tensor) -> Tensor:
    """One call of scikit-learn for each unit and label."""
    values, truth = activity.double().numpy(), labels.numpy()
    return torch.tensor(
        [[average_precision_score(y, x) for y in truth.T] for x in values.T], dtype=torch.float64
    )


def activities(kind: str, samples: int) -> Tensor:
    noise = torch.randn(samples, 8, generator=generator(samples))
    return {
        "means of sizes": noise.abs(),
        "both signs": noise,
        "two zeros": torch.where(noise > 0.5, noise, torch.where(noise > 0, 0.0, -0.0)),
        "few levels": (4 * noise.abs()).floor(),
        "few levels of both signs": (2 * noise).round(),
        "sparse": noise.abs() * (noise > 1.2),
        "dead": torch.zeros_like(noise),
        "hardly different": 1 + 1e-6 * noise,
        "over all octaves": (25 * noise).clamp(-80, 80).exp(),
        "smallest numbers": noise.abs() * 1e-44,
        "one far away": torch.cat([noise[:1].abs() * 1e30, 1 + 1e-6 * noise[1:]]),
    }[kind]


KINDS = (
    "means of sizes", "both signs", "two zeros", "few levels", "few levels of both signs", "sparse",
    "dead", "hardly different", "over all octaves", "smallest numbers", "one far away",
)  # fmt: skip


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_scikit_learn(kind: str, samples: int) -> None:
    activity, labels = activities(kind, samples), exclusive(samples, min(7, samples))
    torch.testing.assert_close(
        average_precision(activity, labels), expected(activity, labels), rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize("kind", KINDS)
def test_equals_scikit_learn_for_many_labels_that_overlap(kind: str) -> None:
    samples = 300
    activity, some = activities(kind, samples), torch.rand(samples, 3, generator=generator()) < 0.4
    labels = torch.cat([exclusive(samples), exclusive(samples, seed=1)[:, :4], some], dim=1)
    torch.testing.assert_close(
        average_precision(activity, labels), expected(activity, labels), rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_is_exact_for_every_float_type(dtype: torch.dtype) -> None:
    activity = torch.randn(400, 6, generator=generator(), dtype=torch.float64).to(dtype)
    labels = exclusive(400)
    found = average_precision(activity, labels)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected(activity, labels), rtol=0, atol=ROUNDING)


def test_float64_differences_below_float32_count() -> None:
    activity = torch.tensor([[1.0], [1.0 + 1e-12], [1.0 + 2e-12]], dtype=torch.float64)
    labels = torch.tensor([[False], [True], [False]])
    assert average_precision(activity, labels).item() == 0.5


@pytest.mark.parametrize("samples", [255, 256, 257, 383, 384, 385, 900])
def test_long_runs_of_nearly_equal_values_fall_back_to_a_full_sort(samples: int) -> None:
    # 16 bits do not tell these apart: all but one of a row are in one bucket of the first sort.
    activity = 1 + 1e-6 * torch.rand(samples, 3, generator=generator())
    activity[0] = 1e-30
    labels = exclusive(samples)
    torch.testing.assert_close(
        average_precision(activity, labels), expected(activity, labels), rtol=0, atol=ROUNDING
    )


def test_many_exclusive_labels_are_more_than_one_byte_tells_apart() -> None:
    activity, labels = torch.rand(600, 2, generator=generator()), exclusive(600, 300)
    torch.testing.assert_close(
        average_precision(activity, labels), expected(activity, labels), rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_size_of_the_pieces_does_not_matter(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    activity, labels = torch.rand(90, 41, generator=generator()).to(dtype), exclusive(90)
    whole = average_precision(activity, labels)
    for name, size in (("_ELEMENTS", 200), ("_PIECE", 500), ("_MEMORY", 90 * 64 * 3)):
        monkeypatch.setattr(module, name, size)
    assert average_precision(activity, labels).equal(whole)


def test_the_number_of_threads_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    activity, labels = torch.rand(90, 300, generator=generator()), exclusive(90)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(average_precision(activity, labels))
    assert found[0].equal(found[1])


def test_strides_and_gradients_do_not_matter() -> None:
    activity, labels = torch.rand(12, 50, generator=generator()), exclusive(50)
    plain = average_precision(activity.T.contiguous(), labels)
    assert average_precision(activity.T.requires_grad_(), labels).equal(plain)
    assert average_precision(activity[::2].T, labels).equal(plain[::2])


few_levels = arrays.arrays(np.float32, (12, 3), elements=st.sampled_from([-2.0, -0.0, 0.0, 1.0, 3]))
some_labels = arrays.arrays(np.bool_, (12, 4)).filter(
    lambda labels: bool(labels.any(0).all() and not labels.all(0).any())
)


@given(few_levels, some_labels)
def test_equals_scikit_learn_under_ties(values: np.ndarray, truth: np.ndarray) -> None:
    activity, labels = torch.from_numpy(values), torch.from_numpy(truth)
    torch.testing.assert_close(
        average_precision(activity, labels), expected(activity, labels), rtol=0, atol=ROUNDING
    )


@given(few_levels, some_labels, st.permutations(range(12)))
def test_ignores_the_order_of_samples(
    values: np.ndarray, truth: np.ndarray, order: list[int]
) -> None:
    activity, labels = torch.from_numpy(values), torch.from_numpy(truth)
    assert average_precision(activity[order], labels[order]).equal(
        average_precision(activity, labels)
    )


@given(few_levels, some_labels)
def test_ignores_what_keeps_the_ranking(values: np.ndarray, truth: np.ndarray) -> None:
    activity, labels = torch.from_numpy(values), torch.from_numpy(truth)
    found = average_precision(activity, labels)
    for change in (lambda x: 3 * x, torch.exp, lambda x: x - 100, lambda x: x.half()):
        assert average_precision(change(activity), labels).equal(found)


def test_a_unit_that_ignores_the_label_scores_its_share() -> None:
    labels = exclusive(70)
    found = average_precision(torch.full((70, 1), 3.0), labels)
    # 10 of 70, summed up from ten equal parts.
    torch.testing.assert_close(
        found, torch.full((1, 7), 1 / 7, dtype=torch.float64), rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize(("samples", "positives"), [(2, 1), (30, 1), (30, 12), (200, 20)])
def test_null_mean_is_the_mean_over_random_orders(samples: int, positives: int) -> None:
    labels = (torch.arange(samples) < positives).unsqueeze(1)
    found = average_precision(torch.rand(samples, 40_000, generator=generator()), labels)
    error = found.std() / 40_000**0.5
    # Four standard errors of the simulation.
    assert found.mean().item() == pytest.approx(null_mean(samples, positives), abs=4 * error.item())


def test_null_mean_of_positives_alone_is_one() -> None:
    assert null_mean(5, 5) == pytest.approx(1.0)
    assert null_mean(1, 1) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["means of sizes", "few levels", "sparse", "dead"])
def test_bootstrap_equals_scikit_learn_with_weights(kind: str) -> None:
    activity, labels = activities(kind, 40)[:, :7], exclusive(40)
    counts = resample_counts(40, 9, generator())
    found = bootstrap_precision(activity, labels, counts)
    for resample, weights in enumerate(counts.numpy()):
        for unit in range(7):
            y, x = labels[:, unit].numpy(), activity[:, unit].numpy()
            truth = average_precision_score(y, x, sample_weight=weights)
            assert found[resample, unit].item() == pytest.approx(truth, abs=ROUNDING)


def test_bootstrap_with_every_sample_once_is_the_score_itself() -> None:
    activity, labels = torch.rand(40, 7, generator=generator()), exclusive(40)
    found = bootstrap_precision(activity, labels, torch.ones(1, 40))
    scores = average_precision(activity, labels).diagonal()
    torch.testing.assert_close(found[0], scores, rtol=0, atol=ROUNDING)


def test_bootstrap_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    activity, labels = torch.rand(40, 7, generator=generator()), exclusive(40)
    counts = resample_counts(40, 9, generator())
    whole = bootstrap_precision(activity, labels, counts)
    monkeypatch.setattr(module, "_MEMORY", 64 * 40 * 2)
    assert bootstrap_precision(activity, labels, counts).equal(whole)


def test_a_resample_without_positives_scores_nothing() -> None:
    labels = torch.tensor([[True], [False], [False]])
    found = bootstrap_precision(torch.rand(3, 1), labels, torch.tensor([[0.0, 2.0, 1.0]]))
    assert found.tolist() == [[0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_no_finite_number(bad: float, dtype: torch.dtype) -> None:
    activity = torch.rand(20, 5, dtype=dtype)
    activity[3, 2] = activity[4, 2] = activity[0, 4] = bad
    labels = exclusive(20)
    message = "3 of 100 are NaN or infinite, the first in unit 2; look for an overflow"
    with pytest.raises(DataError, match=message):
        average_precision(activity, labels)
    with pytest.raises(DataError, match=message):
        bootstrap_precision(activity, labels[:, :5], torch.ones(1, 20))


@pytest.mark.parametrize(("value", "count"), [(True, 4), (False, 0)])
def test_refuses_labels_of_one_kind(value: bool, count: int) -> None:
    labels = torch.tensor([[True, value], [False, value], [True, value], [True, value]])
    with pytest.raises(DataError, match=f"label 1 is true of {count} of 4 samples"):
        average_precision(torch.rand(4, 2), labels)


@pytest.mark.parametrize(("samples", "units"), [(4, 2), (3, 0)])
def test_refuses_labels_of_other_samples_and_no_unit(samples: int, units: int) -> None:
    labels = torch.tensor([[True], [False], [True]])
    message = rf"the activity has the shape \({samples}, {units}\) and the labels have \(3, 1\)"
    with pytest.raises(DataError, match=message):
        average_precision(torch.rand(samples, units), labels)


def test_bootstrap_refuses_other_numbers_of_labels_and_samples() -> None:
    labels = exclusive(20)
    with pytest.raises(DataError, match=r"each of 5 units, .* there are 7 labels"):
        bootstrap_precision(torch.rand(20, 5), labels, torch.ones(1, 20))
    with pytest.raises(DataError, match="counts for 9 samples; give"):
        bootstrap_precision(torch.rand(20, 7), labels, torch.ones(1, 9))


@pytest.mark.gpu
def test_an_accelerator_gives_the_same() -> None:
    for kind in KINDS:
        activity, labels = activities(kind, 300), exclusive(300)
        found = average_precision(activity.cuda(), labels)
        assert found.is_cuda
        torch.testing.assert_close(
            found.cpu(), average_precision(activity, labels), rtol=0, atol=ROUNDING
        )
