"""How much neurons, heads or blocks add, and what the loss owes to them, summed over instances.

Only tokens that predict a response count, for on these the loss is taken; the gradient is that of
the summed loss of an instance, in nats.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from brickwork.measure.activations import pooled_neurons
from brickwork.measure.attribution import differentiable, gradient_budget
from brickwork.measure.perplexity import token_losses
from brickwork.model.carve import KV_HEADS, NEURONS
from brickwork.model.heads import heads_of
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel, layers_of
from brickwork.model.taps import (
    BlockTap,
    HeadTap,
    NeuronTap,
    Routed,
    head_factors,
    output_norms,
    tapped,
)
from brickwork.model.train import Encoded, groups_by_length
from brickwork.model.units import unit_counts

_TINY = torch.finfo(torch.float32).tiny

Sums = dict[int, Float[Tensor, " units"]]


@dataclass(frozen=True, eq=False)
class UnitSums:
    """For each layer a number for each unit; heads are key and value heads.

    Attributes:
        magnitude: root mean square, over tokens, of the length of what the unit adds, divided by
            that of the residual stream after the block.
        owed: |gradient times output| of each instance, summed and divided by the number of
            response tokens: nats per token, to first order. Empty without gradients.
        squares: the same of each token, squared; empty without gradients.
    """

    magnitude: Sums
    owed: Sums
    squares: Sums


def sum_units(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    units: str,
    *,
    gradients: bool,
    advance: Callable[[float], None] = lambda _steps: None,
) -> UnitSums:
    """One pass over the instances, backwards too if gradients are wanted.

    Args:
        loaded: the model; it is left as it is.
        sequences: prompts with responses, one at least.
        units: ``neurons``, ``heads`` (key and value heads) or ``layers``.
        gradients: whether ``owed`` and ``squares`` are wanted.
        advance: told the number of instances that have just been done.
    """
    sums = _Sums(loaded.model, units)
    for group in groups_by_length([len(s.ids) for s in sequences], gradient_budget(loaded.model)):
        sums.add([sequences[i] for i in group], gradients=gradients)
        advance(len(group))
    return sums.result(gradients=gradients)


@dataclass(frozen=True, eq=False)
class _Said:
    """What a layer's units said in a batch: the tensor to ask gradients of, and what they added."""

    tensor: Tensor
    added: Tensor
    routed: Routed | None = None


class _Sums:
    """Runs batches, and adds to the sums."""

    def __init__(self, model: CausalModel, units: str) -> None:
        self.model, self.units = model, units
        self.layers = range(layers_of(model))
        self.counts = {n: _count(model, n, units) for n in self.layers}
        zeros = [{n: torch.zeros(count, dtype=torch.float64) for n, count in self.counts.items()}
                 for _ in range(3)]  # fmt: skip
        self.squared, self.owed, self.squares = zeros
        self.stream = torch.zeros(len(self.layers), dtype=torch.float64)
        self.tokens = 0
        self.said: dict[int, _Said] = {}
        self.predicting: Bool[Tensor, "rows tokens"] = torch.zeros(0, 0, dtype=torch.bool)

    def add(self, batch: Sequence[Encoded], *, gradients: bool) -> None:
        """Run a batch."""
        self.said = {}
        self.predicting = _predicting(batch).to(next(self.model.parameters()).device)
        self.tokens += int(self.predicting.sum())
        asked: AbstractContextManager[None] = nullcontext()
        if gradients:
            asked = differentiable(self.model)
        with torch.set_grad_enabled(gradients), asked, tapped(self.model, **self._taps()):
            nats, _ = token_losses(self.model, batch, whole=False)
        if gradients:
            wanted = [self.said[n].tensor for n in self.layers]
            for layer, gradient in zip(
                self.layers, torch.autograd.grad(nats.sum(), wanted), strict=True
            ):
                self._add_owed(layer, gradient)

    def result(self, *, gradients: bool) -> UnitSums:
        """The sums as means."""
        owed, squares = (
            {n: (own / self.tokens).float() for n, own in sums.items()} if gradients else {}
            for sums in (self.owed, self.squares)
        )
        return UnitSums({n: self._magnitude(n) for n in self.layers}, owed, squares)

    def _magnitude(self, layer: int) -> Float[Tensor, " units"]:
        lengths = self.squared[layer].sqrt()
        if self.units == "neurons":
            lengths = lengths * output_norms(self.model, layer).cpu()
        magnitude: Tensor = (lengths / self.stream[layer].clamp(min=_TINY).sqrt()).float()
        return magnitude

    def _taps(self) -> dict[str, Mapping[int, Any]]:
        """Blocks always, for the length of the residual stream."""
        taps: dict[str, Mapping[int, Any]] = {"blocks": {n: self._blocks(n) for n in self.layers}}
        if self.units == "neurons":
            taps["neurons"] = {n: self._neurons(n) for n in self.layers}
        elif self.units == "heads":
            taps["heads"] = {n: self._heads(n) for n in self.layers}
        return taps

    def _neurons(self, layer: int) -> NeuronTap:
        def tap(h: Tensor, routed: Routed | None) -> Tensor:
            self.said[layer] = _Said(h, h, routed)
            self._add_squared(layer, h.detach().float().square(), routed)
            return h

        return tap

    def _heads(self, layer: int) -> HeadTap:
        factors = head_factors(self.model, layer)

        def tap(z: Tensor) -> Tensor:
            self.said[layer] = _Said(z, z)
            added = torch.einsum("hij,phj->phi", factors, z.detach().float())
            self._add_squared(layer, self._by_kv_head(layer, added.square().sum(-1)))
            return z

        return tap

    def _blocks(self, layer: int) -> BlockTap:
        def tap(before: Tensor, after: Tensor) -> None:
            length = after.detach()[self.predicting].float().square().sum()
            self.stream[layer] += length.double().cpu()
            if self.units == "layers":
                change = after.detach() - before.detach()
                self.said[layer] = _Said(after, change)
                squares = change.float().square().sum(-1).view(-1, 1)
                self._add_squared(layer, squares)

        return tap

    def _add_squared(
        self,
        layer: int,
        squares: Float[Tensor, "positions active"],
        routed: Routed | None = None,
    ) -> None:
        self.squared[layer] += self._pooled(layer, squares, routed, self.predicting.float()).sum(0)

    def _add_owed(self, layer: int, gradient: Tensor) -> None:
        said = self.said.pop(layer)
        values = said.added.detach().float() * gradient.float()
        if self.units == "heads":
            values = self._by_kv_head(layer, values.sum(-1))
        elif self.units == "layers":
            values = values.sum(-1).view(-1, 1)
        everywhere = torch.ones_like(self.predicting, dtype=torch.float32)
        owed = self._pooled(layer, values, said.routed, everywhere)  # rows units
        self.owed[layer] += owed.abs().sum(0)
        squares = self._pooled(layer, values.square(), said.routed, everywhere)
        self.squares[layer] += squares.sum(0)

    def _pooled(
        self, layer: int, values: Tensor, routed: Routed | None, shares: Tensor
    ) -> Float[Tensor, "rows units"]:
        count = self.counts[layer]
        pooled = pooled_neurons(values, routed, shares, largest=False, neurons=count)
        return pooled.double().cpu()

    def _by_kv_head(
        self, layer: int, values: Float[Tensor, "positions heads"]
    ) -> Float[Tensor, "positions kv_heads"]:
        """The sum over the query heads that read one key and value head."""
        summed: Tensor = values.unflatten(1, (-1, heads_of(self.model.config, layer).group)).sum(-1)
        return summed


def _count(model: CausalModel, layer: int, units: str) -> int:
    words = {"neurons": NEURONS, "heads": KV_HEADS}
    return unit_counts(model, layer)[words[units]] if units in words else 1


def _predicting(batch: Sequence[Encoded]) -> Bool[Tensor, "rows tokens"]:
    """True where the next token is one of the response."""
    predicting = torch.zeros(len(batch), max(len(s.ids) for s in batch), dtype=torch.bool)
    for row, sequence in enumerate(batch):
        predicting[row, max(sequence.response_start, 1) - 1 : len(sequence.ids) - 1] = True
    return predicting
