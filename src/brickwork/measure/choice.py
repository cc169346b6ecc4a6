"""Which units are kept under a budget, and the same as bricks.

``uniform`` keeps the best units of every layer, the same share everywhere, so that a checkpoint of
them is as small as it can be. ``global`` keeps the best of the whole model, wherever they are, but
some of every layer: it costs less loss, and a plain checkpoint of it is padded with zeros to its
widest layer (``model/carve.py`` says why). Layers themselves are always chosen globally.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.spec import BrickSpec, Function, Lineage, Metric
from brickwork.errors import ConfigurationError
from brickwork.measure.ablation import silencing_heads, skipping, zeroing
from brickwork.measure.need import UNITS, Asked, Need, members_of, units_of
from brickwork.model.carve import EXPERTS, KV_HEADS, NEURONS, Kept, possible_kv_heads
from brickwork.model.heads import heads_of
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel, ffn_row_of, layers_of, part_of, role_path
from brickwork.model.taps import tapped
from brickwork.model.units import UNITS as SLICES
from brickwork.model.units import unit_counts

Widths = Literal["uniform", "global"]
FLOOR = 0.05  # of a layer's units stay in it, whatever the others need


@dataclass(frozen=True, eq=False)
class _Part:
    """Units that are chosen together: those of a layer, or of one expert.

    Attributes:
        first: number in the layer of the first one.
        rate: need of each, for one neuron of it.
        sizes: neurons of each, or 1.
    """

    layer: int
    first: int
    rate: Float[Tensor, " units"]
    sizes: Int[Tensor, " units"]


@dataclass(frozen=True, eq=False)
class Choice:
    """What is kept where, and how it was chosen.

    Attributes:
        units: a name of ``need.UNITS``.
        method: a name of ``need.NEEDS``.
        widths: whether every layer keeps the same share.
        density: the share that was asked for.
        chosen: for each layer its units that are kept, ascending; of layers, 0 or nothing.
        of: for each layer how many units there are to choose from.
        members: of groups and experts, for each layer the neurons of every one.
        shared: neurons that are kept besides.
    """

    units: str
    method: str
    widths: Widths
    density: float
    chosen: Mapping[int, Int[Tensor, " kept"]]
    of: Mapping[int, int]
    members: Mapping[int, list[Int[Tensor, " size"]]] = field(default_factory=dict)
    shared: Mapping[int, Int[Tensor, " shared"]] = field(default_factory=dict)

    @property
    def kept(self) -> Kept:
        """The same in the words of ``model.carve``."""
        if self.units == "layers":
            return Kept(layers=tuple(n for n, units in self.chosen.items() if len(units)))
        if self.units == "groups":
            return Kept(neurons={n: self._neurons(n) for n in self.chosen})
        none: Mapping[int, Tensor] = {}
        neurons, heads, experts = (
            self.chosen if self.units == units else none
            for units in ("neurons", "heads", "experts")
        )
        return Kept(neurons=neurons, kv_heads=heads, experts=experts)

    def _neurons(self, layer: int) -> Int[Tensor, " neurons"]:
        own = [self.members[layer][group] for group in self.chosen[layer].tolist()]
        return torch.cat([*own, self.shared[layer]]).sort().values

    def parameters(self, model: CausalModel) -> int:
        """How many parameters the model keeps, padding not counted."""
        gone = 0
        for word in (NEURONS, KV_HEADS):
            for layer, units in self.kept.of(word).items():
                others = _others(model, layer, word, units).tolist()
                slices = SLICES[word](model, layer, others) if others else ()
                gone += sum(part.of(model.get_parameter(part.parameter)).numel() for part in slices)
        return model.num_parameters() - gone

    def summary(self) -> list[dict[str, int]]:
        """For each layer how many units are kept, and of how many."""
        return [
            {"layer": n, "kept": len(units), "of": self.of[n]} for n, units in self.chosen.items()
        ]


def choose(
    asked: Asked,
    need: Need,
    method: str,
    *,
    density: float,
    widths: Widths = "uniform",
    plain: bool = True,
) -> Choice:
    """Keep the most needed units, as many as the density allows.

    Neurons and heads are kept to within one of each layer (of experts: to within one neuron of
    each). Groups and experts are whole: as many as fit, at least one of a layer; shared neurons
    are always kept and count.

    Args:
        asked: what the need was measured of.
        need: of ``measure_need``.
        method: its name.
        density: share of the units that is kept, above 0, at most 1.
        widths: ``uniform`` or ``global``.
        plain: whether a plain checkpoint must be able to hold it; if so, only as many heads stay
            as the family's configuration can say (``carve.possible_kv_heads``).

    Raises:
        ConfigurationError: if the density is no share, or so few of these units cannot be kept.
    """
    if not 0 < density <= 1:
        raise ConfigurationError(
            f"a density of {density} was asked for; it is the share that is kept, above 0 and at "
            "most 1."
        )
    if asked.units == "experts" and widths == "global":
        raise ConfigurationError(
            "experts were to be kept by a global budget, but an expert of zeros would still be "
            "picked by the router; keep the same number in every layer (uniform)."
        )
    shared = {}
    if asked.units == "groups":
        assert asked.partition is not None, "asked of groups"
        shared = {n: asked.partition.shared(n).long() for n in need}
    of = units_of(asked)
    whole = asked.units in ("groups", "experts")
    model, partition = asked.loaded.model, asked.partition
    return Choice(
        units=asked.units,
        method=method,
        widths=widths,
        density=density,
        chosen=_chosen(asked, need, density, widths, shared, plain=plain),
        of=of,
        members={n: members_of(model, asked.units, n, partition) for n in of} if whole else {},
        shared=shared,
    )


def random_like(choice: Choice, generator: torch.Generator) -> Choice:
    """A choice of random units, as many in every layer; of layers, as many of the model."""
    if choice.units == "layers":
        stay = sum(len(units) for units in choice.chosen.values())
        drawn = torch.randperm(len(choice.of), generator=generator)[:stay].tolist()
        layers = {n: torch.arange(n in drawn) for n in choice.chosen}
        return _like(choice, layers)
    chosen = {}
    for layer, units in choice.chosen.items():
        order = torch.randperm(choice.of[layer], generator=generator)
        chosen[layer] = order[: len(units)].sort().values
    return _like(choice, chosen)


def brick_name(model: str, aim: str, choice: Choice) -> str:
    """A name for the brick of a choice, ``reference-coding-neurons-50`` for example."""
    words = f"{model.rpartition('/')[2]}-{aim}-{choice.units}-{choice.density * 100:g}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:80].strip("-")


@torch.no_grad()
def mask_brick(
    loaded: LoadedModel,
    choice: Choice,
    *,
    name: str,
    function: Function,
    lineage: Lineage,
    metrics: tuple[Metric, ...] = (),
) -> Brick:
    """The choice as a brick of the full model: a mask of its units, or the blocks to skip.

    Raises:
        ConfigurationError: if experts were chosen: a mask cannot keep a router from picking one.
    """
    if choice.units == "experts":
        raise ConfigurationError(
            "experts were to be kept by a brick, but the router would still pick the others; carve "
            "a checkpoint without them, or choose neurons."
        )
    tensors = _skips(loaded, choice) if choice.units == "layers" else _masks(loaded, choice)
    spec = BrickSpec(
        name=name,
        form="skip" if choice.units == "layers" else "mask",
        base=loaded.base.fingerprint,
        sites=tuple(tensors),
        origin="emergent",
        granularity=UNITS[choice.units].granularity,
        function=function,
        lineage=lineage,
        metrics=metrics,
    )
    slot = "share" if choice.units == "layers" else "keep"
    return Brick(spec, {f"{site}/{slot}": tensor for site, tensor in tensors.items()})


def silenced(model: CausalModel, kept: Kept) -> AbstractContextManager[None]:
    """The full model with everything silent that is not kept; experts must all be kept."""
    assert not kept.experts, "a router would still pick the experts"
    layers = range(layers_of(model))
    gone = [n for n in layers if kept.layers is not None and n not in kept.layers]
    return tapped(
        model,
        neurons=zeroing({n: _others(model, n, NEURONS, own) for n, own in kept.neurons.items()}),
        heads=silencing_heads({
            n: _query_heads(model, n, _others(model, n, KV_HEADS, own))
            for n, own in kept.kv_heads.items()
        }),
        blocks=skipping(gone),
    )  # fmt: skip


def _chosen(
    asked: Asked,
    need: Need,
    density: float,
    widths: Widths,
    shared: Mapping[int, Tensor],
    *,
    plain: bool,
) -> dict[int, Int[Tensor, " kept"]]:
    parts = _parts(asked, need)
    if asked.units == "layers":
        stay = _best(parts, _budget(parts, density), floor=0.0)[0]
        return {n: torch.arange(int(n in stay)) for n in need}
    if widths == "global":
        taken = sum(len(units) for units in shared.values())
        return _best(parts, _budget(parts, density, taken), floor=FLOOR)
    chosen: dict[int, Tensor] = {}
    for part in parts:
        budget = _budget([part], density, len(shared.get(part.layer, ())))
        if asked.units == "heads" and plain:
            budget = _possible_heads(asked.loaded, part, density)
        own = _best([part], budget, floor=0.0)[part.layer]
        chosen[part.layer] = torch.cat([chosen.get(part.layer, own[:0]), own])
    return chosen


def _parts(asked: Asked, need: Need) -> list[_Part]:
    model = asked.loaded.model
    if asked.units == "layers":
        rate = torch.cat([need[n] for n in sorted(need)])
        return [_Part(0, 0, rate, torch.ones_like(rate, dtype=torch.int64))]
    parts = []
    for layer, own in need.items():
        if asked.units == "groups":
            members = members_of(model, asked.units, layer, asked.partition)
            sizes = torch.tensor([len(m) for m in members])
            parts.append(_Part(layer, 0, own / sizes, sizes))
            continue
        count = unit_counts(model, layer).get(EXPERTS, 1) if asked.units == "neurons" else 1
        for number, piece in enumerate(own.chunk(count)):
            ones = torch.ones_like(piece, dtype=torch.int64)
            parts.append(_Part(layer, number * len(piece), piece, ones))
    return parts


def _budget(parts: list[_Part], density: float, taken: int = 0) -> int:
    """How many neurons, or other units, there is room for, without those taken already."""
    total = sum(int(part.sizes.sum()) for part in parts) + taken
    return round(density * total) - taken


def _possible_heads(loaded: LoadedModel, part: _Part, density: float) -> int:
    total = len(part.rate)
    every = possible_kv_heads(loaded)
    possible = [number for number in every if number <= density * total + 1e-6]
    if not possible:
        raise ConfigurationError(
            f"at a density of {density} at most {int(density * total)} of {total} key and value "
            f"heads stay, but a smaller {loaded.model.config.model_type} model can have "
            f"{', '.join(map(str, every))}; raise the density, or choose neurons or layers."
        )
    return max(possible)


def _best(parts: list[_Part], budget: int, *, floor: float) -> dict[int, Int[Tensor, " kept"]]:
    """The units of the highest rates that fit, and of every part at least some."""
    kept = [torch.zeros(len(part.rate), dtype=torch.bool) for part in parts]
    for part, own in zip(parts, kept, strict=True):
        order = part.rate.argsort(descending=True, stable=True)
        reached = part.sizes[order].cumsum(0) - part.sizes[order]  # before each
        own[order[reached < max(1.0, floor * int(part.sizes.sum()))]] = True
    rate = torch.cat([part.rate for part in parts])
    sizes, every = torch.cat([part.sizes for part in parts]), torch.cat(kept)
    rest = rate.masked_fill(every, -torch.inf).argsort(descending=True, stable=True)
    rest = rest[: int((~every).sum())]
    fits = sizes[rest].cumsum(0) <= budget - int(sizes[every].sum())
    every[rest[fits]] = True
    chosen: dict[int, Tensor] = {}
    for part, own in zip(parts, every.split([len(part.rate) for part in parts]), strict=True):
        units = own.nonzero().squeeze(1) + part.first
        chosen[part.layer] = torch.cat([chosen.get(part.layer, units[:0]), units])
    return chosen


def _like(choice: Choice, chosen: Mapping[int, Tensor]) -> Choice:
    return replace(choice, method="random", chosen=chosen)


def _skips(loaded: LoadedModel, choice: Choice) -> dict[str, Tensor]:
    gone = [n for n, units in choice.chosen.items() if not len(units)]
    return {_path(loaded.model, "block", n): torch.ones(1) for n in gone}


def _masks(loaded: LoadedModel, choice: Choice) -> dict[str, Tensor]:
    """1 at what is kept, for every site where something is not."""
    model, kept = loaded.model, choice.kept
    masks = {}
    for layer, units in kept.neurons.items():
        moe = ffn_row_of(model, layer).form == "moe_gated"
        site = (
            _path(model, "mlp.experts", layer) if moe else part_of(model, "mlp.down", layer).module
        )
        masks[site] = torch.zeros(unit_counts(model, layer)[NEURONS]).index_fill(0, units, 1.0)
    for layer, units in kept.kv_heads.items():
        heads = heads_of(model.config, layer)
        queries = torch.zeros(heads.heads).index_fill(0, _query_heads(model, layer, units), 1.0)
        site = part_of(model, "attn.o", layer).module
        masks[site] = queries.repeat_interleave(heads.head_dim)
    return {site: keep for site, keep in masks.items() if not bool(keep.all())}


def _path(model: CausalModel, role: str, layer: int) -> str:
    path = role_path(model, role, layer)
    assert path is not None, f"every layer of that form has {role}"
    return path


def _others(model: CausalModel, layer: int, word: str, kept: Tensor) -> Tensor:
    everything = torch.arange(unit_counts(model, layer)[word])
    others: Tensor = everything[~torch.isin(everything, kept)]
    return others


def _query_heads(model: CausalModel, layer: int, kv_heads: Tensor) -> Tensor:
    group = heads_of(model.config, layer).group
    return (kv_heads.unsqueeze(1) * group + torch.arange(group)).flatten()
