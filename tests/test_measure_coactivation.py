"""Who is active together: equal to whole tables of activations, and groups that are planted."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from transformers import PreTrainedModel

from brickwork.measure.batch import RunningBatch
from brickwork.measure.clustering import balanced_clusters
from brickwork.measure.coactivation import Coactivation, PairsInside, active_parts, ffn_counts
from brickwork.measure.perplexity import token_mask
from brickwork.measure.residents import ActivationRates, most_resident, residence, shared_count
from brickwork.model.taps import NeuronTap, Routed, output_norms, tapped
from brickwork.model.train import Encoded, pack
from tests.test_measure_activations import instances, slow_activations
from tests.tiny import tiny_model

SOME = ("llama", "gpt2", "opt", "gemma2", "mixtral", "qwen3_moe")
LAYER = 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(
    model: PreTrainedModel,
    make: Callable[[RunningBatch], dict[int, NeuronTap]],
    batches: list[list[Encoded]],
) -> None:
    running = RunningBatch()
    with tapped(model, neurons=make(running)), torch.inference_mode():
        for batch in batches:
            running.tokens = token_mask(batch)
            model.base_model(input_ids=pack(batch, 0, 0.0).ids, use_cache=False)


def slow_active(model: PreTrainedModel, share: float) -> tuple[Tensor, Tensor]:
    """For all tokens of ``instances()``: who is active, and which neurons the token reaches."""
    experts, width = ffn_counts(model)[LAYER]
    reached = 1 if experts == 1 else 2  # two experts for each token
    norms, active, heard = output_norms(model, LAYER), [], []
    for sequence in instances():
        for said in slow_activations(model, LAYER, sequence):
            magnitude = said.abs() * norms
            order = magnitude.argsort(descending=True)
            count = int(share * width * reached)
            row = torch.zeros(len(said))
            row[[i for i in order[:count].tolist() if magnitude[i] > 0]] = 1
            active.append(row)
            by_expert = (said.view(experts, width) != 0).any(1)
            heard.append(by_expert.repeat_interleave(width))
    return torch.stack(active), torch.stack(heard)


def weights(model: PreTrainedModel, *, width: int, seed: int = 0, share: float = 0.2) -> Tensor:
    found: list[Coactivation] = []

    def make(running: RunningBatch) -> dict[int, NeuronTap]:
        found.append(Coactivation(model, running, seeded(seed), width=width, share=share))
        return found[0].taps()

    run(model, make, [instances()[:4], instances()[4:]])
    rows = found[0].profiles(LAYER)
    return rows @ rows.T


@pytest.mark.parametrize("family", SOME)
def test_products_of_profiles_are_the_weights_of_the_graph(family: str) -> None:
    model = tiny_model(family)
    active, heard = slow_active(model, 0.2)
    experts, width = ffn_counts(model)[LAYER]
    # With far more buckets than tokens no two tokens share one, and nothing is lost.
    found = weights(model, width=1 << 16)
    for expert in range(experts):
        own = slice(expert * width, (expert + 1) * width)
        rows = active[heard[:, own.start]][:, own]
        share = rows.mean(0)
        expected = rows.T @ rows / len(rows) - share[:, None] * share
        torch.testing.assert_close(found[own, own], expected, rtol=1e-4, atol=1e-5)


def test_few_buckets_are_right_on_average() -> None:
    model = tiny_model("llama")
    exact = weights(model, width=1 << 16)
    some = torch.stack([weights(model, width=16, seed=seed) for seed in range(1, 17)])
    noise = (some[0] - exact).norm()
    # The mean of 16 is closer by the root of 16, if there is no bias.
    assert (some.mean(0) - exact).norm() < 2 * noise / 16**0.5


@pytest.mark.parametrize("family", SOME)
def test_rates_equal_a_slow_count(family: str) -> None:
    model = tiny_model(family)
    active, heard = slow_active(model, 0.1)
    found: list[ActivationRates] = []

    def make(running: RunningBatch) -> dict[int, NeuronTap]:
        found.append(ActivationRates(model, running, share=0.1))
        return found[0].taps()

    run(model, make, [[sequence] for sequence in instances()])
    expected = active.sum(0) / heard.sum(0).clamp(min=1)
    torch.testing.assert_close(found[0].rates(LAYER), expected)


@pytest.mark.parametrize("family", SOME)
def test_pairs_inside_equal_a_slow_count(family: str) -> None:
    model = tiny_model(family)
    experts, width = ffn_counts(model)[LAYER]
    each = torch.arange(width) % 4
    owners = torch.cat([each + 4 * expert for expert in range(experts)])
    owners[::5] = -1
    active, _ = slow_active(model, 0.2)
    grouped = active.bool() & (owners >= 0)
    pairs = [
        (owners[i] == owners[j]).item()
        for row in grouped
        for i, j in combinations(row.nonzero().flatten().tolist(), 2)
        if i // width == j // width
    ]
    judges: list[PairsInside] = []

    def make(running: RunningBatch) -> dict[int, NeuronTap]:
        judges.append(PairsInside(model, running, {LAYER: owners}))
        return judges[0].taps()

    run(model, make, [instances()])
    assert judges[0].shares()[LAYER] == pytest.approx(sum(pairs) / len(pairs))


def test_chance_is_what_random_groups_have() -> None:
    model, running = tiny_model("llama"), RunningBatch(torch.ones(1, 50, dtype=torch.bool))
    said, shares = torch.rand(50, 48, generator=seeded()), []
    for seed in range(40):
        owners = torch.randperm(48, generator=seeded(seed)) % 6
        judge = PairsInside(model, running, {LAYER: owners})
        judge.taps()[LAYER](said, None)
        shares.append(judge.shares()[LAYER])
        assert judge.chances()[LAYER] == pytest.approx(7 / 47)
    assert sum(shares) / 40 == pytest.approx(7 / 47, abs=0.01)  # one draw is within 0.02


def test_planted_groups_are_found() -> None:
    model, running = tiny_model("llama"), RunningBatch()
    sketches = Coactivation(model, running, seeded(), width=64, share=0.25)
    tap, truth = sketches.taps()[0], torch.randperm(48, generator=seeded(1)) % 4
    for step in range(20):
        running.tokens = torch.ones(8, 16, dtype=torch.bool)
        which = torch.randint(4, (128,), generator=seeded(step))
        said = torch.rand(128, 48, generator=seeded(100 + step))
        tap(torch.where(truth == which[:, None], 50 + said, said), None)
    assert adjusted_rand_score(truth, balanced_clusters(sketches.profiles(0), 4, seeded())) == 1.0
    assert int(sketches.tokens(0)) == 20 * 128


def test_padding_counts_for_nothing() -> None:
    said = torch.rand(6, 10, generator=seeded())
    tokens = torch.tensor([True, False, True, True, False, False])
    (part,) = active_parts(said, None, torch.ones(10), tokens, share=0.3)
    assert part.positions.tolist() == [0, 2, 3]
    assert part.active.sum(1).tolist() == [3, 3, 3]


def test_silent_neurons_are_never_active() -> None:
    said = torch.zeros(2, 10)
    said[0, 4] = -1.0
    (part,) = active_parts(said, None, torch.ones(10), torch.ones(2, dtype=torch.bool), share=0.3)
    assert part.active.nonzero().tolist() == [[0, 4]]


def test_an_expert_that_no_token_reached_has_profiles_of_zeros() -> None:
    model, running = tiny_model("mixtral"), RunningBatch(torch.ones(1, 3, dtype=torch.bool))
    sketches = Coactivation(model, running, seeded(), width=32)
    routed = Routed(torch.tensor([[0, 2], [2, 0], [0, 2]]), 48)
    sketches.taps()[0](torch.rand(3, 96, generator=seeded()), routed)
    rows = sketches.profiles(0).unflatten(0, (4, 48))
    assert sketches.tokens(0).tolist() == [3, 0, 3, 0]
    assert (rows[[1, 3]] == 0).all()
    assert (rows[[0, 2]] != 0).any()


def test_the_most_resident_come_first() -> None:
    rates = torch.tensor([0.1, 0.9, 0.5, 0.7])
    selectivity = torch.tensor([[0.3, -1.0], [0.2, 0.1], [-torch.inf, -torch.inf], [0.0, -0.4]])
    assert most_resident(residence(rates, None), 2).tolist() == [1, 3]
    assert most_resident(residence(None, selectivity), 2).tolist() == [2, 3]
    assert most_resident(residence(rates, selectivity), 2).tolist() == [1, 2]
    assert most_resident(residence(torch.zeros(4), None), 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("neurons", "groups", "share", "count"),
    [
        (48, 8, 0.0, 0), (48, 5, 0.0, None), (48, 5, 0.1, 8), (48, 8, 0.1, 8), (48, 8, 0.001, 8),
        (48, 8, 0.9, None), (14336, 64, 0.1, 1472), (50, 8, 0.04, 2), (8, 16, 0.0, None),
    ],
)  # fmt: skip
def test_shared_neurons_are_rounded_up_until_the_rest_divides(
    neurons: int, groups: int, share: float, count: int | None
) -> None:
    assert shared_count(neurons, groups, share) == count
