"""Sampling: a row's own stream of chance, the nucleus by a slow loop, frequencies."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from brickwork.brick.configuration import Options
from brickwork.runtime.sample import Sampler, nucleus

GREEDY = Options()
# Quarters: two logits are equal, or differ in every precision.
logit_rows = st.lists(st.integers(-24, 24).map(lambda n: n / 4), min_size=1, max_size=9)


@given(logit_rows, st.floats(0.01, 1.0))
def test_the_nucleus_is_what_a_loop_finds(logits: list[float], top_p: float) -> None:
    chances = torch.tensor(logits).double().softmax(0).tolist()
    found, before = [False] * len(chances), 0.0
    for token in sorted(range(len(chances)), key=lambda t: -chances[t]):
        assume(abs(before - top_p) > 1e-5)  # float32 may fall on either side there
        found[token] = before < top_p
        before += chances[token]
    assert nucleus(torch.tensor(logits), top_p).tolist() == found


@given(st.lists(st.tuples(logit_rows, st.integers(0, 2**63 - 1)), min_size=2, max_size=4))
def test_a_rows_choices_are_those_it_makes_alone(rows: list[tuple[list[float], int]]) -> None:
    options = [Options(temperature=0.7, top_p=0.9, seed=seed) for _, seed in rows]
    logits = torch.full((len(rows), 9), -9.0)
    for row, (values, _) in enumerate(rows):
        logits[row, : len(values)] = torch.tensor(values)
    together = Sampler([*options, GREEDY])
    alone = [Sampler([o]) for o in options]
    for _ in range(3):
        found = together(torch.cat([logits, logits[:1]]))
        assert found[:-1].tolist() == [int(s(logits[i : i + 1])) for i, s in enumerate(alone)]
        assert found[-1] == logits[0].argmax()


def chi_square(tokens: Tensor, chances: Tensor) -> float:
    expected = len(tokens) * chances
    counts = torch.bincount(tokens, minlength=len(chances))
    assert not counts[chances == 0].any()
    possible = chances > 0
    return float(((counts - expected)[possible] ** 2 / expected[possible]).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_frequencies_follow_the_softmax(temperature: float, top_p: float) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5, -0.5])
    chances = (logits / temperature).softmax(0)
    chances = chances.masked_fill(~nucleus(logits / temperature, top_p), 0)
    chances /= chances.sum()
    options = [Options(temperature=temperature, top_p=top_p, seed=seed) for seed in range(2000)]
    by_seed = Sampler(options)(logits.expand(2000, -1))
    stream = Sampler(options[:1])
    by_step = torch.cat([stream(logits[None]) for _ in range(2000)])
    for tokens in (by_seed, by_step):
        # 4 degrees of freedom at most: chance alone is above 23.5 once in 10,000 times.
        assert chi_square(tokens, chances) < 23.5


def test_seeds_that_differ_choose_differently_and_equal_ones_alike() -> None:
    logits = torch.zeros(3, 50)
    sampler = Sampler([Options(temperature=1.0, seed=seed) for seed in (1, 1, 2)])
    drawn = torch.stack([sampler(logits) for _ in range(20)])
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert not torch.equal(drawn[:, 0], drawn[:, 2])


def test_noise_of_0_never_chooses_what_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    # float32 has so few numbers that an exponential of exactly 0 is a matter of time.
    monkeypatch.setattr(Tensor, "exponential_", lambda self, generator: self.zero_())
    sampler = Sampler([Options(temperature=1.0, top_p=0.5)])
    assert sampler(torch.tensor([[0.0, 5.0, 1.0]])).tolist() == [1]
