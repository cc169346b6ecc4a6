"""Which neurons are active together, counted while a model runs, in a memory that stays the same.

A neuron is active at a token if its output magnitude is among the token's largest. With B the
table of who is active at which of T tokens and p the shares of tokens, the weight between two
neurons is their entry in ``W = B^T B / T - p p^T``: how much more often they are active together
than by chance. Neither W nor B is kept. Each token falls into one of some buckets, with a random
sign, and a neuron keeps one sum for each bucket; the products of two neurons' sums are then their
weights, up to noise (Charikar et al. 2002, Count Sketch). Balanced k-means on the sums maximises
the weight inside groups of equal size, which is the balanced cut of the graph of W.

Source: Zhang et al. 2021, MoEfication (arXiv:2110.01786), who keep the whole graph of B^T B and
cut it by METIS.

Cost: ``4 * WIDTH`` bytes for each neuron, and for each token the search for its largest and one
addition for each active neuron. On held-out tokens of the reference model, groups made from 1024
buckets hold nine tenths of the weight that groups made from all of B hold, from 256 buckets eight
tenths, groups by input weights a quarter.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.measure.batch import RunningBatch
from brickwork.measure.sparsity import indicator_of
from brickwork.model.ffn import Experts, ffn_of
from brickwork.model.parts import CausalModel, layers_of
from brickwork.model.taps import NeuronTap, Routed, output_norms

WIDTH = 1024
ACTIVE = 0.2  # of the neurons that a token reaches


@dataclass(frozen=True, eq=False)
class ActivePart:
    """Who is active in one FFN, or in one expert, at the tokens that reach it.

    Attributes:
        expert: its number; 0 where there is but one FFN.
        positions: the tokens, as positions of the batch.
        active: for each of them, whether each neuron is active.
    """

    expert: int
    positions: Int[Tensor, " some"]
    active: Bool[Tensor, "some neurons"]


def active_parts(
    h: Float[Tensor, "positions active"],
    routed: Routed | None,
    norms: Float[Tensor, " neurons"],
    tokens: Bool[Tensor, " positions"],
    *,
    share: float,
) -> Iterator[ActivePart]:
    """Who is active, for each expert that was picked, or for the one FFN.

    Args:
        h: activations, as a tap gets them.
        routed: whose they are, in an MoE.
        norms: lengths of the output columns of all neurons of the layer.
        tokens: False for padding.
        share: of the neurons that a token reaches; those of them with the largest output magnitude
            are active. A neuron whose output is 0 never is.
    """
    magnitude = indicator_of(h, routed, norms, "magnitude")
    count = max(1, int(share * h.shape[1] + 1e-9))
    least = magnitude.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
    active = (magnitude >= least) & (magnitude > 0) & tokens.unsqueeze(1)
    if routed is None:
        positions = tokens.nonzero().squeeze(1)
        yield ActivePart(0, positions, active[positions])
        return
    by_slot = active.unflatten(1, (-1, routed.width))
    for expert in routed.experts[tokens].unique().tolist():
        position, slot = routed.entries(expert)
        real = tokens[position]
        position, slot = position[real], slot[real]
        yield ActivePart(expert, position, by_slot[position, slot])


def ffn_counts(model: CausalModel) -> dict[int, tuple[int, int]]:
    """For each layer how many FFNs it has (experts, or 1), and how many neurons each of them."""
    ffns = {layer: ffn_of(model, layer) for layer in range(layers_of(model))}
    return {
        layer: (len(ffn.experts), ffn.experts[0].neurons)
        if isinstance(ffn, Experts)
        else (1, ffn.neurons)
        for layer, ffn in ffns.items()
    }


class Coactivation:
    """Sketches of who is active when, for all layers of a model in one pass.

    In an MoE neurons of different experts are kept apart, and an expert's tokens are those that it
    was picked for.
    """

    def __init__(
        self,
        model: CausalModel,
        batch: RunningBatch,
        generator: torch.Generator,
        *,
        width: int = WIDTH,
        share: float = ACTIVE,
    ) -> None:
        """Start with nothing counted.

        Args:
            model: whose neurons.
            batch: told of every batch before it runs.
            generator: on the CPU; draws buckets and signs.
            width: buckets.
            share: of the neurons that are active at a token.
        """
        self._batch, self._generator, self._share = batch, generator, share
        self._norms = {layer: output_norms(model, layer) for layer in range(layers_of(model))}
        self._sums: dict[int, Tensor] = {}
        self._signs: dict[int, Tensor] = {}
        self._active: dict[int, Tensor] = {}
        self._tokens: dict[int, Tensor] = {}
        for layer, (experts, neurons) in ffn_counts(model).items():
            device = self._norms[layer].device
            self._sums[layer] = torch.zeros(experts, width, neurons, device=device)
            # What a neuron that is active at every token would have in the buckets.
            self._signs[layer] = torch.zeros(experts, width, device=device)
            self._active[layer] = torch.zeros(experts, neurons, dtype=torch.int64, device=device)
            self._tokens[layer] = torch.zeros(experts, dtype=torch.int64, device=device)

    def taps(self) -> dict[int, NeuronTap]:
        """A tap for each layer."""
        return {layer: self._tap(layer) for layer in self._norms}

    def tokens(self, layer: int) -> Int[Tensor, " experts"]:
        """How many tokens reached each FFN of the layer."""
        return self._tokens[layer].cpu()

    def profiles(self, layer: int) -> Float[Tensor, "neurons buckets"]:
        """For every neuron a row; the product of two rows is the weight between two neurons.

        Rows of different experts say nothing about each other. Where no token was, all is 0.
        """
        tokens = self._tokens[layer].clamp(min=1).unsqueeze(1)
        shares = (self._active[layer] / tokens).float()  # experts neurons
        chance = self._signs[layer].unsqueeze(2) * shares.unsqueeze(1)
        rows = (self._sums[layer] - chance) / tokens.sqrt().unsqueeze(2)
        return rows.transpose(1, 2).flatten(0, 1)

    def _tap(self, layer: int) -> NeuronTap:
        width = self._sums[layer].shape[1]

        def tap(h: Tensor, routed: Routed | None) -> None:
            real = self._batch.positions
            bucket, sign = (
                torch.randint(n, (len(h),), generator=self._generator).to(h.device)
                for n in (width, 2)
            )
            for part in active_parts(h, routed, self._norms[layer], real, share=self._share):
                at, signs = bucket[part.positions], sign[part.positions].mul(2).sub(1).float()
                self._sums[layer][part.expert].index_add_(0, at, part.active * signs[:, None])
                self._signs[layer][part.expert].index_add_(0, at, signs)
                self._active[layer][part.expert] += part.active.sum(0)
                self._tokens[layer][part.expert] += len(part.active)

        return tap


class PairsInside:
    """Which share of the pairs of neurons that are active together is inside of groups.

    It judges any division of neurons, also on tokens that it was not made from.
    """

    def __init__(
        self,
        model: CausalModel,
        batch: RunningBatch,
        owners: Mapping[int, Int[Tensor, " neurons"]],
        *,
        share: float = ACTIVE,
    ) -> None:
        """Start with nothing counted.

        Args:
            model: whose neurons.
            batch: told of every batch before it runs.
            owners: for each layer the group of every neuron, below 0 for one of none.
            share: of the neurons that are active at a token.
        """
        self._batch, self._share = batch, share
        self._owners = {n: o.to(next(model.parameters()).device).long() for n, o in owners.items()}
        self._norms = {layer: output_norms(model, layer) for layer in owners}
        self._widths = {layer: ffn_counts(model)[layer][1] for layer in owners}
        self._inside = dict.fromkeys(owners, 0.0)
        self._every = dict.fromkeys(owners, 0.0)

    def taps(self) -> dict[int, NeuronTap]:
        """A tap for each layer that is divided."""
        return {layer: self._tap(layer) for layer in self._owners}

    def shares(self) -> dict[int, float]:
        """For each layer the share of the pairs that one group holds; 0 where no pair was."""
        return {n: self._inside[n] / max(every, 1.0) for n, every in self._every.items()}

    def chances(self) -> dict[int, float]:
        """The shares that groups of these sizes would have if they were drawn at random.

        Only pairs of one expert count, in an MoE.
        """
        found = {}
        for layer, owners in self._owners.items():
            sizes = torch.bincount(owners[owners >= 0]).double()
            grouped = (owners >= 0).unflatten(0, (-1, self._widths[layer])).sum(1).double()
            pairs = (grouped * (grouped - 1)).sum().clamp(min=1)
            found[layer] = ((sizes * (sizes - 1)).sum() / pairs).item()
        return found

    def _tap(self, layer: int) -> NeuronTap:
        owners, width = self._owners[layer], self._widths[layer]
        member = torch.nn.functional.one_hot(owners.clamp(min=0)).float()
        member[owners < 0] = 0

        def tap(h: Tensor, routed: Routed | None) -> None:
            real = self._batch.positions
            for part in active_parts(h, routed, self._norms[layer], real, share=self._share):
                own = member[part.expert * width : (part.expert + 1) * width]
                counts = part.active.float() @ own  # some groups
                every = counts.sum(1)
                self._inside[layer] += (counts * (counts - 1)).sum().item()
                self._every[layer] += (every * (every - 1)).sum().item()

        return tap
