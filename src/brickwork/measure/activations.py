"""What neurons, heads and blocks do on labelled instances, as one row for each instance.

The model runs once over the instances, in batches of similar length, without its output layer;
nothing is kept of single tokens. An instance's row for the neurons of a layer is by default the
mean of |activation| over the tokens of its prompt, ``A_j(n)`` of Xiao et al. 2024
(arXiv:2409.02877), section 4.4.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.measure.rows import Layout, Rows
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel, layers_of
from brickwork.model.taps import BlockTap, HeadTap, NeuronTap, Routed, head_factors, tapped
from brickwork.model.train import Encoded, groups_by_length, pack
from brickwork.model.units import unit_counts

TOKENS_PER_BATCH = 2048  # at 1024 to 4096 a 10M model ran equally fast; less memory decides
_MOST_CHANGE = 1e4  # of a token whose state was zero, which is no multiple of nothing
Part = Literal["prompt", "response"]
Advance = Callable[[float], None]


@dataclass(frozen=True)
class Statistic:
    """What is kept of a neuron's activations over the tokens of one part of an instance.

    Attributes:
        value: applied to every activation.
        largest: whether the largest value is kept, not the mean.
    """

    meaning: str
    value: Callable[[Tensor], Tensor]
    largest: bool = False


STATISTICS: Mapping[str, Statistic] = {
    "mean_abs": Statistic("mean of |activation|", torch.abs),
    "mean": Statistic("mean of the activation", lambda h: h),
    "positive": Statistic("share of tokens with an activation above 0", lambda h: h > 0),
    "max": Statistic("largest |activation|", torch.abs, largest=True),
}


@dataclass(frozen=True)
class Wanted:
    """What to collect.

    Attributes:
        statistics: names of ``STATISTICS``, for the neurons. The mean output magnitude is no row of
            its own: it is ``mean_abs`` times ``taps.output_norms``, exactly.
        parts: parts of an instance; for ``prompt`` alone no response token is computed.
        heads: whether to keep, for every head, the mean length of what it adds to the residual
            stream.
        blocks: whether to keep, for every block, the mean of |after - before| / |before| of the
            residual stream.
    """

    statistics: tuple[str, ...] = ("mean_abs",)
    parts: tuple[Part, ...] = ("prompt",)
    heads: bool = True
    blocks: bool = True


def block_name(unit: str, layer: int, statistic: str, part: Part = "prompt") -> str:
    """The name of a block of rows, ``neurons.mean_abs.prompt.003`` for example."""
    return f"{unit}.{statistic}.{part}.{layer:03d}"


def layout_of(
    model: CausalModel, samples: int, wanted: Wanted, *, key: str = "", dtype: str = "float32"
) -> Layout:
    """The rows that ``collect`` makes of so many instances; a model without weights will do."""
    blocks: dict[str, int] = {}
    for layer in range(layers_of(model)):
        counts = unit_counts(model, layer)
        for part in wanted.parts:
            for name in wanted.statistics:
                blocks[block_name("neurons", layer, name, part)] = counts["mlp.neurons"]
            if wanted.heads:
                blocks[block_name("heads", layer, "output_norm", part)] = counts["attn.heads"]
            if wanted.blocks:
                blocks[block_name("layers", layer, "change", part)] = 1
    return Layout(key, samples, blocks, dtype)


@torch.inference_mode()
def collect(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    rows: Rows,
    wanted: Wanted,
    *,
    shard: tuple[int, int] = (1, 1),
    advance: Advance = lambda _steps: None,
) -> None:
    """Fill in the rows that are not there yet.

    Args:
        loaded: the model; it is left as it is.
        sequences: one for each row, with at least one token in every part that is wanted.
        rows: opened with the layout of ``layout_of`` for the same ``wanted``.
        wanted: what to collect.
        shard: number k of n; this call makes every n-th batch, from the k-th on.
        advance: told the number of instances that have just been done.
    """
    model = loaded.model
    whole = "response" in wanted.parts
    lengths = [len(s.ids) if whole else s.response_start for s in sequences]
    own = groups_by_length(lengths, TOKENS_PER_BATCH)[shard[0] - 1 :: shard[1]]
    recorder = _Recorder(model, wanted)

    def make(group: list[int]) -> dict[str, Tensor]:
        return recorder.run([
            Encoded(sequences[i].ids[: lengths[i]], sequences[i].response_start) for i in group
        ])  # fmt: skip

    with recorder.listening():
        rows.fill(own, make, advance)


class _Recorder:
    """Runs batches, and keeps the rows of the latest."""

    def __init__(self, model: CausalModel, wanted: Wanted) -> None:
        self.model = model
        self.wanted = wanted
        self.rows: dict[str, Tensor] = {}
        # A token's share in the mean over its part; 0 outside of it.
        self.shares: dict[Part, Float[Tensor, "rows tokens"]] = {}

    def listening(self) -> AbstractContextManager[None]:
        """The model with a tap on everything that is wanted."""
        layers = range(layers_of(self.model))
        return tapped(
            self.model,
            neurons={n: self._neurons(n) for n in layers},
            heads={n: self._heads(n) for n in layers} if self.wanted.heads else None,
            blocks={n: self._blocks(n) for n in layers} if self.wanted.blocks else None,
        )

    def run(self, batch: Sequence[Encoded]) -> dict[str, Tensor]:
        """The rows of a batch."""
        device = next(self.model.parameters()).device
        ids = pack(batch, pad=0, prompt_weight=0.0).ids
        self.shares = {
            part: part_shares(batch, ids.shape[1], part).to(device) for part in self.wanted.parts
        }
        self.rows = {}
        self.model.base_model(input_ids=ids.to(device), use_cache=False)
        return self.rows

    def _neurons(self, layer: int) -> NeuronTap:
        neurons = unit_counts(self.model, layer)["mlp.neurons"]

        def tap(h: Tensor, routed: Routed | None) -> None:
            for name in self.wanted.statistics:
                statistic = STATISTICS[name]
                values = statistic.value(h).float()
                for part, shares in self.shares.items():
                    self.rows[block_name("neurons", layer, name, part)] = pooled_neurons(
                        values, routed, shares, largest=statistic.largest, neurons=neurons
                    )

        return tap

    def _heads(self, layer: int) -> HeadTap:
        factors = head_factors(self.model, layer)

        def tap(z: Tensor) -> None:
            lengths = torch.einsum("hij,phj->phi", factors, z.float()).norm(dim=-1)
            for part, shares in self.shares.items():
                name = block_name("heads", layer, "output_norm", part)
                self.rows[name] = _pooled(lengths, shares, largest=False)

        return tap

    def _blocks(self, layer: int) -> BlockTap:
        def tap(before: Tensor, after: Tensor) -> None:
            length = before.float().norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
            change = ((after - before).float().norm(dim=-1) / length).clamp(max=_MOST_CHANGE)
            for part, shares in self.shares.items():
                name = block_name("layers", layer, "change", part)
                self.rows[name] = _pooled(change.view(-1, 1), shares, largest=False)

        return tap


def pooled_neurons(
    values: Float[Tensor, "positions active"],
    routed: Routed | None,
    shares: Float[Tensor, "rows tokens"],
    *,
    largest: bool,
    neurons: int,
) -> Float[Tensor, "rows neurons"]:
    """Values of a tap's activations, pooled over the tokens of every row.

    Args:
        values: one for each activation, in float32.
        routed: what the tap got.
        shares: weights of the tokens; those of weight 0 do not count.
        largest: the largest value, not the weighted sum.
        neurons: of the layer; those of experts that were not picked count as 0.
    """
    if routed is None:
        return _pooled(values, shares, largest)
    return _pooled_experts(values, routed, shares, largest, neurons)


def part_shares(batch: Sequence[Encoded], tokens: int, part: Part) -> Float[Tensor, "rows tokens"]:
    """The share of every token in the mean over its row's part; 0 outside of it."""
    shares = torch.zeros(len(batch), tokens)
    for row, sequence in enumerate(batch):
        start, end = sequence.response_start, len(sequence.ids)
        first, last = (0, start) if part == "prompt" else (start, end)
        shares[row, first:last] = 1 / (last - first)
    return shares


def _pooled(
    values: Float[Tensor, "positions units"],
    shares: Float[Tensor, "rows tokens"],
    largest: bool,
) -> Float[Tensor, "rows units"]:
    by_row = values.view(*shares.shape, -1)
    if largest:
        return by_row.masked_fill((shares == 0).unsqueeze(-1), 0.0).amax(1)
    return torch.bmm(shares.unsqueeze(1), by_row).squeeze(1)


def _pooled_experts(
    values: Float[Tensor, "positions active"],
    routed: Routed,
    shares: Float[Tensor, "rows tokens"],
    largest: bool,
    neurons: int,
) -> Float[Tensor, "rows neurons"]:
    """As ``_pooled`` over all neurons of an MoE layer; those not routed to are silent, 0."""
    by_slot = values.unflatten(1, (-1, routed.width))
    flat, tokens = shares.flatten(), shares.shape[1]
    pooled = values.new_zeros(len(shares), neurons // routed.width, routed.width)
    for expert in routed.experts.unique().tolist():
        position, slot = routed.entries(expert)
        own, share = by_slot[position, slot], flat[position].unsqueeze(1)
        row = position // tokens
        if largest:
            index = row.unsqueeze(1).expand_as(own)
            pooled[:, expert].scatter_reduce_(0, index, own * (share > 0), "amax")
        else:
            pooled[:, expert].index_add_(0, row, own * share)
    return pooled.flatten(1)
