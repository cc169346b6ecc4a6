"""Routers at work in a pass of the model: what they choose, and how much of the FFNs it carries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.brick.effects import Route
from brickwork.errors import ConfigurationError, DataError
from brickwork.measure.perplexity import TOKENS_PER_BATCH, token_mask
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.parts import CausalModel, ffn_row_of, layers_of
from brickwork.model.taps import Routed, output_norms, tapped
from brickwork.model.train import Encoded, groups_by_length, pack
from brickwork.route.routers import (
    ROUTERS,
    Reading,
    kept,
    kept_after_prompts,
    kind_of,
    reading,
)

# Layer, what its FFN reads, its activations.
Watcher = Callable[[int, Tensor, Tensor], None]


def dense_layers(model: CausalModel) -> list[int]:
    """The layers whose FFN is not a mixture of experts.

    Raises:
        ConfigurationError: if there is none.
    """
    layers = [n for n in range(layers_of(model)) if ffn_row_of(model, n).form != "moe_gated"]
    if not layers:
        raise ConfigurationError(
            f"routers were asked for, but all {layers_of(model)} FFNs of this "
            f"{model.config.model_type} model are mixtures of experts, which have their own; "
            "choose a model with dense FFNs."
        )
    return layers


@dataclass(eq=False)
class Shown:
    """The batch that is running.

    Attributes:
        ids: packed, padding on the right.
        tokens: True where there is a token and not padding.
        prompts: True for tokens of a prompt.
    """

    ids: Int[Tensor, "rows tokens"]
    tokens: Bool[Tensor, "rows tokens"]
    prompts: Bool[Tensor, "rows tokens"]


def shown(batch: Sequence[Encoded], device: torch.device) -> Shown:
    """A batch as the taps must know it."""
    ids = pack(batch, pad=0, prompt_weight=0.0).ids
    starts = torch.tensor([s.response_start for s in batch]).unsqueeze(1)
    prompts = torch.arange(ids.shape[1]) < starts
    return Shown(ids.to(device), token_mask(batch).to(device), prompts.to(device))


def choose(
    route: Route,
    ffn: FFN,
    *,
    x: Float[Tensor, "positions hidden"],
    h: Float[Tensor, "positions neurons"],
    batch: Shown,
) -> Bool[Tensor, "positions neurons"]:
    """What a router keeps at every position of a batch, prompts whole where it chooses by them."""
    reads = ROUTERS[kind_of(route.tensors)].reads
    read: Reading = (lambda: h) if reads == "activation" else reading(reads, ffn, x)
    if route.level == "token":
        return kept(route, x, read)
    return kept_after_prompts(route, x, h if reads == "input" else read(), batch.prompts)


@torch.inference_mode()
def captured_energy(
    model: CausalModel, routes: Mapping[int, Route], sequences: Sequence[Encoded]
) -> float:
    """The share of the energy of FFN outputs that the chosen neurons carry; nothing is silenced.

    Energy is the square of a neuron's output magnitude, summed over neurons: the squared length
    of the output if all neurons wrote in directions of their own. The mean over tokens and layers;
    at the level ``prompt`` over the tokens of responses.

    Raises:
        DataError: if no token is left to measure on.
    """
    device = next(model.parameters()).device
    norms = {n: output_norms(model, n) for n in routes}
    shares: list[Tensor] = []
    for group in groups_by_length([len(s.ids) for s in sequences], TOKENS_PER_BATCH):
        batch = shown([sequences[i] for i in group], device)
        counted = batch.tokens
        if any(route.level == "prompt" for route in routes.values()):
            counted = counted & ~batch.prompts
        where = counted.flatten()

        def look(n: int, x: Tensor, h: Tensor, batch: Shown = batch, at: Tensor = where) -> None:
            keep = choose(routes[n], dense_ffn(model, n), x=x, h=h, batch=batch)
            shares.append(energy_kept(keep[at], h[at], norms[n]).cpu())

        watch(model, list(routes), batch.ids, look)
    found = torch.cat(shares) if shares else torch.zeros(0)
    if not len(found):
        raise DataError(
            f"captured energy was to be measured on {len(sequences)} held-out sequences, which "
            "have no token that counts; give sequences with responses."
        )
    return found.double().mean().item()


def energy_kept(
    keep: Bool[Tensor, "tokens neurons"],
    h: Float[Tensor, "tokens neurons"],
    norms: Float[Tensor, " neurons"],
) -> Float[Tensor, " tokens"]:
    """The share of each token's energy that the kept neurons carry; 1 where there is none."""
    energy = (h.float() * norms).square()
    total = energy.sum(1)
    return torch.where(total > 0, (energy * keep).sum(1) / total, 1.0)


def dense_ffn(model: CausalModel, layer: int) -> FFN:
    """The FFN of a layer that is no mixture of experts."""
    ffn = ffn_of(model, layer)
    assert isinstance(ffn, FFN), "routers are for dense layers alone"
    return ffn


def watch(model: CausalModel, layers: Sequence[int], ids: Tensor, watcher: Watcher) -> None:
    """Run a batch without the output layer; the watcher is called for every layer."""
    inputs: dict[int, Tensor] = {}

    def look(n: int, h: Tensor, _routed: Routed | None) -> None:
        watcher(n, inputs.pop(n), h)

    with tapped(
        model,
        inputs={n: partial(inputs.__setitem__, n) for n in layers},
        neurons={n: partial(look, n) for n in layers},
    ):
        model.base_model(input_ids=ids, use_cache=False)
