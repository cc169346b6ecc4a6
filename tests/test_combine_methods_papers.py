"""Each merge method against its paper's own formula, written out in float64 here."""

import math

import pytest
import torch
from torch import Tensor

from brickwork.combine.methods import merge_tensors
from brickwork.errors import MergeError


def tensors_of(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=chance, dtype=torch.float64) for _ in range(count)]


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-10)  # float64 in another order


def test_slerp_keeps_the_speed_along_the_arc() -> None:
    base, other = (t / t.norm() for t in tensors_of(2, 6, 5))
    angle = torch.acos((base * other).sum())
    for t in (0.0, 0.25, 0.5, 1.0):
        point = merge_tensors("slerp", [other], base=base, t=t)
        close(point.norm(), torch.tensor(1.0, dtype=torch.float64))
        assert torch.acos((base * point).sum().clamp(-1, 1)).item() == pytest.approx(
            t * angle.item(),
            abs=1e-7,  # the arc cosine is steep at 1
        )


def test_slerp_of_parallel_and_of_opposite_tensors_is_the_line() -> None:
    (base,) = tensors_of(1, 6, 5)
    close(merge_tensors("slerp", [3 * base], base=base, t=0.25), 1.5 * base)
    close(merge_tensors("slerp", [-base], base=base, t=0.25), 0.5 * base)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)])
def test_nuslerp_by_rows_and_columns_is_slerp_of_each_vector(
    axis: int, shape: tuple[int, ...]
) -> None:
    one, two, base = tensors_of(3, *shape)
    merged = merge_tensors(
        "nuslerp", [one, two], base=base, weight=[1.0, 3.0], nuslerp_flatten=False,
        nuslerp_row_wise=axis == 0,
    )  # fmt: skip
    changes = [(t - base).movedim(axis, -1).reshape(-1, shape[axis]) for t in (one, two)]
    expected = []
    for a, b in zip(*changes, strict=True):
        angle = torch.acos((a @ b) / (a.norm() * b.norm()))
        expected.append((torch.sin(0.25 * angle) * a + torch.sin(0.75 * angle) * b) / angle.sin())
    close((merged - base).movedim(axis, -1).reshape(-1, shape[axis]), torch.stack(expected))


def test_karcher_of_two_is_slerp_at_the_middle() -> None:
    one, two = (t / t.norm() for t in tensors_of(2, 6, 5))
    mean = merge_tensors("karcher", [one, two], tol=1e-12)
    close(mean, merge_tensors("slerp", [two], base=one, t=0.5))


def test_karcher_is_where_the_tangents_to_all_operands_cancel() -> None:
    units = [t / t.norm() for t in tensors_of(4, 6, 5)]
    mean = merge_tensors("karcher", units, max_iter=200, tol=1e-13)
    tangents = []
    for unit in units:
        cosine = (unit * mean).sum()
        angle = torch.acos(cosine)
        tangents.append(angle / angle.sin() * (unit - cosine * mean))
    assert torch.stack(tangents).sum(0).norm() < 1e-9  # float64, after it has converged


@pytest.mark.parametrize("times", [1.0, 2.0, 3.0])
def test_karcher_of_opposite_directions_is_the_first_at_the_mean_length(times: float) -> None:
    for seed in range(20):
        x = tensors_of(1, 1000, seed=seed)[0].float()
        merged = merge_tensors("karcher", [x, -times * x])
        # float32, which also decides how exactly -3x is opposite to x
        assert torch.allclose(merged, x * (1 + times) / 2, rtol=1e-4, atol=1e-5)


def test_karcher_without_a_tolerance_ends_where_it_stands() -> None:
    (x,) = tensors_of(1, 50)
    assert torch.allclose(merge_tensors("karcher", [x, x, 2 * x], tol=0.0), x * 4 / 3)


@pytest.mark.parametrize("times", [1.0, 3.0, 5.3])
def test_multislerp_averages_opposite_tensors_whatever_their_rounding(times: float) -> None:
    for seed in range(20):
        x = tensors_of(1, 1000, seed=seed)[0].float()
        merged = merge_tensors("multislerp", [x, -times * x], weight=1.0)
        assert torch.allclose(merged, x * (1 - times) / 2, atol=1e-5)  # float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", [1, 2, 3, 4, 5, 8])
def test_arcee_fusion_takes_what_is_important_by_sorted_quartiles(
    values: int, dtype: torch.dtype
) -> None:
    for seed in range(10):
        chance = torch.Generator().manual_seed(seed)
        new, base = (torch.randn(values, generator=chance, dtype=dtype) for _ in range(2))
        p, q = (side.double().softmax(-1) + 1e-8 for side in (new, base))
        importance = (new - base).abs() * (p * (p / q).log()).sum()
        low, middle, high = (
            importance.sort().values[(values - 1) * quarter // 4] for quarter in (1, 2, 3)
        )
        wanted = torch.where(importance >= middle + 1.5 * (high - low), new, base)
        merged = merge_tensors("arcee_fusion", [new], base=base)
        assert torch.allclose(merged, wanted, atol=1e-6)  # a difference added to the base again


def test_karcher_leaves_out_what_has_no_direction() -> None:
    (one,) = tensors_of(1, 6, 5)
    zero = torch.zeros_like(one)
    close(merge_tensors("karcher", [one, zero]), one / 2)  # the length of 0 counts
    assert torch.equal(merge_tensors("karcher", [zero, zero]), zero)


def test_multislerp_has_the_mean_length_and_refuses_operands_that_cancel() -> None:
    one, two, three = tensors_of(3, 6, 5)
    merged = merge_tensors("multislerp", [one, two, three], weight=[1.0, 2.0, 1.0], eps=0.0)
    length = (one.norm() + 2 * two.norm() + three.norm()) / 4
    close(merged.norm(), length)
    direction = one / one.norm() + 2 * two / two.norm() + three / three.norm()
    close(merged, direction / direction.norm() * length)
    corners = [torch.tensor([math.cos(a), math.sin(a)]).double() for a in (0, 2.094395102393195)]
    corners.append(-corners[0] - corners[1])
    with pytest.raises(MergeError, match="cancel out under the weights"):
        merge_tensors("multislerp", corners, weight=1.0)
    close(merge_tensors("multislerp", [one, -one], weight=[3.0, 1.0]), one)
    close(merge_tensors("multislerp", [one, -one], weight=1.0), torch.zeros_like(one))


def test_model_stock_is_the_papers_interpolation() -> None:
    base, *tensors = tensors_of(4, 6, 5)
    flat = [(t - base).flatten() for t in tensors]
    cosines = [
        flat[a] @ flat[b] / (flat[a].norm() * flat[b].norm()) for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    cosine = sum(cosines) / 3
    share = 3 * cosine / (1 + 2 * cosine)
    expected = share * sum(tensors) / 3 + (1 - share) * base
    close(merge_tensors("model_stock", tensors, base=base), expected)
    rows = merge_tensors("model_stock", tensors, base=base, filter_wise=True)
    one = merge_tensors("model_stock", [t[2:3] for t in tensors], base=base[2:3])
    close(rows[2:3], one)


def test_task_arithmetic_takes_a_task_away_as_it_adds_it() -> None:
    base, tensor = tensors_of(2, 6, 5)
    more = merge_tensors("task_arithmetic", [tensor], base=base, weight=1.0)
    less = merge_tensors("task_arithmetic", [tensor], base=base, weight=-1.0)
    close((more + less) / 2, base)


def test_ties_trims_elects_and_merges() -> None:
    base = torch.zeros(4)
    one, two = torch.tensor([3.0, 1.0, -2.0, 0.5]), torch.tensor([-1.0, 4.0, -4.0, 2.0])
    merged = merge_tensors("ties", [one, two], base=base, weight=1.0, density=0.75)
    # Trimmed: [3, 1, -2, 0] and [0, 4, -4, 2]; signs +, +, -, +; means over those that agree.
    assert merged.tolist() == [3.0, 2.5, -3.0, 2.0]


def test_breadcrumbs_leaves_out_the_largest_and_the_smallest() -> None:
    change = torch.tensor([[5.0, -1.0, 2.0, -4.0, 3.0]])
    merged = merge_tensors(
        "breadcrumbs", [change], base=torch.zeros(1, 5), weight=1.0, density=0.4, gamma=0.2
    )
    assert merged.tolist() == [[0.0, 0.0, 0.0, -4.0, 3.0]]


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_random_methods_keep_the_share_the_sum_of_sizes_and_the_expectation(name: str) -> None:
    base, tensor = (t.float() for t in tensors_of(2, 400, 500))
    density, values = 0.3, 200_000
    merged = merge_tensors(name, [tensor], base=base, weight=1.0, density=density)
    delta, change = tensor - base, merged - base
    kept = change.abs() > 1e-6  # adding the base leaves a rounding where nothing was added
    spread = math.sqrt(density * (1 - density) / values)
    assert kept.double().mean().item() == pytest.approx(density, abs=5 * spread)
    total = delta.abs().double().sum().item()
    assert change.abs().double().sum().item() == pytest.approx(total, rel=1e-5)
    scale = (change / delta)[kept]
    # One factor for the whole tensor; a small change behind the base's rounding is less exact.
    assert scale.median().item() == pytest.approx(scale.mean().item(), rel=1e-3)
    # DELLA prefers large changes, so it makes up for less.
    wanted = 1 / density
    assert scale.median().item() == pytest.approx(wanted, rel=0.02 if "dare" in name else 0.4)
    assert "dare" in name or scale.median() < 0.9 * wanted


def test_dares_mean_over_seeds_is_the_change_itself() -> None:
    base, tensor = (t.float() for t in tensors_of(2, 10, 10))
    runs = [
        merge_tensors("dare_linear", [tensor], base=base, weight=1.0, density=0.5, seed=seed)
        for seed in range(600)
    ]
    error = (torch.stack(runs).mean(0) - tensor).abs() / (tensor - base).abs()
    assert error.mean() < 0.05  # a standard error of 1 / sqrt(600)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_another_operand_of_weight_0_does_not_change_a_random_choice(name: str) -> None:
    base, one, two = tensors_of(3, 30, 40)
    settings = {"base": base, "density": 0.5, "seed": 3}
    alone = merge_tensors(name, [one], keys=["one"], weight=[1.0], **settings)
    both = merge_tensors(name, [two, one], keys=["two", "one"], weight=[0.0, 1.0], **settings)
    close(alone, both)


def test_dellas_chance_rises_with_the_rank_in_the_row() -> None:
    base = torch.zeros(3000, 20)
    sizes = torch.arange(1.0, 21.0).expand(3000, 20)
    merged = merge_tensors(
        "della_linear", [sizes], base=base, weight=1.0, density=0.5, epsilon=0.3, rescale=False
    )
    rates = (merged != 0).double().mean(0)
    expected = 0.2 + 0.6 * torch.arange(20) / 19
    assert (rates - expected).abs().max() < 0.05  # five standard errors of 3000 draws
    with pytest.raises(MergeError, match=r"give chances from 0\.3 to 1\.1"):
        merge_tensors("della", [sizes], base=base, weight=1.0, density=0.7, epsilon=0.4)


def test_sce_weighs_by_energy_and_erases_the_minority() -> None:
    base = torch.zeros(3, dtype=torch.float64)
    one = torch.tensor([2.0, -1.0, 1.0]).double()
    two = torch.tensor([1.0, 3.0, 1.0]).double()
    weights = torch.tensor([6.0, 11.0]).double() / 17
    merged = merge_tensors("sce", [one, two], base=base)
    first = (weights[0] * 2 + weights[1]).item()
    close(merged, torch.tensor([first, 3.0, 1.0], dtype=torch.float64))
    # Two of three values vary; half of them is the one that varies most.
    selected = merge_tensors("sce", [one, two], base=base, select_topk=0.5)
    close(selected, torch.tensor([0.0, 3.0, 0.0]).double())


def test_fisher_is_the_least_of_the_quadratic_losses() -> None:
    tensors, matter = tensors_of(3, 6, 5), [t.square() for t in tensors_of(3, 6, 5, seed=1)]
    weight = [0.5, 1.0, 2.0]
    merged = merge_tensors("fisher", tensors, statistics=matter, weight=weight)
    gradient = sum(w * f * (merged - t) for w, f, t in zip(weight, matter, tensors, strict=True))
    close(gradient, torch.zeros(6, 5, dtype=torch.float64))


def test_fisher_averages_where_nothing_matters_or_nothing_is_known() -> None:
    tensors = tensors_of(2, 6, 5)
    zeros = [torch.zeros(6, 5)] * 2
    plain = merge_tensors("linear", tensors, weight=[1.0, 3.0])
    close(merge_tensors("fisher", tensors, statistics=zeros, weight=[1.0, 3.0]), plain)
    close(merge_tensors("fisher", tensors, weight=[1.0, 3.0]), plain)
    close(merge_tensors("regmean", tensors, weight=[1.0, 3.0]), plain)


def test_regmean_is_the_least_squares_fit_to_all_models_outputs() -> None:
    maps, inputs = tensors_of(3, 6, 5), tensors_of(3, 40, 5, seed=1)
    merged = merge_tensors(
        "regmean", maps, statistics=[x.T @ x for x in inputs], weight=[1.0, 1.0, 4.0], alpha=1.0
    )
    inputs[2] = 2 * inputs[2]  # what a weight of 4 is
    outputs = torch.cat([x @ w.T for x, w in zip(inputs, maps, strict=True)])
    fit = torch.linalg.lstsq(torch.cat(inputs), outputs).solution.T
    torch.testing.assert_close(merged, fit, rtol=1e-6, atol=1e-6)  # the ridge of 1e-8


def test_regmean_gives_inputs_that_nobody_saw_their_mean() -> None:
    maps, inputs = tensors_of(2, 6, 5), tensors_of(2, 40, 5, seed=1)
    for x in inputs:
        x[:, 3] = 0
    merged = merge_tensors("regmean", maps, statistics=[x.T @ x for x in inputs])
    close(merged[:, 3], (maps[0] + maps[1])[:, 3] / 2)


def test_statistics_that_are_none_are_refused() -> None:
    tensors = tensors_of(2, 6, 5)
    with pytest.raises(MergeError, match=r"Fisher information of '1' for 'tensor' is below 0"):
        merge_tensors("fisher", tensors, statistics=[torch.ones(6, 5), -torch.ones(6, 5)])
    with pytest.raises(MergeError, match=r"has the shape \(5, 6\), but the tensor has \(6, 5\)"):
        merge_tensors("fisher", tensors, statistics=[torch.ones(5, 6), torch.ones(5, 6)])
    with pytest.raises(MergeError, match=r"'0 \(its statistics\)' holds NaN"):
        merge_tensors("fisher", tensors, statistics=[torch.full((6, 5), math.nan)] * 2)
    with pytest.raises(MergeError, match=r"a map of the shape \(6, 5\) needs \(5, 5\)"):
        merge_tensors("regmean", tensors, statistics=[torch.eye(6)] * 2)
    with pytest.raises(MergeError, match="are no Gram matrix"):
        merge_tensors("regmean", tensors, statistics=[torch.ones(5, 5).triu()] * 2)
    with pytest.raises(MergeError, match="must not be below 0"):
        merge_tensors("fisher", tensors, weight=[1.0, -0.5])


def test_a_random_choice_is_the_same_on_every_machine() -> None:
    ones = torch.ones(16)
    merged = merge_tensors(
        "dare_linear", [ones], base=0 * ones, keys=["model"], weight=1.0, density=0.5, seed=7,
        rescale=False,
    )  # fmt: skip
    assert merged.nonzero().flatten().tolist() == [2, 3, 6, 9, 10, 11, 12, 14, 15]
