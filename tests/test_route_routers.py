"""Routers: slow loops choose the same, every kind obeys the laws of choosing, costs add up."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brickwork.brick.effects import Route
from brickwork.brick.forms import find_form
from brickwork.errors import UnknownNameError
from brickwork.measure.centroids import membership
from brickwork.model.ffn import FFN, ffn_of
from brickwork.route.routers import (
    INDICATORS,
    ROUTERS,
    Level,
    Sizes,
    budget,
    group_scores,
    groups_kept,
    hash_scores,
    kept,
    kept_after_prompts,
    kind_of,
    neurons_of,
    prompt_kept,
    random_scores,
    reading,
    relative_cost,
    share_computed,
    threshold_at,
    top_neurons,
    truth_scores,
)
from tests.tiny import tiny_model

HIDDEN, NEURONS, GROUPS, WIDTH, TOKENS = 8, 24, 5, 6, 17
# Four shared neurons, and five groups of four.
OWNER = torch.tensor([-1, -1, *[n % GROUPS for n in range(20)], -1, -1])
DENSITIES = (0.05, 0.25, 0.5, 0.8, 1.0)


def rand(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


X, H = rand(TOKENS, HIDDEN, seed=1), rand(TOKENS, NEURONS, seed=2)
SLOTS: dict[str, dict[str, Tensor]] = {
    "threshold": {"quantiles": torch.linspace(0, 1, 101) ** 2 * 3},
    "magnitude": {"magnitude": rand(NEURONS, seed=3).abs()},
    "linear": {"owner": OWNER.float(), "weight": rand(GROUPS, HIDDEN, seed=4)},
    "mlp": {
        "owner": OWNER.float(),
        "first": rand(WIDTH, HIDDEN, seed=5),
        "second": rand(GROUPS, WIDTH, seed=6),
    },
}


def route(kind: str, density: float = 0.5, level: Level = "token") -> Route:
    return Route("down", SLOTS[kind], density, level)


def choice(kind: str, density: float = 0.5, x: Tensor = X, h: Tensor = H) -> Tensor:
    return kept(route(kind, density), x, lambda: h)


def test_every_kind_is_one_that_a_brick_can_hold() -> None:
    held = {frozenset(schema) for schema in find_form("router").slots}
    assert {row.slots for row in ROUTERS.values()} == held
    assert set(SLOTS) == set(ROUTERS)
    for kind, slots in SLOTS.items():
        assert kind_of(slots) == kind


def test_slots_of_no_kind_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no kind of router, by its slots, is called 'keep'"):
        kind_of({"keep": torch.ones(3)})


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("density", DENSITIES)
def test_a_batch_chooses_as_its_tokens_one_by_one(kind: str, density: float) -> None:
    alone = [choice(kind, density, X[t : t + 1], H[t : t + 1]) for t in range(TOKENS)]
    assert torch.equal(choice(kind, density), torch.cat(alone))


@pytest.mark.parametrize("kind", ROUTERS)
def test_permuted_tokens_have_permuted_choices(kind: str) -> None:
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    assert torch.equal(choice(kind, x=X[order], h=H[order]), choice(kind)[order])
    by_prompt = route(kind, level="prompt")
    once = prompt_kept(by_prompt, X, lambda: H)
    assert torch.equal(prompt_kept(by_prompt, X[order], lambda: H[order]), once)


@pytest.mark.parametrize("kind", ROUTERS)
def test_density_1_keeps_all(kind: str) -> None:
    assert choice(kind, 1.0).all()
    assert prompt_kept(route(kind, 1.0, "prompt"), X, lambda: H).all()


@pytest.mark.parametrize("kind", ROUTERS)
def test_more_density_keeps_what_less_kept(kind: str) -> None:
    choices = [choice(kind, density) for density in DENSITIES]
    for less, more in pairwise(choices):
        assert (more | ~less).all()


@pytest.mark.parametrize("kind", ["magnitude", "linear", "mlp"])
@pytest.mark.parametrize("density", [8 / 24, 12 / 24, 20 / 24])
def test_the_density_is_met_exactly(kind: str, density: float) -> None:
    assert set(choice(kind, density).sum(1).tolist()) == {round(density * NEURONS)}
    assert prompt_kept(route(kind, density, "prompt"), X, lambda: H).sum() == density * NEURONS


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("density", DENSITIES)
def test_shared_neurons_and_at_least_one_group_are_kept(kind: str, density: float) -> None:
    found = choice(kind, density)
    assert found[:, OWNER == -1].all()
    assert (found[:, OWNER >= 0].sum(1) >= 4).all()


def test_what_is_not_read_is_not_computed() -> None:
    def never() -> Tensor:
        raise AssertionError("computed")

    for kind, row in ROUTERS.items():
        if row.reads == "input":
            kept(route(kind), X, never)
            prompt_kept(route(kind), X, never)
        else:
            with pytest.raises(AssertionError, match="computed"):
                kept(route(kind), X, never)
        assert row.needs_activation == (row.reads != "input")


def slow_groups(scores: list[float], owner: list[int], density: float) -> list[bool]:
    """Whole groups, the best first, until the neurons are enough."""
    have, wanted = owner.count(-1), max(1, round(density * len(owner)))
    chosen: set[int] = set()
    for group in sorted(range(len(scores)), key=lambda g: -scores[g]):
        if chosen and have >= wanted:
            break
        chosen.add(group)
        have += owner.count(group)
    return [group in chosen for group in range(len(scores))]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_groups_are_taken_until_the_density_is_met(data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 6))
    more = data.draw(st.lists(st.integers(-1, groups - 1), max_size=12))
    owner = [*range(groups), *more]  # groups of any size
    scores = data.draw(st.lists(st.integers(0, 3), min_size=groups, max_size=groups))
    density = data.draw(st.sampled_from([0.01, 0.2, 0.5, 0.75, 1.0]))
    found = groups_kept(torch.tensor([scores]).float(), torch.tensor(owner), density)
    assert found[0].tolist() == slow_groups([float(s) for s in scores], owner, density)
    neurons = neurons_of(found, torch.tensor(owner))[0].tolist()
    assert neurons == [o == -1 or bool(found[0, o]) for o in owner]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sampled_from([0.01, 0.3, 0.5, 0.9, 1])
)
def test_the_top_neurons_are_exactly_so_many_also_under_ties(
    scores: list[int], density: float
) -> None:
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[: budget(len(scores), density)]
    found = top_neurons(torch.tensor([scores]).float(), density)[0]
    assert found.nonzero().squeeze(1).tolist() == sorted(best)


def test_linear_and_mlp_scores_are_those_of_a_slow_loop() -> None:
    linear, mlp = SLOTS["linear"], SLOTS["mlp"]
    for t in range(TOKENS):
        length = math.sqrt(sum(float(v) ** 2 for v in X[t]))
        own = [sum(float(a * b) for a, b in zip(X[t], w, strict=True)) for w in linear["weight"]]
        assert group_scores(linear, X)[t].tolist() == pytest.approx(own, abs=1e-5)  # float32
        inner = [
            math.tanh(sum(float(a * b) for a, b in zip(X[t], w, strict=True)) / length)
            for w in mlp["first"]
        ]
        own = [sum(a * float(b) for a, b in zip(inner, w, strict=True)) for w in mlp["second"]]
        assert group_scores(mlp, X)[t].tolist() == pytest.approx(own, abs=1e-5)


def test_the_mlp_does_not_see_the_length_of_its_input() -> None:
    assert torch.equal(choice("mlp"), choice("mlp", x=4 * X))


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.integers(1, 30))
def test_a_threshold_is_the_quantile_between_two_levels(density: float, levels: int) -> None:
    quantiles = np.sort(np.random.default_rng(levels).random(levels)).astype(np.float32)
    expected = np.interp(1 - density, np.linspace(0, 1, levels), quantiles)
    found = float(threshold_at(torch.from_numpy(quantiles), density))
    assert found == pytest.approx(expected, abs=1e-6)  # float32


def test_a_threshold_keeps_what_lies_above_it() -> None:
    limit = float(threshold_at(SLOTS["threshold"]["quantiles"], 0.25))
    expected = [[abs(float(v)) > limit for v in row] for row in H]
    assert choice("threshold", 0.25).tolist() == expected
    best = H.abs().mean(0).topk(6).indices
    once = prompt_kept(route("threshold", 0.25, "prompt"), X, lambda: H)
    assert set(once.nonzero().squeeze(1).tolist()) == set(best.tolist())


def test_a_prompts_neurons_are_griffins() -> None:
    """Algorithm of Dong et al. 2024: rows of length 1, then the length of each column."""
    ones = Route("down", {"magnitude": torch.ones(NEURONS)}, 0.25, "prompt")
    z = H.double().numpy()
    statistic = np.linalg.norm(z / np.linalg.norm(z, axis=1, keepdims=True), axis=0)
    best = np.argsort(-statistic)[:6]
    found = prompt_kept(ones, X, lambda: H).nonzero().squeeze(1)
    assert found.tolist() == sorted(best.tolist())
    loud = H * torch.linspace(0.1, 100, TOKENS).unsqueeze(1)
    assert torch.equal(prompt_kept(ones, X, lambda: loud), prompt_kept(ones, X, lambda: H))


@pytest.mark.parametrize("kind", ROUTERS)
def test_after_a_prompt_every_row_keeps_what_its_prompt_chose(kind: str) -> None:
    prompts = torch.zeros(3, 5, dtype=torch.bool)
    for row, length in enumerate((2, 5, 1)):
        prompts[row, :length] = True
    x, h, by_prompt = rand(15, HIDDEN), rand(15, NEURONS, seed=9), route(kind, level="prompt")
    found = kept_after_prompts(by_prompt, x, h, prompts).unflatten(0, (3, 5))
    for row, length in enumerate((2, 5, 1)):
        own = slice(5 * row, 5 * row + length)
        expected = prompt_kept(by_prompt, x[own], lambda own=own: h[own])
        assert found[row, :length].all()
        assert torch.equal(found[row, length:], expected.expand(5 - length, -1))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3", "gemma3_text"])
@torch.no_grad()
def test_the_gate_is_read_where_there_is_one(family: str) -> None:
    ffn, x = ffn_of(tiny_model(family), 0), rand(7, 32)
    assert isinstance(ffn, FFN)
    gate, whole = reading("gate", ffn, x)(), reading("activation", ffn, x)()
    torch.testing.assert_close(whole, ffn.activations(x))
    if ffn.gate is None:
        assert torch.equal(gate, whole)
        return
    up = x @ ffn.up.T
    torch.testing.assert_close(gate * up, whole, rtol=1e-4, atol=1e-5)  # another order of sums


@pytest.mark.parametrize("indicator", INDICATORS)
def test_the_truth_adds_up_what_neurons_do(indicator: str) -> None:
    norms = rand(NEURONS, seed=8).abs()
    value = {
        "absolute": lambda a, _n: abs(a),
        "square": lambda a, _n: a * a,
        "magnitude": lambda a, n: abs(a) * n,
        "energy": lambda a, n: (a * n) ** 2,
    }[indicator]
    found = truth_scores(H, norms, OWNER, indicator)
    for t in range(TOKENS):
        sums = [0.0] * GROUPS
        for i, group in enumerate(OWNER.tolist()):
            if group >= 0:
                sums[group] += value(float(H[t, i]), float(norms[i]))
        assert found[t].tolist() == pytest.approx(sums, rel=1e-4)  # float32


def test_an_unknown_indicator_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no indicator is called 'enery'; did you mean"):
        truth_scores(H, torch.ones(NEURONS), OWNER, "enery")


def test_membership_leaves_shared_neurons_out() -> None:
    found = membership(OWNER)
    assert found.sum(1).tolist() == (OWNER >= 0).float().tolist()
    assert found.sum(0).tolist() == [4.0] * GROUPS


def test_a_hash_depends_on_the_id_and_the_salt_alone() -> None:
    ids = torch.arange(4000) % 1000
    found = hash_scores(ids, 8, salt=3)
    assert torch.equal(found[:1000], found[1000:2000])
    assert not torch.equal(found, hash_scores(ids, 8, salt=4))
    assert found.min() >= 0
    assert found.max() < 1
    best = torch.bincount(found[:1000].argmax(1), minlength=8)
    # Each of 8 groups is best for 125 of 1000 ids; 5 standard deviations are 53.
    assert (best - 125).abs().max() < 53


def test_random_scores_follow_the_generator() -> None:
    one, two = (random_scores(5, 3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, random_scores(5, 3, torch.Generator().manual_seed(2)))


def test_costs_are_those_of_counted_multiply_adds() -> None:
    gated = Sizes(hidden=8, neurons=24, maps=3, groups=5, width=6)
    vanilla = Sizes(hidden=8, neurons=24, maps=2)
    dense = 3 * 8 * 24
    assert gated.dense == dense
    # CATS: the gate whole, up and down in part.
    assert relative_cost("threshold", gated, 0.25) == pytest.approx((1 + 2 * 0.25) / 3)
    assert relative_cost("threshold", vanilla, 0.25) == pytest.approx((1 + 0.25) / 2)
    magnitude = 2 * 8 * 24 + 8 * 6 + 24
    assert relative_cost("magnitude", gated, 0.25) == pytest.approx(magnitude / dense)
    linear = 3 * 8 * 6 + 5 * 8
    assert relative_cost("linear", gated, 0.25) == pytest.approx(linear / dense)
    mlp = 3 * 8 * 6 + 6 * 8 + 6 * 5
    assert relative_cost("mlp", gated, 0.25) == pytest.approx(mlp / dense)
    for kind in ROUTERS:
        assert relative_cost(kind, gated, 0.25, "prompt") == 0.25
        assert relative_cost(kind, gated, 1.0) >= 1
    assert share_computed("input", 3, 0.4) == pytest.approx(0.4)


def test_the_cost_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no kind of router is called 'liner'; did you mean"):
        relative_cost("liner", Sizes(8, 24, 3), 0.5)
