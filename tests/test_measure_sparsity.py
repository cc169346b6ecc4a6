"""Sparsity counts and masks: equal to a slow loop over tokens, in every family."""

import pytest
import torch
from torch import Tensor

from brickwork.measure.batch import RunningBatch
from brickwork.measure.perplexity import instance_losses
from brickwork.measure.results import Indicator
from brickwork.measure.sparsity import EDGES, SparsityCounts, masking
from brickwork.model.load import wrap_model
from brickwork.model.parts import layers_of
from brickwork.model.taps import Routed, output_norms, tapped
from tests.test_measure_activations import instances, slow_activations
from tests.test_model_taps import dense
from tests.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_equal_a_slow_loop(family: str) -> None:
    model, sequences = tiny_model(family), instances()
    running = RunningBatch()
    counts = SparsityCounts(model, running)
    with tapped(model, neurons=counts.taps()):
        instance_losses(model, sequences, running=running, tokens_per_batch=40)
    for layer, found in enumerate(counts.summary()):
        h = torch.cat([slow_activations(model, layer, s) for s in sequences]).abs()
        for values, shares, below in (
            (h, found.activation, found.activation_below),
            (h * output_norms(model, layer), found.magnitude, found.magnitude_below),
        ):
            z = values / values.amax(1, keepdim=True)
            expected = [(z <= edge).double().mean().item() for edge in EDGES]
            # A value within rounding of an edge may fall on its other side.
            assert shares == pytest.approx(expected, abs=2.5 / z.numel() ** 0.5)
            assert shares[0] == pytest.approx(expected[0], abs=1e-9)
            assert shares[-1] == 1.0
            assert below == shares[20]


def neurons_in(model_family: str, indicator: Indicator, ratio: float, layer: int) -> Tensor:
    """All activations of a layer, masked, as the output projection reads them."""
    model, seen = tiny_model(model_family), []
    norms = output_norms(model, layer)

    def look(h: Tensor, routed: Routed | None) -> None:
        masking(model, indicator, ratio, torch.Generator())[layer](h, routed)
        seen.append(dense(h, routed, len(norms)))

    with tapped(model, neurons={layer: look}), torch.inference_mode():
        model(torch.tensor([instances()[0].ids]))
    return seen[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("indicator", ["activation", "magnitude"])
def test_the_weakest_of_every_token_are_masked(family: str, indicator: Indicator) -> None:
    model, sequence = tiny_model(family), instances()[0]
    for layer in range(layers_of(model)):
        h = slow_activations(model, layer, sequence)
        norms = output_norms(model, layer)
        values = h.abs() * (norms if indicator == "magnitude" else 1)
        masked = int(0.7 * h.shape[1])
        weakest = values.argsort(dim=1, stable=True)[:, :masked]
        expected = h.scatter(1, weakest, 0.0)
        found = neurons_in(family, indicator, 0.7, layer)
        # float32 in another order; which of two equal zeros is masked does not show
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_masked_at_zero() -> None:
    loaded = wrap_model(tiny_model("llama"))
    before = instance_losses(loaded.model, instances()).response
    with tapped(loaded.model, neurons=masking(loaded.model, "activation", 0.0, torch.Generator())):
        assert torch.equal(instance_losses(loaded.model, instances()).response, before)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_at_random_any_neurons_are_masked(family: str) -> None:
    model, sequence = tiny_model(family), instances()[0]
    h = slow_activations(model, 0, sequence)
    found = neurons_in(family, "random", 0.5, 0)
    active, kept = h != 0, found != 0
    # 48 to 96 neurons that are active at each of some tokens: within four standard deviations
    share = kept.sum().item() / active.sum().item()
    assert share == pytest.approx(0.5, abs=2 / active.sum().item() ** 0.5)
    torch.testing.assert_close(found[kept], h[kept], rtol=1e-4, atol=1e-5)  # float32, other order


def test_tokens_that_say_nothing_count_as_zeros() -> None:
    model, running = tiny_model("opt"), RunningBatch(torch.ones(1, 2, dtype=torch.bool))
    counts = SparsityCounts(model, running)
    counts.taps()[0](torch.zeros(2, 48), None)
    assert counts.summary()[0].activation == [1.0] * len(EDGES)
