"""Taps: they see what the parts say, change what they return, and leave nothing behind."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from brickwork.brick.address import Address
from brickwork.errors import ConfigurationError
from brickwork.model.ffn import FFN, Experts, ffn_of
from brickwork.model.heads import heads_of
from brickwork.model.parts import find_module, layers_of, part_of, role_path
from brickwork.model.slices import slices_at
from brickwork.model.taps import Routed, head_factors, output_norms, tapped
from tests.tiny import FAMILIES, silence, tiny_model

IDS = torch.arange(2, 26).reshape(2, 12)
# float32 sums in another order: our loop over experts, and norms by a triangular factor.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def dense(h: Tensor, routed: Routed | None, neurons: int) -> Tensor:
    """Compact activations spread over all neurons of the layer."""
    if routed is None:
        return h
    spread = torch.zeros(len(h), neurons)
    for expert in range(neurons // routed.width):
        position, slot = routed.entries(expert)
        own = slice(expert * routed.width, (expert + 1) * routed.width)
        spread[position, own] = h.unflatten(1, (-1, routed.width))[position, slot]
    return spread


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tap_that_only_looks_changes_nothing(family: str) -> None:
    model = tiny_model(family)
    before, layers = logits(model), range(layers_of(model))
    seen: list[tuple[int, ...]] = []
    with tapped(
        model,
        neurons={n: lambda h, _r: seen.append(tuple(h.shape)) for n in layers},
        heads={n: lambda z: seen.append(tuple(z.shape)) for n in layers},
        blocks={n: lambda x, y: seen.append((*x.shape, *y.shape)) for n in layers},
    ):
        torch.testing.assert_close(logits(model), before, **TOLERANCE)
    assert len(seen) == 3 * len(layers)
    heads = heads_of(model.config, 0)
    assert (24, heads.heads, heads.head_dim) in seen
    assert (2, 12, 32, 2, 12, 32) in seen
    assert torch.equal(logits(model), before)  # to the bit: nothing is left behind


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_activations_times_output_columns_are_what_the_ffn_adds(family: str) -> None:
    model = tiny_model(family)
    for layer in range(layers_of(model)):
        ffn, seen = ffn_of(model, layer), []

        def look(h: Tensor, routed: Routed | None, to: list[Tensor] = seen) -> None:
            to.append(dense(h, routed, ffn_of(model, 1).neurons if routed else h.shape[1]))

        with tapped(model, neurons={layer: look}):
            out = watched_output(model, layer)
        parts = [ffn] if isinstance(ffn, FFN) else list(ffn.experts)
        columns = torch.cat([part.down for part in parts], 1)
        bias = ffn.down_bias if isinstance(ffn, FFN) and ffn.down_bias is not None else 0
        torch.testing.assert_close(seen[0] @ columns.T + bias, out, **TOLERANCE)
        gains = gains_after(model, "norms.mlp_out", layer)
        torch.testing.assert_close(output_norms(model, layer), (gains * columns).norm(dim=0))


def gains_after(model: PreTrainedModel, role: str, layer: int) -> Tensor:
    """The gains of a norm that follows, by how each family's norm reads its weight."""
    norm = find_module(model, role_path(model, role, layer))
    if norm is None:
        return torch.ones(32, 1)
    weight = norm.weight.detach()
    return (1 + weight if model.config.model_type.startswith("gemma") else weight).unsqueeze(1)


def watched_output(model: PreTrainedModel, layer: int) -> Tensor:
    """What the FFN of a layer adds in a pass over IDS."""
    moe = isinstance(ffn_of(model, layer), Experts)
    path = role_path(model, "mlp", layer) or f"model.layers.{layer}.mlp"
    path = path if moe else part_of(model, "mlp.down", layer).module
    found: list[Tensor] = []
    module = find_module(model, path)
    assert module is not None
    hook = module.register_forward_hook(lambda _m, _a, output: found.append(output))
    model(IDS)
    hook.remove()
    return found[0].flatten(0, -2)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeroed_neurons_equal_zeroed_weights(family: str) -> None:
    model = tiny_model(family)
    neurons = (3, ffn_of(model, 1).neurons - 2)

    def remove(h: Tensor, routed: Routed | None) -> None:
        if routed is None:
            h[:, list(neurons)] = 0
            return
        for neuron in neurons:
            position, slot = routed.entries(neuron // routed.width)
            h.unflatten(1, (-1, routed.width))[position, slot, neuron % routed.width] = 0

    with tapped(model, neurons={1: remove}):
        found = logits(model)
    silence(model, slices_at(model, Address(1, "mlp.neurons", neurons)))
    torch.testing.assert_close(found, logits(model), **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_zeroed_head_equals_zeroed_columns_of_the_output_projection(family: str) -> None:
    model = tiny_model(family)
    width = heads_of(model.config, 1).head_dim

    def remove(z: Tensor) -> Tensor:
        return z.index_fill(1, torch.tensor([2]), 0.0)

    with tapped(model, heads={1: remove}):
        found = logits(model)
    silence(model, [part_of(model, "attn.o", 1).columns(range(2 * width, 3 * width))])
    torch.testing.assert_close(found, logits(model), **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_head_factors_give_the_length_of_a_heads_output(family: str) -> None:
    model = tiny_model(family)
    heads = heads_of(model.config, 1)
    part = part_of(model, "attn.o", 1)
    weight = model.get_parameter(part.weight)
    columns = weight if part.out_axis == 0 else weight.T
    z = torch.randn(5, heads.heads, heads.head_dim, generator=torch.Generator().manual_seed(0))
    columns = columns * gains_after(model, "norms.attn_out", 1)
    lengths = torch.einsum("hij,phj->phi", head_factors(model, 1), z).norm(dim=-1)
    for head in range(heads.heads):
        own = columns[:, head * heads.head_dim : (head + 1) * heads.head_dim]
        torch.testing.assert_close(lengths[:, head], (z[:, head] @ own.T).norm(dim=-1), **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skipped_block_hands_on_what_it_got(family: str) -> None:
    model = tiny_model(family)
    with tapped(model, blocks={0: lambda x, _y: x}), torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[1])


def test_gradients_flow_through_taps() -> None:
    for family in ("llama", "mixtral"):
        model, seen = tiny_model(family), []

        def keep(h: Tensor, _routed: Routed | None, to: list[Tensor] = seen) -> Tensor:
            to.append(h)
            return h

        with tapped(model, neurons={0: keep}):
            loss = model(IDS, labels=IDS).loss
        (gradient,) = torch.autograd.grad(loss, seen)
        assert gradient.shape == seen[0].shape
        assert gradient.abs().sum() > 0


def test_experts_are_changed_by_one_block_at_a_time() -> None:
    model = tiny_model("mixtral")
    with (
        tapped(model, neurons={0: lambda _h, _r: None}),
        pytest.raises(ConfigurationError, match="experts of layer 0 are already changed"),
        tapped(model, neurons={0: lambda _h, _r: None}),
    ):
        pass


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_input_is_what_the_ffn_needs_to_give_its_output(family: str) -> None:
    model = tiny_model(family)
    for layer in range(layers_of(model)):
        order: list[str] = []
        seen: list[Tensor] = []

        def look(x: Tensor, to: list[Tensor] = seen, calls: list[str] = order) -> None:
            calls.append("input")
            to.append(x)

        def note(_h: Tensor, _routed: Routed | None, calls: list[str] = order) -> None:
            calls.append("neurons")

        with tapped(model, inputs={layer: look}, neurons={layer: note}):
            out = watched_output(model, layer)
        assert order == ["input", "neurons"]
        assert seen[0].shape == (24, 32)
        torch.testing.assert_close(ffn_of(model, layer)(seen[0]), out, **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_input_tap_leaves_nothing_behind(family: str) -> None:
    model = tiny_model(family)
    before, calls = logits(model), []
    with tapped(model, inputs={1: lambda x: calls.append(x.shape)}):
        assert torch.equal(logits(model), before)  # it only looks
    logits(model)
    assert len(calls) == 1
