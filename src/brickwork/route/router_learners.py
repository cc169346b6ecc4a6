"""What becomes a router: learners that are shown the tokens of one layer, and those that need none.

A learner keeps nothing of single tokens: counts, or weights that it moves a step at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, normalize

from brickwork.errors import UnknownNameError
from brickwork.measure.centroids import weighted_centroids
from brickwork.model.ffn import FFN
from brickwork.route.routers import (
    Level,
    group_scores,
    groups_kept,
    reading,
    truth_scores,
)

LEVELS = 1001  # quantiles of a threshold router
_STEPS = 1 << 17  # bins by the first bits of a float32: 1/512 of a value wide
_DROPPED_BITS = 14
_STRETCH = 4.0  # of centroids of length 1, so that tanh has something to bend


@dataclass(frozen=True)
class RouterRecipe:
    """How routers are trained, and what they are for.

    Attributes:
        density: share of the neurons that is kept.
        level: whether every token has its own choice, or the whole prompt one.
        epochs: passes over the training sequences.
        batch: tokens of a step.
        rate: how far a step of Adam can move a score, at first; it falls to 0.
        objective: a row of ``OBJECTIVES``.
        balance: weight of the loss that spreads tokens over groups. The groups are there already
            and learn nothing, so that balance only costs; it is for whoever needs equal loads.
        width: inner width of an MLP router; None is the number of groups, as in MoEfication.
        held_out: share of the sequences that the captured energy is measured on.
        data: what the sequences are, for the brick's lineage.
    """

    density: float = 0.2
    level: Level = "token"
    epochs: int = 1
    batch: int = 512
    rate: float = 2.0
    objective: str = "share"
    balance: float = 0.0
    width: int | None = None
    held_out: float = 0.1
    data: str = ""


@dataclass(frozen=True)
class Objective:
    """One row of OBJECTIVES: the loss of scores, given the energies of the groups."""

    meaning: str
    source: str
    loss: Callable[[Tensor, Tensor, "Place"], Tensor]


@dataclass(eq=False)
class Place:
    """One layer that a router is made for.

    Attributes:
        norms: lengths of the output columns.
        owner: the group of every neuron; None for routers without groups.
        scale: a typical size of the group's output, the same for all tokens; taken from the first
            batch, so that targets do not depend on the batch that they are in.
    """

    ffn: FFN
    norms: Float[Tensor, " neurons"]
    owner: Int[Tensor, " neurons"] | None
    recipe: RouterRecipe
    scale: float | None = None

    @property
    def groups(self) -> Int[Tensor, " neurons"]:
        """The owner of every neuron, of a router that has groups."""
        assert self.owner is not None, "the table says which routers need a partition"
        return self.owner


class Learner(ABC):
    """Becomes the router of one layer."""

    waits: bool = True
    """Whether it must be shown anything."""

    @abstractmethod
    def see(
        self,
        x: Float[Tensor, "tokens hidden"],
        h: Float[Tensor, "tokens neurons"],
        done: float,
    ) -> None:
        """Learn from some tokens; ``done`` is the share of the training before them."""

    @abstractmethod
    def slots(self) -> dict[str, Tensor]:
        """The tensors of the router."""


class Given(Learner):
    """A router that is known from the weights."""

    waits = False

    def __init__(self, slots: dict[str, Tensor]) -> None:
        self._slots = slots

    def see(self, x: Tensor, h: Tensor, done: float) -> None:
        """Nothing: the weights have said all."""

    def slots(self) -> dict[str, Tensor]:
        """The tensors of the router."""
        return self._slots


class Quantiles(Learner):
    """Counts the sizes of the activation function's values, whatever their range is.

    The bins are the first bits of a float32, which order positive numbers, so they need no range
    beforehand; their width is 1/512 of the value.
    """

    def __init__(self, place: Place) -> None:
        self._ffn = place.ffn
        self._counts = torch.zeros(_STEPS, dtype=torch.int64, device=place.norms.device)

    def see(self, x: Tensor, h: Tensor, done: float) -> None:
        """Count."""
        size = reading("gate", self._ffn, x)().abs().float().contiguous()
        bins = size.view(torch.int32).flatten() >> _DROPPED_BITS
        self._counts += torch.bincount(bins, minlength=_STEPS)

    def slots(self) -> dict[str, Tensor]:
        """The quantiles, as middles of their bins; the smallest is 0 if that was seen."""
        total = self._counts.cumsum(0)
        ranks = torch.linspace(0, 1, LEVELS, dtype=torch.float64, device=total.device)
        wanted = (ranks * (total[-1] - 1)).round().to(torch.int64) + 1
        bins = torch.searchsorted(total, wanted).to(torch.int32)
        low, high = ((bins + step) << _DROPPED_BITS for step in (0, 1))
        middle = (low.view(torch.float32) + high.view(torch.float32)) / 2
        return {"quantiles": torch.where(bins == 0, 0.0, middle)}


class Scorer(Learner):
    """Learns the tensors of ``group_scores`` by Adam, one step for each mini-batch."""

    def __init__(self, place: Place, weights: dict[str, Tensor]) -> None:
        self._place = place
        self._weights = {k: w.detach().float().clone().requires_grad_() for k, w in weights.items()}
        # What one step can move a score by is the rate, whatever the widths are.
        groups = [
            {"params": [w], "share": w.shape[1] ** (-0.5 if k in ("weight", "first") else -1.0)}
            for k, w in self._weights.items()
        ]
        self._optimizer = torch.optim.Adam(groups, lr=place.recipe.rate)
        self._length: float | None = None

    def see(self, x: Tensor, h: Tensor, done: float) -> None:
        """One step for each mini-batch of the tokens."""
        place, recipe = self._place, self._place.recipe
        energy = truth_scores(h, place.norms, place.groups)
        if self._length is None:
            self._length = max(x.float().norm(dim=1).mean().item(), 1e-30)
            place.scale = max(energy.amax(1).sqrt().mean().item(), 1e-30)
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.rate * group["share"] * (1 - done)
        objective = find_objective(recipe.objective)
        scaled = x.float() / self._length
        batches = zip(scaled.split(recipe.batch), energy.split(recipe.batch), strict=True)
        for inputs, target in batches:
            with torch.enable_grad():
                scores = group_scores(self._weights, inputs)
                loss = objective.loss(scores, target, place)
                if recipe.balance:
                    chosen = groups_kept(scores.detach(), place.groups, recipe.density)
                    loss = loss + recipe.balance * balance_loss(scores, chosen)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()

    def slots(self) -> dict[str, Tensor]:
        """The tensors of the router, for inputs of their own length."""
        weights = {k: w.detach() for k, w in self._weights.items()}
        if "weight" in weights and self._length is not None:
            weights["weight"] = weights["weight"] / self._length
        return {"owner": self._place.groups.float(), **weights}


class MeanShares(Learner):
    """Finds the groups that take the largest share of the output over all tokens: a control."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._total: Tensor | float = 0.0

    def see(self, x: Tensor, h: Tensor, done: float) -> None:
        """Add the tokens' shares."""
        energy = truth_scores(h, self._place.norms, self._place.groups)
        tiny = torch.finfo(energy.dtype).tiny
        self._total = self._total + normalize(energy, p=1, dim=1, eps=tiny).double().sum(0)

    def slots(self) -> dict[str, Tensor]:
        """A score for each group that is the same for all tokens."""
        assert isinstance(self._total, Tensor), "it has been shown something"
        return {"scores": self._total.float()}


def balance_loss(
    scores: Float[Tensor, "tokens groups"], chosen: Bool[Tensor, "tokens groups"]
) -> Float[Tensor, ""]:
    """1 if all groups are chosen equally often and expected to be; more the less they are.

    Source:
        Fedus et al. 2021, Switch Transformers (arXiv:2101.03961), equation 4, after Shazeer et al.
        2017 (arXiv:1701.06538). With several groups per token, shares are of all choices.
    """
    often = chosen.float().mean(0)
    expected = scores.softmax(-1).mean(0)
    loss: Tensor = scores.shape[-1] * (often / often.sum() * expected).sum()
    return loss


def _share_loss(scores: Tensor, energy: Tensor, _place: Place) -> Tensor:
    length = energy.sqrt()
    share = length / length.sum(1, keepdim=True).clamp(min=torch.finfo(length.dtype).tiny)
    return -(share * log_softmax(scores, -1)).sum(1).mean()


def _fire_loss(scores: Tensor, energy: Tensor, place: Place) -> Tensor:
    assert place.scale is not None, "taken from the first batch"
    return binary_cross_entropy_with_logits(scores, (energy.sqrt() / place.scale).clamp(max=1))


def _best_loss(scores: Tensor, energy: Tensor, place: Place) -> Tensor:
    best = groups_kept(energy, place.groups, place.recipe.density)
    return binary_cross_entropy_with_logits(scores, best.to(scores.dtype))


OBJECTIVES: Mapping[str, Objective] = {
    "share": Objective(
        "cross-entropy with each group's share of the output's length", "this package", _share_loss
    ),
    "fire": Objective(
        "binary cross-entropy with each group's length, by a constant of the layer",
        "MoEfication: Zhang et al. 2021, arXiv:2110.01786 (there by the batch's largest)",
        _fire_loss,
    ),
    "best": Objective(
        "binary cross-entropy with the best groups at the density",
        "LLaMA-MoE: Zhu et al. 2024, arXiv:2406.16554",
        _best_loss,
    ),
}


def find_objective(name: str) -> Objective:
    """The row of that name, or an error that lists the nearest names."""
    if name not in OBJECTIVES:
        raise UnknownNameError("objective of a router", name, OBJECTIVES)
    return OBJECTIVES[name]


def gate_scorer(place: "Place") -> Scorer:
    """A linear gate that begins with no opinion."""
    start = torch.zeros(int(place.groups.max()) + 1, place.ffn.up.shape[1])
    return Scorer(place, {"weight": start.to(place.norms.device)})


def mlp_scorer(place: "Place") -> Scorer:
    """An MLP that begins as the similarity to the centroids.

    Source:
        Zhang et al. 2021 (arXiv:2110.01786), MLP selection. Other widths repeat the centroids.
    """
    found = weighted_centroids(place.ffn, place.groups, place.norms)
    groups, width = len(found), place.recipe.width or len(found)
    own = torch.arange(width, device=found.device) % groups
    second = (own == torch.arange(groups, device=found.device).unsqueeze(1)).float()
    return Scorer(place, {"first": _STRETCH * found[own], "second": second})
