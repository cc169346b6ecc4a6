"""Taking units away, to see what they did.

Neurons are set to zero, to their mean, or to what they said at other tokens (resampled); heads
are set to zero, layers are skipped. Zero is what the paper does (Xiao et al. 2024,
arXiv:2409.02877, section 4.5); a unit whose usual value is far from zero is better judged by the
other two (Chan et al. 2022, Causal Scrubbing; Zhang and Nanda 2024, arXiv:2309.16042).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from brickwork.measure.batch import RunningBatch
from brickwork.model.parts import CausalModel, layers_of
from brickwork.model.taps import BlockTap, HeadTap, NeuronTap, Routed
from brickwork.model.units import unit_counts

# Layer -> numbers of the units to be taken away there.
Chosen = Mapping[int, Int[Tensor, " units"]]


class NeuronMeans:
    """The mean activation of every neuron over the tokens that pass by.

    In an MoE the mean is over the tokens that the neuron's expert was picked for.
    """

    def __init__(self, model: CausalModel, batch: RunningBatch) -> None:
        self._batch = batch
        device = next(model.parameters()).device
        counts = [unit_counts(model, n)["mlp.neurons"] for n in range(layers_of(model))]
        self._sums = [torch.zeros(n, dtype=torch.float64, device=device) for n in counts]
        self._tokens = [torch.zeros_like(sums) for sums in self._sums]

    def taps(self) -> dict[int, NeuronTap]:
        """A tap for each layer."""
        return {layer: self._tap(layer) for layer in range(len(self._sums))}

    def means(self, layer: int) -> Float[Tensor, " neurons"]:
        """The means; 0 where no token was."""
        return (self._sums[layer] / self._tokens[layer].clamp(min=1)).float()

    def _tap(self, layer: int) -> NeuronTap:
        sums, tokens = self._sums[layer], self._tokens[layer]

        def tap(h: Tensor, routed: Routed | None) -> None:
            real = self._batch.positions
            if routed is None:
                sums.add_(h[real].sum(0, dtype=torch.float64))
                tokens.add_(real.sum())
                return
            by_slot = h.unflatten(1, (-1, routed.width))
            for expert in routed.experts.unique().tolist():
                position, slot = routed.entries(expert)
                kept = real[position]
                own = slice(expert * routed.width, (expert + 1) * routed.width)
                said = by_slot[position[kept], slot[kept]]
                sums[own] += said.sum(0, dtype=torch.float64)
                tokens[own] += len(said)

        return tap


def zeroing(chosen: Chosen) -> dict[int, NeuronTap]:
    """Taps that set the chosen neurons to zero."""
    return {n: _replacing(units, lambda old, _at: torch.zeros_like(old))
            for n, units in chosen.items()}  # fmt: skip


def averaging(chosen: Chosen, means: NeuronMeans) -> dict[int, NeuronTap]:
    """Taps that set the chosen neurons to their means."""

    def of(layer: int, units: Tensor) -> NeuronTap:
        own = means.means(layer)
        return _replacing(units, lambda old, at: own[at].to(old.dtype).expand_as(old))

    return {layer: of(layer, units) for layer, units in chosen.items()}


def resampling(
    chosen: Chosen, batch: RunningBatch, generator: torch.Generator
) -> dict[int, NeuronTap]:
    """Taps that let the chosen neurons say what they said at another token of the same batch.

    All chosen neurons of a layer take it from the same token, drawn anew for every token (in an
    MoE: from among those that their expert was picked for). The generator is on the CPU.
    """

    def of(units: Tensor) -> NeuronTap:
        def tap(h: Tensor, routed: Routed | None) -> None:
            real = batch.positions
            if routed is None:
                positions = real.nonzero().squeeze(1)
                h[:, units] = h[:, units][_drawn(positions, len(h), generator)]
                return
            by_slot = h.unflatten(1, (-1, routed.width))
            for expert, own in _by_expert(units, routed.width):
                position, slot = routed.entries(expert)
                sources = real[position].nonzero().squeeze(1)
                if len(sources):
                    source = _drawn(sources, len(position), generator)
                    said = by_slot[position[source], slot[source]][:, own]
                    by_slot[position.unsqueeze(1), slot.unsqueeze(1), own] = said

        return tap

    return {layer: of(units) for layer, units in chosen.items()}


def silencing_heads(chosen: Chosen) -> dict[int, HeadTap]:
    """Taps that set the chosen heads to zero."""

    def of(units: Tensor) -> HeadTap:
        def tap(z: Tensor) -> Tensor:
            return z.index_fill(1, units.to(z.device), 0.0)

        return tap

    return {layer: of(units) for layer, units in chosen.items()}


def skipping(layers: Sequence[int]) -> dict[int, BlockTap]:
    """Taps that let blocks hand on what they get."""
    return {layer: lambda before, _after: before for layer in layers}


def random_like(
    chosen: Chosen,
    model: CausalModel,
    generator: torch.Generator,
    *,
    word: str,
    without: Chosen | None = None,
) -> dict[int, Tensor]:
    """As many random units in each layer as were chosen there.

    Args:
        chosen: the units to match in number.
        model: says how many there are.
        generator: on the CPU.
        word: ``mlp.neurons`` or ``attn.heads``.
        without: units that are drawn only where there are not enough others.
    """
    drawn = {}
    for layer, units in chosen.items():
        order = torch.randperm(unit_counts(model, layer)[word], generator=generator)
        if without is not None and layer in without:
            unwanted = torch.isin(order, without[layer])
            order = torch.cat([order[~unwanted], order[unwanted]])
        drawn[layer] = order[: len(units)].sort().values
    return drawn


def _replacing(units: Tensor, value: Callable[[Tensor, Tensor], Tensor]) -> NeuronTap:
    """A tap that puts ``value(old, which neurons)`` in the place of the units' activations."""

    def tap(h: Tensor, routed: Routed | None) -> None:
        if routed is None:
            at = units.to(h.device)
            h[:, at] = value(h[:, at], at)
            return
        by_slot = h.unflatten(1, (-1, routed.width))
        for expert, own in _by_expert(units, routed.width):
            position, slot = routed.entries(expert)
            place = (position.unsqueeze(1), slot.unsqueeze(1), own.to(h.device))
            by_slot[place] = value(by_slot[place], own.to(h.device) + expert * routed.width)

    return tap


def _by_expert(units: Tensor, width: int) -> list[tuple[int, Tensor]]:
    """The chosen neurons of every expert that has some, numbered within it."""
    return [(e, units[units // width == e] % width) for e in (units // width).unique().tolist()]


def _drawn(sources: Tensor, count: int, generator: torch.Generator) -> Tensor:
    chosen = torch.randint(len(sources), (count,), generator=generator)
    return sources[chosen.to(sources.device)]
