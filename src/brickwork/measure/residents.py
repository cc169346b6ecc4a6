"""Which neurons are resident, so that a partition shares them: they fire whatever the input is.

Source: Pei et al. 2025, CMoE (arXiv:2502.04416): the neurons that are most often among a token's
most active ones are shared. There activation decides; here output magnitude does, which counts
what a neuron adds.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from brickwork.measure.batch import RunningBatch
from brickwork.measure.coactivation import active_parts, ffn_counts
from brickwork.model.parts import CausalModel
from brickwork.model.taps import NeuronTap, Routed, output_norms

OFTEN = 0.1  # of the neurons that a token reaches, those with the largest output


class ActivationRates:
    """How often each neuron is among a token's neurons of largest output.

    In an MoE the tokens of a neuron are those that its expert was picked for.
    """

    def __init__(self, model: CausalModel, batch: RunningBatch, *, share: float = OFTEN) -> None:
        """Start with nothing counted.

        Args:
            model: whose neurons.
            batch: told of every batch before it runs.
            share: of the neurons that a token reaches; so many have the largest output.
        """
        self._batch, self._share = batch, share
        counts = ffn_counts(model)
        self._norms = {layer: output_norms(model, layer) for layer in counts}
        self._active: dict[int, Tensor] = {}
        self._tokens: dict[int, Tensor] = {}
        for layer, (experts, neurons) in counts.items():
            device = self._norms[layer].device
            self._active[layer] = torch.zeros(experts, neurons, dtype=torch.int64, device=device)
            self._tokens[layer] = torch.zeros(experts, 1, dtype=torch.int64, device=device)

    def taps(self) -> dict[int, NeuronTap]:
        """A tap for each layer."""
        return {layer: self._tap(layer) for layer in self._norms}

    def rates(self, layer: int) -> Float[Tensor, " neurons"]:
        """The share of tokens, from 0 to 1; 0 where no token was."""
        return (self._active[layer] / self._tokens[layer].clamp(min=1)).flatten().cpu()

    def _tap(self, layer: int) -> NeuronTap:
        def tap(h: Tensor, routed: Routed | None) -> None:
            real = self._batch.positions
            for part in active_parts(h, routed, self._norms[layer], real, share=self._share):
                self._active[layer][part.expert] += part.active.sum(0)
                self._tokens[layer][part.expert] += len(part.active)

        return tap


def residence(
    rates: Float[Tensor, " neurons"] | None,
    selectivity: Float[Tensor, "neurons functions"] | None,
) -> Float[Tensor, " neurons"]:
    """How much each neuron is a resident, the most resident one highest.

    Where an analysis says which neurons are resident (their selectivity is -inf) they come first.
    The others follow by their activation rate if it is known, and else by how little they are any
    one functionality's own.

    Args:
        rates: from 0 to 1, of ``ActivationRates``.
        selectivity: of an analysis; one of the two must be there.
    """
    if selectivity is None:
        assert rates is not None, "whoever asks for shared neurons brings rates or an analysis"
        return rates
    best = selectivity.amax(1)
    others = -best if rates is None else rates
    return torch.where(best == -torch.inf, torch.inf, others)


def most_resident(residence: Float[Tensor, " neurons"], count: int) -> Int[Tensor, " shared"]:
    """So many neurons with the highest values, ascending; of equal ones those that come first."""
    order = residence.sort(descending=True, stable=True).indices
    return order[:count].sort().values


def shared_count(neurons: int, groups: int, share: float) -> int | None:
    """How many of an FFN's neurons are shared, so that the rest makes equal groups.

    Args:
        neurons: of the FFN.
        groups: that the rest is split into.
        share: of the neurons, at least; without a share none is shared.

    Returns:
        The smallest such number; None if there is none that leaves every group a neuron.
    """
    least = int(-(-share * neurons // 1)) if share else 0
    count = least + (neurons - least) % groups if share else 0
    fits = (neurons - count) % groups == 0 and neurons - count >= groups
    return count if fits else None
