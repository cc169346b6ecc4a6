"""What a functionality needs of a model: a number for every unit, from example instances.

The instances are those that units are chosen on, never those that losses are then measured on. The
model runs over them once, with gradients where a method wants them, and sums are all that is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.brick.partition import Partition
from brickwork.errors import ConfigurationError, DataError, UnknownNameError
from brickwork.measure.ablation import silencing_heads, skipping, zeroing
from brickwork.measure.perplexity import instance_losses
from brickwork.measure.unit_sums import UnitSums, sum_units
from brickwork.model.carve import EXPERTS, KV_HEADS, NEURONS
from brickwork.model.heads import heads_of
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel, layers_of
from brickwork.model.taps import tapped
from brickwork.model.train import Encoded
from brickwork.model.units import unit_counts

Granularity = Literal["neuron", "group", "head", "layer"]
# Layer -> one number for each of its units, higher for what is needed more.
Need = Mapping[int, Float[Tensor, " units"]]


@dataclass(frozen=True)
class UnitRow:
    """One kind of unit that can be kept or left out.

    Attributes:
        meaning: one line for people.
        word: the unit's word in addresses; empty for whole layers.
        sums: what its need is summed over: the unit itself, or neurons.
        granularity: of a brick that keeps some.
    """

    meaning: str
    word: str
    sums: str
    granularity: Granularity


UNITS: Mapping[str, UnitRow] = {
    "neurons": UnitRow("single neurons of the FFNs", NEURONS, "neurons", "neuron"),
    "groups": UnitRow("groups of a partition's neurons", NEURONS, "neurons", "group"),
    "experts": UnitRow("experts of MoE layers", EXPERTS, "neurons", "group"),
    "heads": UnitRow("key and value heads, with their query heads", KV_HEADS, "heads", "head"),
    "layers": UnitRow("whole decoder blocks", "", "layers", "layer"),
}


@dataclass(frozen=True, eq=False)
class Asked:
    """What a method is asked: about which units of which model, and what it may look at.

    Attributes:
        units: a name of ``UNITS``.
        sequences: prompts with responses, to choose on.
        partition: says which neurons a group has.
        scores: for each layer a number for every neuron, or for every query head; of an analysis.
        generator: on the CPU.
        advance: told the number of instances that have just been done.
    """

    loaded: LoadedModel
    units: str
    sequences: Sequence[Encoded]
    generator: torch.Generator
    partition: Partition | None = None
    scores: Mapping[int, Tensor] = field(default_factory=dict)
    advance: Callable[[float], None] = lambda _steps: None

    @property
    def row(self) -> UnitRow:
        """The row of the units."""
        return UNITS[self.units]

    def sums(self, *, gradients: bool) -> UnitSums:
        """The sums over the instances."""
        return sum_units(
            self.loaded, self.sequences, self.row.sums, gradients=gradients, advance=self.advance
        )

    def of_neurons(self, need: Need) -> Need:
        """The need of groups or experts: the sum over their neurons; of other units as it is."""
        if self.units not in ("groups", "experts"):
            return need
        found = {}
        for layer in range(layers_of(self.loaded.model)):
            members = members_of(self.loaded.model, self.units, layer, self.partition)
            if members:
                found[layer] = torch.stack([need[layer][m].sum() for m in members])
        return found


@dataclass(frozen=True)
class NeedRow:
    """One way to say how much a unit is needed.

    Attributes:
        units: names of ``UNITS`` that it can rate.
        meaning: one line for people.
        source: the paper.
        measure: the need of every unit.
        looks: whether it looks at the instances.
    """

    units: frozenset[str]
    meaning: str
    source: str
    measure: Callable[[Asked], Need]
    looks: bool = True


def measure_need(asked: Asked, method: str) -> Need:
    """How much every unit is needed, for each layer that has some.

    Raises:
        UnknownNameError: if there is no such method or kind of unit.
        ConfigurationError: if the method cannot rate these units, or something that it wants was
            not given.
        DataError: if there is no instance.
    """
    if asked.units not in UNITS:
        raise UnknownNameError("kind of unit", asked.units, UNITS)
    if method not in NEEDS:
        raise UnknownNameError("method to tell what is needed", method, NEEDS)
    row = NEEDS[method]
    if asked.units not in row.units:
        fit = ", ".join(name for name, other in NEEDS.items() if asked.units in other.units)
        raise ConfigurationError(
            f"{method!r} cannot rate {asked.units}, only {', '.join(sorted(row.units))}; "
            f"{asked.units} can be rated by {fit}."
        )
    _require_parts(asked)
    if row.looks and not asked.sequences:
        raise DataError(f"there is no instance to choose {asked.units} on; give at least one.")
    return row.measure(asked)


def best_method(units: str) -> str:
    """The method that did best for these units on the reference model (benchmarks/carving.py)."""
    return "ablation" if units in ("heads", "layers") else "fisher"


def members_of(
    model: CausalModel, units: str, layer: int, partition: Partition | None
) -> list[Tensor]:
    """The neurons of each group or expert of a layer; none where the layer has no such units."""
    if units == "groups":
        assert partition is not None, "asked of groups"
        return partition.members(layer) if layer in partition.owners else []
    counts = unit_counts(model, layer)
    experts = counts.get(EXPERTS, 0)
    return list(torch.arange(counts[NEURONS]).chunk(experts)) if experts else []


def units_of(asked: Asked) -> dict[int, int]:
    """How many units each layer has to choose from."""
    model = asked.loaded.model
    layers = range(layers_of(model))
    if asked.units in ("groups", "experts"):
        counts = {n: len(members_of(model, asked.units, n, asked.partition)) for n in layers}
        return {n: count for n, count in counts.items() if count}
    return {n: unit_counts(model, n)[asked.row.word] if asked.row.word else 1 for n in layers}


def _require_parts(asked: Asked) -> None:
    model = asked.loaded.model
    if asked.units == "groups":
        if asked.partition is None:
            raise ConfigurationError(
                "groups were asked for without a partition that says which neurons they have; "
                "make one with `brickwork partition`, and name its folder."
            )
        _require_fit(asked.partition, asked.loaded)
    if asked.units == "experts" and not units_of(asked):
        raise ConfigurationError(
            f"experts were asked for, but this {model.config.model_type} model has none; choose "
            f"among {', '.join(name for name in UNITS if name != 'experts')}."
        )


def _require_fit(partition: Partition, loaded: LoadedModel) -> None:
    counts = {n: unit_counts(loaded.model, n)[NEURONS] for n in range(layers_of(loaded.model))}
    for layer, owner in partition.owners.items():
        if len(owner) != counts.get(layer, 0):
            raise ConfigurationError(
                f"the partition divides {len(owner)} neurons of layers.{layer}, but the model has "
                f"{counts.get(layer, 'no such layer')}; make a partition of this model."
            )


def _magnitude(asked: Asked) -> Need:
    return asked.of_neurons(asked.sums(gradients=False).magnitude)


def _attribution(asked: Asked) -> Need:
    return asked.of_neurons(asked.sums(gradients=True).owed)


def _fisher(asked: Asked) -> Need:
    return asked.of_neurons(asked.sums(gradients=True).squares)


def _functionality(asked: Asked) -> Need:
    if not asked.scores:
        raise ConfigurationError(
            "functionality scores were asked for, but there is no analysis to take them from; "
            "make one with `brickwork analyze`, and name its folder."
        )
    if asked.units != "heads":
        return asked.of_neurons(asked.scores)
    model = asked.loaded.model
    groups = {n: heads_of(model.config, n).group for n in asked.scores}
    return {n: own.view(-1, groups[n]).sum(1) for n, own in asked.scores.items()}


def _random(asked: Asked) -> Need:
    counts = units_of(asked)
    return {n: torch.rand(count, generator=asked.generator) for n, count in counts.items()}


def _ablation(asked: Asked) -> Need:
    """One pass for each unit: the loss without it, above the loss of the whole model."""
    model = asked.loaded.model

    def loss() -> float:
        found = instance_losses(model, asked.sequences)
        return float(found.response.sum() / found.response_tokens.sum())

    whole = loss()
    need = {}
    for layer, count in units_of(asked).items():
        rises = []
        for unit in range(count):
            with tapped(model, **_without(asked, layer, unit)):
                rises.append(loss() - whole)
            asked.advance(1)
        need[layer] = torch.tensor(rises)
    return need


def _without(asked: Asked, layer: int, unit: int) -> dict[str, Mapping[int, Any]]:
    """The taps that take one unit away."""
    model = asked.loaded.model
    if asked.units == "layers":
        return {"blocks": skipping([layer])}
    if asked.units == "heads":
        group = heads_of(model.config, layer).group
        return {"heads": silencing_heads({layer: torch.arange(unit * group, (unit + 1) * group)})}
    members = members_of(model, asked.units, layer, asked.partition)
    return {"neurons": zeroing({layer: members[unit]})}


_ANY = frozenset(UNITS)
NEEDS: Mapping[str, NeedRow] = {
    "fisher": NeedRow(
        _ANY,
        "mean square of gradient times output: the loss to second order, in the Fisher sense",
        "Kwon et al. 2022, arXiv:2204.09656, there for each instance, here for each token",
        _fisher,
    ),
    "attribution": NeedRow(
        _ANY,
        "mean |gradient times output|: how much the loss would change, to first order",
        "Molchanov et al. 2019, arXiv:1906.10771; Michel et al. 2019, arXiv:1905.10650",
        _attribution,
    ),
    "magnitude": NeedRow(
        _ANY,
        "root mean square of what is added, as a share of the residual stream",
        "Sun et al. 2023, arXiv:2306.11695; Dong et al. 2024, arXiv:2404.01365; layers: Gromov et "
        "al. 2024, arXiv:2403.17887",
        _magnitude,
    ),
    "ablation": NeedRow(
        frozenset({"groups", "experts", "heads", "layers"}),
        "the loss without the unit, one pass for each",
        "Men et al. 2024, arXiv:2403.03853",
        _ablation,
    ),
    "functionality": NeedRow(
        frozenset({"neurons", "groups", "experts", "heads"}),
        "functionality scores of an analysis",
        "Xiao et al. 2024, arXiv:2409.02877, 4.4",
        _functionality,
        looks=False,
    ),
    "random": NeedRow(_ANY, "any units, as a control", "", _random, looks=False),
}
