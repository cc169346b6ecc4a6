"""The FFN rebuilt from its roles equals the model's own, and without neurons nothing is left."""

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from brickwork.brick.address import Address
from brickwork.errors import ModelError
from brickwork.model.ffn import FFN, Experts, ffn_of
from brickwork.model.parts import ffn_row_of, layers_of, row_of
from brickwork.model.slices import slices_at
from tests.tiny import FAMILIES, silence, tiny_model

IDS = torch.arange(2, 26).reshape(2, 12)
# The model multiplies fused maps at once and sums experts in its own order, in float32.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def seen(model: PreTrainedModel, layer: int) -> dict[str, Tensor]:
    """What goes into and out of the FFN of a layer in a real forward, and its activations."""
    row, found = row_of(model), {}
    form = ffn_row_of(model, layer).form
    first = {"moe_gated": "mlp", "fused_gated": "mlp.gate_up"}.get(form, "mlp.up")
    last = "mlp" if form == "moe_gated" else "mlp.down"

    def entering(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found["x"] = args[0].flatten(0, -2)

    def leaving(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found["h"], found["y"] = args[0].flatten(0, -2), output.flatten(0, -2)

    hooks = [
        model.get_submodule(row.path(first, layer) or "").register_forward_pre_hook(entering),
        model.get_submodule(row.path(last, layer) or "").register_forward_hook(leaving),
    ]
    model(IDS)
    for hook in hooks:
        hook.remove()
    return found


def one_token_at_a_time(experts: Experts, router: Tensor, x: Tensor, drop: set[int]) -> Tensor:
    """The slow reference of an MoE layer: softmax, the best 2 of 4 made to sum to 1, no batches."""
    rows = []
    for token in x:
        shares, chosen = (router @ token).softmax(0).topk(2)
        total = torch.zeros_like(token)
        for share, number in zip(shares / shares.sum(), chosen.tolist(), strict=True):
            expert = experts.experts[number]
            assert expert.gate is not None
            h = expert.activation(expert.gate @ token) * (expert.up @ token)
            h[[n % len(h) for n in drop if n // len(h) == number]] = 0
            total += share * (expert.down @ h)
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_rebuilt_ffn_equals_the_models_own(family: str) -> None:
    model = tiny_model(family)
    for layer in range(layers_of(model)):
        own, ffn = seen(model, layer), ffn_of(model, layer)
        torch.testing.assert_close(ffn(own["x"]), own["y"], **TOLERANCE)
        if isinstance(ffn, FFN):
            assert own["h"].shape[-1] == ffn.neurons
            torch.testing.assert_close(ffn.activations(own["x"]), own["h"], **TOLERANCE)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@torch.no_grad()
def test_experts_and_routing_equal_a_slow_loop(family: str) -> None:
    model = tiny_model(family)
    own, experts = seen(model, 1), ffn_of(model, 1)
    assert isinstance(experts, Experts)
    router = model.get_parameter("model.layers.1.mlp.gate.weight")
    expected = one_token_at_a_time(experts, router, own["x"], set())
    torch.testing.assert_close(own["y"], expected, **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_ffn_without_its_neurons_says_nothing_but_its_bias(family: str) -> None:
    """A vanilla FFN keeps the bias of its output projection; no other form has one here."""
    model = tiny_model(family)
    for layer in range(layers_of(model)):
        ffn = ffn_of(model, layer)
        bias = ffn.down_bias if isinstance(ffn, FFN) else None
        expected = torch.zeros(model.config.hidden_size) if bias is None else bias.clone()
        if isinstance(ffn, FFN):
            assert torch.equal(ffn.output(torch.zeros(3, ffn.neurons)), expected.expand(3, -1))
        silence(model, slices_at(model, Address(layer, "mlp.neurons")))
        assert torch.equal(seen(model, layer)["y"], expected.expand(IDS.numel(), -1))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_zeroed_neurons_are_those_that_fall_silent(family: str) -> None:
    model = tiny_model(family)
    own, ffn = seen(model, 1), ffn_of(model, 1)
    neurons = (3, ffn.neurons - 2)  # in an MoE: of the first and the last expert
    if isinstance(ffn, FFN):
        h = ffn.activations(own["x"])
        h[:, list(neurons)] = 0
        expected = ffn.output(h)
    else:
        router = model.get_parameter("model.layers.1.mlp.gate.weight")
        expected = one_token_at_a_time(ffn, router, own["x"], set(neurons))
    silence(model, slices_at(model, Address(1, "mlp.neurons", neurons)))
    torch.testing.assert_close(seen(model, 1)["y"], expected, **TOLERANCE)
    assert not torch.allclose(own["y"], expected)


def test_the_tensors_are_the_models_own() -> None:
    model = tiny_model("phi3")
    ffn = ffn_of(model, 0)
    assert isinstance(ffn, FFN)
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.gate_up_proj.weight").fill_(7)
    assert ffn.gate is not None
    assert bool((ffn.gate == 7).all() and (ffn.up == 7).all())


def test_a_layer_that_does_not_match_its_row_is_refused() -> None:
    model = tiny_model("llama")
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(
        ModelError, match="layer 1 of this llama model has no FFN of the form gated"
    ):
        ffn_of(model, 1)
