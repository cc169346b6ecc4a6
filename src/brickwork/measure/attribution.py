"""Gradient times activation: a second way to say how much a neuron matters to an instance.

An instance's row is the mean over its prompt's tokens of ``|h * dL/dh|``, where L is the mean
loss on its response: to first order, how much L would change if the neuron were silent. Source:
Shrikumar et al. 2016 (arXiv:1605.01713); for neurons of language models Dai et al. 2022
(arXiv:2104.08696).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from brickwork.measure.activations import block_name, part_shares, pooled_neurons
from brickwork.measure.perplexity import token_losses
from brickwork.measure.rows import Layout, Rows
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel, layers_of
from brickwork.model.taps import NeuronTap, Routed, tapped
from brickwork.model.train import Encoded, groups_by_length
from brickwork.model.units import unit_counts

_TOKENS_PER_BATCH = 2048
# What a backward pass keeps of a token and layer, in widths of hidden and of the FFN: as measured
# on a model of 10M parameters, at 1.7 GB for 2,048 tokens and 8 layers.
_KEPT_HIDDEN, _KEPT_NEURONS, _KEPT_BYTES = 30, 16, 1 << 30
_KEPT_WORDS = 3  # logits in float32, their exponentials, and gradients


def attribution_layout(model: CausalModel, samples: int, *, key: str = "") -> Layout:
    """The rows that ``attribute`` makes of so many instances."""
    blocks = {
        block_name("neurons", layer, "attribution"): unit_counts(model, layer)["mlp.neurons"]
        for layer in range(layers_of(model))
    }
    return Layout(key, samples, blocks)


def attribute(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    rows: Rows,
    *,
    advance: Callable[[float], None] = lambda _steps: None,
) -> None:
    """Fill in the rows that are not there yet.

    Args:
        loaded: the model; it is left as it is, without gradients.
        sequences: one for each row, with a prompt and a response.
        rows: opened with the layout of ``attribution_layout``.
        advance: told the number of instances that have just been done.
    """
    groups = groups_by_length([len(s.ids) for s in sequences], gradient_budget(loaded.model))
    rows.fill(groups, lambda group: _rows(loaded.model, [sequences[i] for i in group]), advance)


def kept_bytes(model: CausalModel) -> int:
    """What a backward pass keeps of one token, about; a sequence is never split."""
    config = model.config.get_text_config()
    layers = [
        _KEPT_HIDDEN * config.hidden_size + _KEPT_NEURONS * unit_counts(model, n)["mlp.neurons"]
        for n in range(layers_of(model))
    ]
    return 4 * int(sum(layers) + _KEPT_WORDS * config.vocab_size)


def gradient_budget(model: CausalModel) -> int:
    """Tokens in a batch, so that what the backward pass keeps stays bounded."""
    return min(_TOKENS_PER_BATCH, _KEPT_BYTES // kept_bytes(model) + 1)


@torch.enable_grad()
def _rows(model: CausalModel, batch: Sequence[Encoded]) -> dict[str, Tensor]:
    seen: dict[int, tuple[Tensor, Routed | None]] = {}

    def keeping(layer: int) -> NeuronTap:
        def tap(h: Tensor, routed: Routed | None) -> Tensor:
            seen[layer] = (h, routed)
            return h

        return tap

    layers = range(layers_of(model))
    with differentiable(model), tapped(model, neurons={n: keeping(n) for n in layers}):
        nats, answers = token_losses(model, batch, whole=False)
    loss = (nats / answers.sum(1, keepdim=True)).sum()
    gradients = torch.autograd.grad(loss, [seen[n][0] for n in layers])
    shares = part_shares(batch, nats.shape[1] + 1, "prompt").to(nats.device)
    rows = {}
    for layer, gradient in zip(layers, gradients, strict=True):
        h, routed = seen[layer]
        values = (h.detach().float() * gradient.float()).abs_()
        neurons = unit_counts(model, layer)["mlp.neurons"]
        name = block_name("neurons", layer, "attribution")
        rows[name] = pooled_neurons(values, routed, shares, largest=False, neurons=neurons)
    return rows


@contextmanager
def differentiable(model: CausalModel) -> Iterator[None]:
    """Let gradients reach the activations, and no weight: that saves what weights would need."""

    def ask(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output.requires_grad_()

    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hook = model.get_input_embeddings().register_forward_hook(ask)
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        hook.remove()
        for parameter in asking:
            parameter.requires_grad_()
