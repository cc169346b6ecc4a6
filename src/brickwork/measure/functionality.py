"""How well single units tell that a functionality is needed, and what chance alone would give.

From the activity of one layer's units to its summary. Source: Xiao et al. 2024
(arXiv:2409.02877), section 4.4. The paper compares with random activations; here the labels are
permuted, which keeps how the units depend on each other and how often each functionality occurs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from brickwork.errors import ConfigurationError, DataError
from brickwork.measure.average_precision import (
    average_precision,
    bootstrap_precision,
    null_mean,
)
from brickwork.measure.intervals import resample_counts
from brickwork.measure.results import FunctionScores, Interval, LayerScores, Null

PER_MILLE = 0.005  # share of the best units that stand for a layer
SMALL = 20  # units of a layer below which a top share of it says nothing
_ROUNDING = 1e-12  # equal scores may differ by as much, and do not beat each other


@dataclass(frozen=True, eq=False)
class Draws:
    """What chance decides, drawn once and the same for all layers.

    Attributes:
        permuted: the labels in random orders.
        halves: the samples of one half of each functionality.
        counts: how often each sample is drawn in each bootstrap resample.
    """

    permuted: Int[Tensor, "permutations samples"]
    halves: Bool[Tensor, " samples"]
    counts: Float[Tensor, "resamples samples"]


@dataclass(frozen=True, eq=False)
class LayerOutcome:
    """What one layer's activity says.

    Attributes:
        scores: every unit's average precision for every functionality, in float64.
        summary: the same in few numbers, beside chance.
        null_overlaps: shared part of the functional units of each two functionalities, under
            permuted labels; pairs as ``torch.triu_indices(functions, functions, 1)`` counts them.
    """

    scores: Float[Tensor, "units functions"]
    summary: LayerScores
    null_overlaps: Float[Tensor, "permutations pairs"]


def draw(
    labels: Int[Tensor, " samples"],
    *,
    permutations: int,
    resamples: int,
    generator: torch.Generator,
) -> Draws:
    """Draw what ``score_layer`` needs of chance; equal seeds give equal draws.

    Args:
        labels: the number of each sample's functionality.
        permutations: of the labels; with so many, no p-value is below 1 / (permutations + 1).
        resamples: behind each bootstrap interval.
        generator: on the CPU.

    Raises:
        ConfigurationError: if nothing is to be drawn.
        DataError: if a functionality has a single sample, which cannot be halved.
    """
    if min(permutations, resamples) < 1:
        raise ConfigurationError(
            f"chance is told from {permutations} permutations and {resamples} resamples; ask for "
            "at least one of each, better for a hundred."
        )
    labels = labels.cpu()
    samples = len(labels)
    orders = [torch.randperm(samples, generator=generator) for _ in range(permutations)]
    halves = torch.zeros(samples, dtype=torch.bool)
    for function in labels.unique().tolist():
        own = (labels == function).nonzero().flatten()
        if len(own) < 2:
            raise DataError(
                f"functionality {function} has one of {samples} samples, and scores are compared "
                "between two halves; add samples, or leave the functionality out."
            )
        halves[own[torch.randperm(len(own), generator=generator)[: len(own) // 2]]] = True
    return Draws(
        permuted=labels[torch.stack(orders)],
        halves=halves,
        counts=resample_counts(samples, resamples, generator),
    )


def score_layer(
    activity: Float[Tensor, "samples units"],
    labels: Int[Tensor, " samples"],
    functions: Sequence[str],
    *,
    layer: int,
    share: float,
    draws: Draws,
    resident: Sequence[int] = (),
) -> LayerOutcome:
    """Score the units of one layer for every functionality, and put chance beside the scores.

    The sort of a unit's samples serves the labels and all their permutations.

    Args:
        activity: how active each unit is on each sample; of neurons, heads or the layer itself.
        labels: the number of each sample's functionality, in the order of ``functions``.
        functions: at least two.
        layer: its number, for the summary.
        share: of the units that count as functional.
        draws: of ``draw``, from the same labels.
        resident: of ``resident_units``, for the summary.

    Raises:
        DataError: if a functionality has no samples, the draws are of other labels, or an activity
            is no finite number.
    """
    if draws.permuted.shape[1] != len(labels):
        raise DataError(
            f"layer {layer} has {len(labels)} labels, but the draws are of "
            f"{draws.permuted.shape[1]}; draw from the labels that are scored."
        )
    every = torch.cat([labels.cpu()[None], draws.permuted])
    columns = one_hot(every.T, len(functions))  # samples draws functions
    found = average_precision(activity, columns.flatten(1)).cpu().unflatten(1, columns.shape[1:])
    scores, null = found[:, 0], found[:, 1:]
    summary = LayerScores(
        layer=layer,
        units=activity.shape[1],
        functions=_functions(activity, columns[:, 0], functions, scores, null, share, draws),
        resident=list(resident),
    )
    return LayerOutcome(scores, summary, _null_overlaps(null, share))


def one_hot(labels: Int[Tensor, "..."], functions: int) -> Bool[Tensor, "... functions"]:
    """For each functionality, which samples have its number."""
    return labels.cpu().unsqueeze(-1) == torch.arange(functions)


def _nulls(
    null: Float[Tensor, "units permutations functions"], positives: Sequence[int]
) -> list[Null]:
    """What chance gives for each functionality; those of equal size have the same chances."""
    of_size = {
        count: _null(null[:, :, [p == count for p in positives]]) for count in set(positives)
    }
    return [of_size[count] for count in positives]


def _null(null: Float[Tensor, "units permutations alike"]) -> Null:
    best = null.amax(0)
    return Null(
        mean=null.mean().item(),
        single_95=float(np.quantile(null.numpy(), 0.95)),
        per_mille=_per_mille(null).mean().item(),
        best=best.mean().item(),
        best_95=float(np.quantile(best.numpy(), 0.95)),
    )


def _per_mille(scores: Float[Tensor, "units ..."]) -> Float[Tensor, "..."]:
    """The score that the best units reach, 5 in a thousand and at least one."""
    return scores.kthvalue(len(scores) - _share_of(len(scores), PER_MILLE) + 1, dim=0).values


def _null_overlaps(
    null: Float[Tensor, "units permutations functions"], share: float
) -> Float[Tensor, "permutations pairs"]:
    pairs = torch.triu_indices(null.shape[2], null.shape[2], 1)
    chosen = [functional_units(scores, share) for scores in null.unbind(1)]
    return torch.stack([shared_parts(units, units)[pairs[0], pairs[1]] for units in chosen])


def _functions(
    activity: Tensor,
    labels: Bool[Tensor, "samples functions"],
    functions: Sequence[str],
    scores: Float[Tensor, "units functions"],
    null: Float[Tensor, "units permutations functions"],
    share: float,
    draws: Draws,
) -> dict[str, FunctionScores]:
    number = range(len(functions))
    best = functional_units(scores, 0.0).flatten()
    resampled = bootstrap_precision(activity[:, best], labels, draws.counts).cpu()
    low, high = resampled.quantile(resampled.new_tensor([0.025, 0.975]), dim=0)
    value, chance = scores[best, number], null.amax(0)  # functions; permutations functions
    beaten = (chance >= value - _ROUNDING).sum(0)
    nulls = _nulls(null, labels.sum(0).tolist())
    limits = scores.new_tensor([own.best_95 for own in nulls])
    above = (scores > limits + _ROUNDING).sum(0)
    halves = _Halves.of(activity, labels, draws.halves)
    per_mille, mean = _per_mille(scores), scores.mean(0)
    return {
        name: FunctionScores(
            null=nulls[f],
            best=Interval(value=value[f].item(), low=low[f].item(), high=high[f].item()),
            best_unit=int(best[f]),
            best_p=(1 + int(beaten[f])) / (1 + len(chance)),
            per_mille=per_mille[f].item(),
            mean=mean[f].item(),
            above_null=int(above[f]),
            other_half=halves.other_half(f),
            split_half=halves.correlation(f),
            split_overlap=halves.overlap(f, share),
        )
        for f, name in enumerate(functions)
    }


@dataclass(frozen=True, eq=False)
class _Halves:
    """Scores of the same units on two halves of the samples."""

    first: Float[Tensor, "units functions"]
    second: Float[Tensor, "units functions"]

    @classmethod
    def of(cls, activity: Tensor, labels: Tensor, halves: Bool[Tensor, " samples"]) -> "_Halves":
        parts = [average_precision(activity[h], labels[h]).cpu() for h in (halves, ~halves)]
        return cls(*parts)

    def other_half(self, function: int) -> float:
        """What the best unit of one half scores on the other, on average over both ways."""
        first, second = self.first[:, function], self.second[:, function]
        ways = ((first, second), (second, first))
        return sum(there[functional_units(here[:, None], 0.0)].item() for here, there in ways) / 2

    def correlation(self, function: int) -> float | None:
        return rank_correlation(self.first[:, function], self.second[:, function])

    def overlap(self, function: int, share: float) -> float | None:
        if len(self.first) < SMALL:
            return None
        chosen = [functional_units(h[:, [function]], share) for h in (self.first, self.second)]
        return shared_parts(*chosen).item()


def rank_correlation(
    first: Float[Tensor, " units"], second: Float[Tensor, " units"]
) -> float | None:
    """Spearman's correlation; None where there is no order, as for one unit or equal scores."""
    ranks = torch.from_numpy(rankdata(torch.stack([first, second]).cpu().numpy(), axis=1))
    ranks -= ranks.mean(1, keepdim=True)
    norms = ranks.norm(dim=1)
    return None if norms.min() == 0 else ((ranks[0] @ ranks[1]) / norms.prod()).item()


def functional_units(
    scores: Float[Tensor, "units functions"], share: float
) -> Int[Tensor, "functions chosen"]:
    """The units with the highest scores for each functionality, in ascending order.

    Args:
        scores: of equal ones, the unit with the lower number is better.
        share: of the units, rounded down; at least one unit is chosen.
    """
    count = _share_of(len(scores), share)
    best = scores.sort(dim=0, descending=True, stable=True).indices[:count]
    return best.sort(dim=0).values.T


def _share_of(units: int, share: float) -> int:
    return max(1, int(units * share + 1e-9))  # 0.29 * 100 is 29


def shared_parts(
    first: Int[Tensor, "functions chosen"], second: Int[Tensor, "others chosen"]
) -> Float[Tensor, "functions others"]:
    """What part of the units of each functionality is among those of each other.

    Args:
        first: of ``functional_units``.
        second: as many units for each.
    """
    units = 1 + int(torch.cat([first, second]).max())
    members = [
        torch.zeros(len(chosen), units, dtype=torch.float64).scatter_(1, chosen.cpu(), 1.0)
        for chosen in (first, second)
    ]
    shared: Tensor = members[0] @ members[1].T
    return shared / first.shape[1]


def resident_units(
    magnitude: Float[Tensor, "samples units"], labels: Int[Tensor, " samples"], share: float = 0.01
) -> Int[Tensor, " resident"]:
    """The units whose output is among the layer's largest whatever the functionality.

    Args:
        magnitude: mean output magnitude of each unit on each sample.
        labels: the number of each sample's functionality.
        share: of the units that count as largest for one functionality; at least one unit.

    Returns:
        Units in ascending order. A layer of fewer than ``SMALL`` units has none.
    """
    if magnitude.shape[1] < SMALL:
        return torch.empty(0, dtype=torch.int64)
    labels = labels.to(magnitude.device)
    means = [magnitude[labels == f].double().mean(0) for f in labels.unique()]
    largest = functional_units(torch.stack(means, dim=1), share)
    counts = torch.bincount(largest.flatten(), minlength=magnitude.shape[1])
    return (counts == len(means)).nonzero().flatten().cpu()


def selectivity(
    scores: Float[Tensor, "units functions"],
    resident: Int[Tensor, " resident"],
    *,
    positives: Sequence[int],
    samples: int,
) -> Float[Tensor, "units functions"]:
    """How far each score lies above the unit's best score for any other functionality.

    Scores are first set so that 0 is chance and 1 perfect, for functionalities of different size.

    Args:
        scores: average precision.
        resident: units that are never selective.
        positives: samples of each functionality.
        samples: of all functionalities.

    Returns:
        Differences in [-2, 2], higher for more selective units; -inf for resident units.

    Source:
        Ours; the paper's functional neurons may be functional for several at once.
    """
    chance = scores.new_tensor([null_mean(samples, count) for count in positives])
    corrected = (scores - chance) / (1 - chance)
    top = corrected.topk(2, dim=1)
    is_best = torch.arange(scores.shape[1], device=scores.device) == top.indices[:, :1]
    result = corrected - torch.where(is_best, top.values[:, 1:], top.values[:, :1])
    result[resident.to(scores.device)] = -torch.inf
    return result


def agreement(
    scores_a: Float[Tensor, "units functions"],
    scores_b: Float[Tensor, "units functions"],
    share: float,
    functions: Sequence[str],
) -> tuple[dict[str, float], dict[str, float]]:
    """How far two ways to score the same units agree, for each functionality.

    Args:
        scores_a: of one way.
        scores_b: of the other.
        share: of the units that count as functional.
        functions: names of the columns.

    Returns:
        Spearman correlations, 0 where a way tells no unit from another, and the shared parts of
        the functional units.
    """
    columns = zip(scores_a.T, scores_b.T, strict=True)
    correlations = [rank_correlation(a, b) or 0.0 for a, b in columns]
    shared = shared_parts(functional_units(scores_a, share), functional_units(scores_b, share))
    return (
        dict(zip(functions, correlations, strict=True)),
        dict(zip(functions, shared.diagonal().tolist(), strict=True)),
    )
