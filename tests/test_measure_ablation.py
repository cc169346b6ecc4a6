"""Taking units away: equal to changed weights or to a slow loop, and exact about what is left."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from brickwork.brick.address import Address
from brickwork.measure.ablation import (
    NeuronMeans,
    averaging,
    random_like,
    resampling,
    silencing_heads,
    skipping,
    zeroing,
)
from brickwork.measure.batch import RunningBatch
from brickwork.measure.perplexity import instance_losses, token_mask
from brickwork.model.parts import layers_of
from brickwork.model.slices import slices_at
from brickwork.model.taps import NeuronTap, Routed, tapped
from brickwork.model.train import pack
from brickwork.model.units import unit_counts
from tests.test_measure_activations import instances, slow_activations
from tests.test_model_taps import dense
from tests.tiny import FAMILIES, silence, tiny_model

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32 in another order
CHOSEN = {0: torch.tensor([1, 5, 40]), 1: torch.tensor([0, 30, 47])}


def losses(model: PreTrainedModel) -> Tensor:
    return instance_losses(model, instances()).response


def activations(model: PreTrainedModel, taps: dict[int, NeuronTap], layer: int) -> Tensor:
    """What the neurons of a layer say in one batch, with the taps at work."""
    seen: list[Tensor] = []
    neurons = unit_counts(model, layer)["mlp.neurons"]

    def look(h: Tensor, routed: Routed | None) -> None:
        if layer in taps:
            taps[layer](h, routed)
        seen.append(dense(h, routed, neurons))

    with tapped(model, neurons={**taps, layer: look}), torch.inference_mode():
        model(pack(instances(), 0, 0.0).ids)
    return seen[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_zeroed_neurons_equal_zeroed_weights(family: str) -> None:
    model = tiny_model(family)
    with tapped(model, neurons=zeroing(CHOSEN)):
        found = losses(model)
    for layer, units in CHOSEN.items():
        silence(model, slices_at(model, Address(layer, "mlp.neurons", tuple(units.tolist()))))
    torch.testing.assert_close(found, losses(model), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_means_are_over_the_tokens_that_a_neuron_was_asked_for(family: str) -> None:
    model, running = tiny_model(family), RunningBatch()
    means = NeuronMeans(model, running)
    with tapped(model, neurons=means.taps()):
        instance_losses(model, instances(), running=running, tokens_per_batch=40)
    for layer in range(layers_of(model)):
        h = torch.cat([slow_activations(model, layer, s) for s in instances()])
        experts = "mlp.experts" in unit_counts(model, layer)
        asked = (h != 0).sum(0).clamp(min=1) if experts else len(h)
        torch.testing.assert_close(means.means(layer), h.sum(0) / asked, **TOLERANCE)
        before = activations(model, {}, layer)
        after = activations(model, {layer: averaging(CHOSEN, means)[layer]}, layer)
        units = CHOSEN[layer]
        silent = experts & (before[:, units] == 0)  # their experts were not picked
        expected = torch.where(silent, 0.0, means.means(layer)[units])
        torch.testing.assert_close(after[:, units], expected)
        others = ~torch.isin(torch.arange(before.shape[1]), units)
        assert torch.equal(after[:, others], before[:, others])


@pytest.mark.parametrize("family", FAMILIES)
def test_resampled_neurons_say_what_they_said_at_another_token(family: str) -> None:
    model = tiny_model(family)
    running = RunningBatch(token_mask(instances()))
    before = activations(model, {}, 0)
    taps = {0: resampling(CHOSEN, running, torch.Generator().manual_seed(1))[0]}
    after = activations(model, taps, 0)
    units, real = CHOSEN[0], running.positions
    for token in after[real]:
        for unit in units.tolist():
            assert bool((before[real][:, unit] == token[unit]).any())
    assert not torch.equal(after[real][:, units], before[real][:, units])
    others = ~torch.isin(torch.arange(before.shape[1]), units)
    assert torch.equal(after[:, others], before[:, others])
    again = {0: resampling(CHOSEN, running, torch.Generator().manual_seed(1))[0]}
    assert torch.equal(activations(model, again, 0), after)
    if "mlp.experts" not in unit_counts(model, 0):  # all of them come from the same token
        whole = before[real][:, units]
        assert all(bool((whole == token).all(1).any()) for token in after[real][:, units])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3_moe"])
def test_heads_and_layers_change_only_what_they_are(family: str) -> None:
    model = tiny_model(family)
    before = losses(model)
    with tapped(model, heads=silencing_heads({1: torch.tensor([2])})):
        assert not torch.allclose(losses(model), before, rtol=1e-3)
    with tapped(model, blocks=skipping([0, 1])), torch.inference_mode():
        states = model(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[1])
    assert torch.equal(losses(model), before)


def test_random_units_match_in_number_and_leave_out_what_they_must() -> None:
    model = tiny_model("llama")
    without = {0: torch.arange(24), 1: torch.arange(40)}
    drawn = random_like(
        CHOSEN, model, torch.Generator().manual_seed(0), word="mlp.neurons", without=without
    )
    assert {layer: len(units) for layer, units in drawn.items()} == {0: 3, 1: 3}
    for layer, units in drawn.items():
        assert len(units.unique()) == 3
        assert not torch.isin(units, without[layer]).any()
    same = random_like(
        CHOSEN, model, torch.Generator().manual_seed(0), word="mlp.neurons", without=without
    )
    assert all(torch.equal(drawn[layer], same[layer]) for layer in drawn)


def test_a_control_is_as_large_as_what_it_matches_also_where_few_others_are_left() -> None:
    model, most = tiny_model("llama"), {0: torch.arange(30)}
    drawn = random_like(
        most, model, torch.Generator().manual_seed(0), word="mlp.neurons", without=most
    )
    assert len(drawn[0].unique()) == 30
    assert torch.isin(torch.arange(30, 48), drawn[0]).all()  # all that need not be avoided
