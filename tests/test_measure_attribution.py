"""Gradient times activation: equal to a finite difference, one instance and neuron at a time."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from brickwork.measure.activations import block_name
from brickwork.measure.attribution import attribute, attribution_layout
from brickwork.measure.rows import open_rows
from brickwork.model.load import wrap_model
from brickwork.model.parts import layers_of
from brickwork.model.taps import Routed, tapped
from brickwork.model.train import Encoded
from brickwork.model.units import unit_counts
from tests.test_measure_activations import instances
from tests.test_model_taps import dense
from tests.tiny import FAMILIES, tiny_model


def slow_rows(family: str, layer: int, sequence: Encoded) -> Tensor:
    """Autograd on one instance alone, in float64."""
    model, seen = tiny_model(family).double(), []
    neurons = unit_counts(model, layer)["mlp.neurons"]

    def keep(h: Tensor, routed: Routed | None) -> Tensor:
        seen.append((h, routed))
        return h

    # Experts that are not tapped would run in a kernel that knows no float64.
    others = {n: lambda h, _routed: h for n in range(layers_of(model))}
    with tapped(model, neurons={**others, layer: keep}):
        loss = exact_loss(model, sequence)
    h, routed = seen[0]
    (gradient,) = torch.autograd.grad(loss, [h])
    values = (h * gradient).abs().float().detach()
    return dense(values, routed, neurons)[: sequence.response_start].mean(0)


def exact_loss(model: torch.nn.Module, sequence: Encoded) -> Tensor:
    """The mean loss on the response; transformers' own would round to float32."""
    ids, start = torch.tensor([sequence.ids]), sequence.response_start
    return cross_entropy(model(ids).logits[0, start - 1 : -1], ids[0, start:])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frozen", [True, False])
def test_rows_equal_autograd_on_each_instance_alone(
    family: str, frozen: bool, tmp_path: Path
) -> None:
    loaded, sequences = wrap_model(tiny_model(family)), instances(4)
    loaded.model.requires_grad_(not frozen)
    rows = open_rows(tmp_path, attribution_layout(loaded.model, 4))
    attribute(loaded, sequences, rows)
    assert all(p.grad is None for p in loaded.model.parameters())
    for layer in range(layers_of(loaded.model)):
        found = rows.read(block_name("neurons", layer, "attribution"))
        for i, sequence in enumerate(sequences):
            # float32 against float64, through a whole backward pass
            expected = slow_rows(family, layer, sequence)
            torch.testing.assert_close(found[i], expected, rtol=1e-2, atol=1e-5)


def test_it_says_how_the_loss_changes_when_a_neuron_fades() -> None:
    """To first order: a central difference of the loss, by the sum of h times gradient."""
    model, sequence, seen = tiny_model("llama").double(), instances(1)[0], []

    def keep(h: Tensor, _routed: Routed | None) -> Tensor:
        seen.append(h)
        return h

    def with_factor(factor: float) -> float:
        def weaken(h: Tensor, _routed: Routed | None) -> Tensor:
            factors = torch.ones(h.shape[1], dtype=h.dtype)
            factors[7] = factor
            return h * factors

        with tapped(model, neurons={0: weaken}), torch.no_grad():
            return exact_loss(model, sequence).item()

    with tapped(model, neurons={0: keep}):
        (gradient,) = torch.autograd.grad(exact_loss(model, sequence), seen)
    slope = (with_factor(1.05) - with_factor(0.95)) / 0.1
    # The norms of the model compute in float32, so smaller steps would show their rounding.
    assert slope == pytest.approx((seen[0] * gradient)[:, 7].sum().item(), rel=1e-2)
