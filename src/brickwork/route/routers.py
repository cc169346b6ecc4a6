"""Dynamic routers: which neurons of an FFN are computed for each token, or for each prompt.

A router reads the FFN's input, or what is computed of the FFN anyway, and gives every neuron or
group a score; the best are kept until the density is met. Neurons that no group owns are shared:
always kept. Every kind is a row of ``ROUTERS`` and is told by the slots that a brick of the form
``router`` holds. The controls at the end are no bricks: they say what a router's choices are worth.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.brick.effects import Route
from brickwork.errors import UnknownNameError
from brickwork.measure.centroids import membership
from brickwork.model.ffn import FFN

Level = Literal["token", "prompt"]
# What a kind of router must know of the FFN before it can choose: nothing but the input, the value
# of the activation function (in a vanilla FFN that is the activation), or the activations.
Reads = Literal["input", "gate", "activation"]
# Computes what the kind reads; called only if that is not the input.
Reading = Callable[[], Float[Tensor, "tokens neurons"]]


@dataclass(frozen=True)
class Sizes:
    """What the cost of a router depends on.

    Attributes:
        maps: linear maps of the FFN: 3 if it is gated, else 2.
        groups: groups of the partition; 0 for kinds without one.
        width: inner width of an MLP router; 0 for the others.
    """

    hidden: int
    neurons: int
    maps: int
    groups: int = 0
    width: int = 0

    @property
    def dense(self) -> int:
        """Multiply-adds of the whole FFN for one token."""
        return self.maps * self.hidden * self.neurons


@dataclass(frozen=True)
class RouterKind:
    """One row of ROUTERS.

    Attributes:
        slots: the slots of a brick of this kind.
        reads: what must be known of the FFN before the choice; see ``reading``.
        tokens: the choice for every token.
        prompt: one choice for all tokens.
        predictor: multiply-adds for one token that the choice takes, the FFN's own work excluded.
    """

    meaning: str
    source: str
    slots: frozenset[str]
    reads: Reads
    tokens: Callable[[Route, Tensor, Reading], Tensor]
    prompt: Callable[[Route, Tensor, Reading], Tensor]
    predictor: Callable[[Sizes], int]

    @property
    def needs_activation(self) -> bool:
        """Whether part of the FFN must be computed for all neurons before the choice."""
        return self.reads != "input"


def kind_of(slots: Mapping[str, Tensor]) -> str:
    """The kind of router that holds these slots.

    Raises:
        UnknownNameError: if no kind does.
    """
    held = frozenset(slots)
    for name, row in ROUTERS.items():
        if row.slots == held:
            return name
    known = (" + ".join(sorted(row.slots)) for row in ROUTERS.values())
    raise UnknownNameError("kind of router, by its slots,", " + ".join(sorted(held)), known)


def kept(
    route: Route, x: Float[Tensor, "tokens hidden"], h: Reading
) -> Bool[Tensor, "tokens neurons"]:
    """The neurons that a router keeps, for each token by itself.

    Args:
        route: the router of one FFN.
        x: what the FFN reads.
        h: gives what the kind reads, as ``reading`` does; never called where that is the input.

    Raises:
        UnknownNameError: if no kind of router has the route's slots.
    """
    return ROUTERS[kind_of(route.tensors)].tokens(route, x, h)


def prompt_kept(
    route: Route, x: Float[Tensor, "tokens hidden"], h: Reading
) -> Bool[Tensor, " neurons"]:
    """The neurons that a router keeps for a whole prompt: one choice by all of its tokens.

    Args:
        route: the router of one FFN.
        x: what the FFN reads for the tokens of one prompt, without padding.
        h: as in ``kept``.

    Raises:
        UnknownNameError: if no kind of router has the route's slots.
    """
    return ROUTERS[kind_of(route.tensors)].prompt(route, x, h)


def kept_after_prompts(
    route: Route,
    x: Float[Tensor, "positions hidden"],
    h: Float[Tensor, "positions neurons"],
    prompts: Bool[Tensor, "rows tokens"],
) -> Bool[Tensor, "positions neurons"]:
    """For every row what its prompt chose; the tokens of the prompt itself keep all neurons.

    Args:
        route: the router of one FFN.
        x: what the FFN reads, the tokens of all rows one after the other.
        h: what the kind reads; anything if that is the input.
        prompts: True for the tokens of a row's prompt, at least one.
    """
    owned = prompts.flatten()
    keep = []
    for row, places in enumerate(prompts):
        start = row * len(places)
        own = places.nonzero().squeeze(1) + start
        keep.append(prompt_kept(route, x[own], partial(h.index_select, 0, own)))
    by_position = torch.stack(keep).repeat_interleave(prompts.shape[1], dim=0)
    return by_position | owned.unsqueeze(1)


def reading(reads: Reads, ffn: FFN, x: Float[Tensor, "tokens hidden"]) -> Reading:
    """What a kind of router reads of an FFN for these inputs, computed when it is called."""
    if reads == "gate" and ffn.gate is not None:
        gate, bias = ffn.gate, ffn.gate_bias
        return lambda: ffn.activation(torch.nn.functional.linear(x, gate, bias))
    return lambda: ffn.activations(x)


def relative_cost(kind: str, sizes: Sizes, density: float, level: Level = "token") -> float:
    """Multiply-adds for one token, relative to the whole FFN; the router's own are counted.

    At the level ``prompt`` it is the cost of a token of the answer, for which nothing is chosen.
    A kind that reads the gate has one map that is whole, ``(1 + 2 * density) / 3`` of a gated FFN;
    one that reads the activations saves on the output projection alone.

    Raises:
        UnknownNameError: if there is no such kind.
    """
    if kind not in ROUTERS:
        raise UnknownNameError("kind of router", kind, ROUTERS)
    row = ROUTERS[kind]
    if level == "prompt":
        return density
    return share_computed(row.reads, sizes.maps, density) + row.predictor(sizes) / sizes.dense


def share_computed(reads: Reads, maps: int, density: float) -> float:
    """The share of an FFN's multiply-adds that is done when so many of its neurons are kept."""
    whole = {"input": 0, "gate": 1, "activation": maps - 1}[reads]
    return (whole + (maps - whole) * density) / maps


def budget(neurons: int, density: float) -> int:
    """How many neurons a density keeps: at least one."""
    return max(1, round(density * neurons))


def groups_kept(
    scores: Float[Tensor, "tokens groups"], owner: Tensor, density: float
) -> Bool[Tensor, "tokens groups"]:
    """The best groups of each token, as many as the density needs besides the shared neurons.

    A group is added until at least ``budget`` neurons are kept, so the density is met exactly
    where whole groups can meet it, and exceeded by less than a group elsewhere. One group is kept
    at least. Of equal groups the first is taken.

    Args:
        scores: of every group; larger is better.
        owner: " neurons", the group of every neuron as whole numbers of any dtype, -1 if shared.
        density: share of the neurons that is kept, over 0 and at most 1.
    """
    owner = owner.to(torch.int64)
    sizes = torch.bincount(owner[owner >= 0], minlength=scores.shape[-1])
    wanted = budget(len(owner), density) - int((owner < 0).sum())
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranked = sizes[order]  # tokens groups
    chosen = ranked.cumsum(-1) - ranked < max(wanted, 1)
    return torch.zeros_like(chosen).scatter(-1, order, chosen)


def neurons_of(
    groups: Bool[Tensor, "*tokens groups"], owner: Tensor
) -> Bool[Tensor, "*tokens neurons"]:
    """The neurons of the groups that are kept, and the shared ones."""
    owner = owner.to(torch.int64)
    return groups[..., owner.clamp(min=0)] | (owner < 0)


def top_neurons(
    scores: Float[Tensor, "*tokens neurons"], density: float
) -> Bool[Tensor, "*tokens neurons"]:
    """The best neurons of each token, exactly ``budget`` of them; of equal ones the first."""
    many = budget(scores.shape[-1], density)
    least = scores.topk(many, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, level = scores > least, scores == least
    room = many - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


def threshold_at(quantiles: Float[Tensor, " levels"], density: float) -> Float[Tensor, ""]:
    """The value that this share of what was measured lies above.

    Args:
        quantiles: at evenly spaced levels from 0 to 1, ascending.
        density: from 0 to 1; between two levels it is interpolated.
    """
    place = (1 - density) * (len(quantiles) - 1)
    low = min(int(place), len(quantiles) - 1)
    high = min(low + 1, len(quantiles) - 1)
    return torch.lerp(quantiles[low], quantiles[high], place - low)


def group_scores(
    tensors: Mapping[str, Tensor], x: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, "tokens groups"]:
    """What a ``linear`` or an ``mlp`` router thinks of every group, in its own number format."""
    if "weight" in tensors:
        return x.to(tensors["weight"].dtype) @ tensors["weight"].T
    x = torch.nn.functional.normalize(x.to(tensors["first"].dtype), dim=-1)
    return torch.tanh(x @ tensors["first"].T) @ tensors["second"].T


def _tokens_above(route: Route, _x: Tensor, h: Reading) -> Tensor:
    size = h().abs()
    if route.density >= 1:
        return torch.ones_like(size, dtype=torch.bool)
    return size > threshold_at(route.tensors["quantiles"], route.density)


def _prompt_above(route: Route, _x: Tensor, h: Reading) -> Tensor:
    """Over a prompt the neurons compete: those of the largest mean size are kept."""
    return top_neurons(h().abs().float().mean(0), route.density)


def _tokens_by_magnitude(route: Route, _x: Tensor, h: Reading) -> Tensor:
    return top_neurons(h().abs() * route.tensors["magnitude"], route.density)


def _prompt_by_magnitude(route: Route, _x: Tensor, h: Reading) -> Tensor:
    """Every token has the same say, whatever its length: GRIFFIN's statistic."""
    size = h().float() * route.tensors["magnitude"]
    shares = torch.nn.functional.normalize(size, dim=-1)
    return top_neurons(shares.norm(dim=0), route.density)


def _tokens_by_group(route: Route, x: Tensor, _h: Reading) -> Tensor:
    owner = route.tensors["owner"]
    return neurons_of(groups_kept(group_scores(route.tensors, x), owner, route.density), owner)


def _prompt_by_group(route: Route, x: Tensor, _h: Reading) -> Tensor:
    owner = route.tensors["owner"]
    scores = group_scores(route.tensors, x).float().mean(0, keepdim=True)
    return neurons_of(groups_kept(scores, owner, route.density)[0], owner)


ROUTERS: Mapping[str, RouterKind] = {
    "threshold": RouterKind(
        "neurons whose activation function's value is, in size, above the layer's quantile",
        "CATS: Lee et al. 2024, arXiv:2404.08763; TEAL: Liu et al. 2024, arXiv:2408.14690",
        frozenset({"quantiles"}), "gate", _tokens_above, _prompt_above, lambda s: 0,
    ),
    "magnitude": RouterKind(
        "neurons of the largest |activation| times magnitude; over a prompt, GRIFFIN",
        "Xiao et al. 2024, arXiv:2409.02877, 4.3; GRIFFIN: Dong et al. 2024, arXiv:2404.01365",
        frozenset({"magnitude"}), "activation", _tokens_by_magnitude, _prompt_by_magnitude,
        lambda s: s.neurons,
    ),
    "linear": RouterKind(
        "groups of the best linear score: a centroid of their neurons, or a trained gate",
        "Shazeer et al. 2017, arXiv:1701.06538; MoEfication: Zhang et al. 2021, arXiv:2110.01786",
        frozenset({"owner", "weight"}), "input", _tokens_by_group, _prompt_by_group,
        lambda s: s.groups * s.hidden,
    ),
    "mlp": RouterKind(
        "groups of the best score of a small MLP that predicts which fire",
        "MoEfication: Zhang et al. 2021, arXiv:2110.01786, 3.3",
        frozenset({"owner", "first", "second"}), "input", _tokens_by_group, _prompt_by_group,
        lambda s: s.width * (s.hidden + s.groups),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Indicator:
    """One row of INDICATORS: how much a neuron matters to a token, by its activation."""

    meaning: str
    value: Callable[[Tensor, Tensor], Tensor]


INDICATORS: Mapping[str, Indicator] = {
    "absolute": Indicator("|activation|", lambda h, _norms: h.abs()),
    "square": Indicator("activation squared", lambda h, _norms: h.square()),
    "magnitude": Indicator("|activation| times output norm", lambda h, norms: h.abs() * norms),
    "energy": Indicator("that, squared", lambda h, norms: (h * norms).square()),
}


def truth_scores(
    h: Float[Tensor, "tokens neurons"],
    norms: Float[Tensor, " neurons"],
    owner: Int[Tensor, " neurons"],
    indicator: str = "energy",
) -> Float[Tensor, "tokens groups"]:
    """What every group really does for a token: the upper bound of what a router can know.

    Args:
        h: activations.
        norms: lengths of the output columns.
        owner: the group of every neuron, -1 for a shared one.
        indicator: a row of ``INDICATORS``, summed over the group's neurons.

    Raises:
        UnknownNameError: if there is no such indicator.

    Source:
        Zhang et al. 2021 (arXiv:2110.01786), ground truth. There activations are ReLU's and summed
        as they are; here their sizes are, as those of a gated FFN have signs.
    """
    if indicator not in INDICATORS:
        raise UnknownNameError("indicator", indicator, INDICATORS)
    value = INDICATORS[indicator].value(h.float(), norms.float())
    return value @ membership(owner)


def random_scores(
    tokens: int, groups: int, generator: torch.Generator
) -> Float[Tensor, "tokens groups"]:
    """Scores that know nothing, others for each token."""
    return torch.rand(tokens, groups, generator=generator)


def hash_scores(
    ids: Int[Tensor, " tokens"], groups: int, salt: int
) -> Float[Tensor, "tokens groups"]:
    """Scores that know only the token's id: equal ids always get the same groups.

    Args:
        ids: token ids.
        groups: how many.
        salt: another one for each layer and seed; below 2**62.

    Source:
        Roller et al. 2021, Hash Layers (arXiv:2106.04426), random hash. Here the numbers are mixed
        as in SplitMix64 and no table is kept.
    """
    mixed = ids.to(torch.int64).unsqueeze(1) * groups + torch.arange(groups, device=ids.device)
    mixed = (mixed + salt) * -7046029254386353131  # 2**64 over the golden ratio, as an int64
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (mixed & 0xFFFFFF).float() / (1 << 24)
