"""PARTITIONS: every way to divide the neurons of FFNs into groups, and the partition of a model.

The groups of a layer have equal size. In an MoE layer no group has neurons of two experts. Source:
Xiao et al. 2024 (arXiv:2409.02877), 2.1; each row names its own.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import JsonValue
from torch import Tensor
from torch.nn.functional import normalize

from brickwork.brick.forms import load_target
from brickwork.brick.partition import SHARED, Partition, PartitionSpec
from brickwork.errors import ConfigurationError, DataError, UnknownNameError
from brickwork.measure.clustering import balanced_clusters
from brickwork.measure.coactivation import ffn_counts
from brickwork.measure.evidence import Evidence, Measured, measure_neurons
from brickwork.measure.instances import content_hash
from brickwork.measure.profiles import SCORES, group_means, split_by_function
from brickwork.measure.residents import most_resident, residence, shared_count
from brickwork.measure.study import Watch, digest, unwatched
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.heads import heads_of
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel

Needs = Literal["weights", "activations", "analysis"]
_Split = Callable[["Place", Measured, torch.Generator], Tensor]


@dataclass(frozen=True)
class Method:
    """One row of PARTITIONS.

    Attributes:
        name: in commands, specs and the docs.
        meaning: one line for people.
        target: ``"module:function"`` that splits the neurons of a ``Place``.
        needs: what it looks at.
        source: the paper.
        native: whether each expert of the model is one group, and layers without experts are left
            out.
    """

    name: str
    meaning: str
    target: str
    needs: Needs
    source: str
    native: bool = False


_ROWS = (
    Method(
        "clustering", "neurons whose input weights point the same way (balanced k-means)",
        "brickwork.measure.partition:by_weights", "weights",
        "MoEfication: Zhang et al. 2021, arXiv:2110.01786",
    ),
    Method(
        "coactivation", "neurons that are active at the same tokens (balanced cut of their graph)",
        "brickwork.measure.partition:by_coactivation", "activations",
        "MoEfication: Zhang et al. 2021, arXiv:2110.01786",
    ),
    Method(
        "functionality", "neurons that serve the same functionality, by their scores",
        "brickwork.measure.partition:by_function", "analysis",
        "Xiao et al. 2024, arXiv:2409.02877, 4.4",
    ),
    Method(
        "random", "any neurons, as a control",
        "brickwork.measure.partition:at_random", "weights", "",
    ),
    Method(
        "experts", "the experts that an MoE was trained with",
        "brickwork.measure.partition:as_one", "weights", "", native=True,
    ),
)  # fmt: skip
PARTITIONS: Mapping[str, Method] = {row.name: row for row in _ROWS}


@dataclass(frozen=True)
class Division:
    """How the neurons of a layer are divided, in numbers.

    Attributes:
        experts: FFNs of the layer; 1 where it has no experts.
        neurons: of each of them.
        groups: of the layer.
        shared: neurons of each FFN that are in no group.
    """

    experts: int
    neurons: int
    groups: int
    shared: int

    @property
    def size(self) -> int:
        """Neurons of a group."""
        return self.experts * (self.neurons - self.shared) // self.groups


@dataclass(frozen=True, eq=False)
class Place:
    """Neurons of one FFN, or one expert, that are to be split into groups of equal size.

    Attributes:
        ffn: whose they are.
        first: the number of the FFN's first neuron in the layer.
        neurons: their numbers in the layer, ascending.
    """

    layer: int
    ffn: FFN
    first: int
    neurons: Int[Tensor, " some"]
    groups: int


def find_method(name: str) -> Method:
    """The row of that name, or an error that lists the nearest names."""
    if name not in PARTITIONS:
        raise UnknownNameError("partition method", name, PARTITIONS)
    return PARTITIONS[name]


def make_partition(
    loaded: LoadedModel,
    method: str,
    *,
    groups: int | None = None,
    shared: float = 0.0,
    seed: int = 0,
    evidence: Evidence | None = None,
    watch: Watch = unwatched,
) -> Partition:
    """Divide the neurons of every FFN into groups of equal size.

    The profile holds the mean functionality score of each group if there is an analysis, else, if
    there are instances, what ``measure.profiles`` makes of their labels.

    Args:
        loaded: the model; it is left as it is.
        method: a name of PARTITIONS.
        groups: of each layer; in an MoE layer a multiple of its experts. ``experts`` needs none.
        shared: share of each FFN's neurons, in [0, 1), that is in no group but always kept: the
            most resident ones. It is rounded up until the rest makes equal groups.
        seed: equal seeds give equal groups.
        evidence: data or an analysis, where the method or ``shared`` need them.
        watch: shows progress.

    Raises:
        UnknownNameError: if there is no such method.
        ConfigurationError: if the neurons cannot be divided so; the message names counts that work.
        DataError: if what is needed is missing, or not of this model.
    """
    row, evidence = find_method(method), evidence or Evidence()
    plan = divisions(loaded.model, method, groups, shared)
    require_evidence(row, shared, evidence)
    measured = measure_neurons(
        loaded, evidence,
        coactivation=row.needs == "activations", rates=shared > 0, seed=seed, watch=watch,
    )  # fmt: skip
    owners: dict[int, Int[Tensor, " neurons"]] = {}
    with watch(f"dividing by {method}", len(plan)) as advance:
        for layer, division in plan.items():
            owners[layer] = _owners(loaded.model, layer, division, measured, (row, seed))
            advance(1)
    values = _values(measured, owners)
    spec = PartitionSpec(
        base=loaded.base.fingerprint,
        method=method,
        arguments=_arguments(groups, shared, evidence),
        data=evidence.data,
        seed=seed,
        functions=_functions(measured),
    )
    return Partition(spec, owners, {n: group_means(values[n], owners[n]) for n in values})


def _owners(
    model: CausalModel,
    layer: int,
    division: Division,
    measured: Measured,
    how: tuple[Method, int],
) -> Int[Tensor, " neurons"]:
    """The group of every neuron of a layer, its FFNs one after the other."""
    row, seed = how
    split: _Split = load_target(row.target)
    ffn, width = ffn_of(model, layer), division.neurons
    owners = torch.full((division.experts * width,), SHARED, dtype=torch.int32)
    each = division.groups // division.experts
    for expert, own in enumerate([ffn] if isinstance(ffn, FFN) else ffn.experts):
        first = expert * width
        left = torch.ones(width, dtype=torch.bool)
        if division.shared:
            left[_resident(measured, layer, slice(first, first + width), division.shared)] = False
        neurons = first + left.nonzero().squeeze(1)
        purpose = digest(str(seed), row.name, str(layer), str(expert))
        generator = torch.Generator().manual_seed(int(purpose[:15], 16))
        found = split(Place(layer, own, first, neurons, each), measured, generator)
        owners[neurons] = (expert * each + found.cpu()).to(torch.int32)
    return owners


def _resident(measured: Measured, layer: int, neurons: slice, count: int) -> Int[Tensor, " shared"]:
    """So many of an FFN's neurons that are resident, as numbers in the FFN."""
    rates = None if measured.rates is None else measured.rates.rates(layer)[neurons]
    scores = None if measured.scores is None else measured.scores.selectivity[layer][neurons]
    return most_resident(residence(rates, scores), count)


def _values(
    measured: Measured, owners: Mapping[int, Tensor]
) -> dict[int, Float[Tensor, "neurons functions"]]:
    """What each neuron does for each functionality, if anything says so."""
    if measured.scores is not None:
        return {layer: measured.scores.activation[layer] for layer in owners}
    if measured.means is not None:
        return {layer: measured.means.relative(layer) for layer in owners}
    return {}


def _functions(measured: Measured) -> tuple[str, ...]:
    known = measured.scores or measured.means
    return () if known is None else known.functions


def _arguments(groups: int | None, shared: float, evidence: Evidence) -> dict[str, JsonValue]:
    """What the partition depends on besides model, method and seed."""
    found: dict[str, JsonValue] = {"groups": groups, "shared": shared}
    if evidence.instances:
        found |= {"instances": content_hash(evidence.instances), "longest": evidence.longest}
    if evidence.analysis is not None:
        scores = (evidence.analysis / SCORES).read_bytes()
        found["analysis"] = hashlib.sha256(scores).hexdigest()
    return found


def divisions(
    model: CausalModel, method: str, groups: int | None, shared: float
) -> dict[int, Division]:
    """How ``make_partition`` divides every layer; a model without weights will do.

    Raises:
        UnknownNameError: if there is no such method.
        ConfigurationError: if the neurons cannot be divided so.
    """
    row = find_method(method)
    counts = ffn_counts(model)
    if row.native:
        return _native(counts, groups, shared)
    if groups is None or groups < 1 or not 0 <= shared < 1:
        raise ConfigurationError(
            f"{method} was asked for {'no number of' if groups is None else groups} groups with a "
            f"share of {shared} shared; give at least one group, and a share of at least 0 and "
            "below 1."
        )
    return {
        layer: _division(layer, experts, neurons, groups, shared)
        for layer, (experts, neurons) in counts.items()
    }


def _native(
    counts: Mapping[int, tuple[int, int]], groups: int | None, shared: float
) -> dict[int, Division]:
    found = {n: Division(e, neurons, e, 0) for n, (e, neurons) in counts.items() if e > 1}
    experts = sorted({division.experts for division in found.values()})
    if not found or shared or groups not in (None, *experts):
        has = " or ".join(map(str, experts)) or "no"
        raise ConfigurationError(
            f"the native experts were asked for as {groups or 'their own'} groups with a share of "
            f"{shared} shared, and the model has {has} experts in a layer; "
            + ("leave groups and share out." if found else "choose another method.")
        )
    return found


def _division(layer: int, experts: int, neurons: int, groups: int, shared: float) -> Division:
    if groups % experts:
        near = max(groups // experts, 1) * experts
        raise ConfigurationError(
            f"{groups} groups were asked for, and layer {layer} has {experts} experts, which no "
            f"group mixes; take a multiple, {near} or {near + experts} for example."
        )
    each = groups // experts
    count = shared_count(neurons, each, shared)
    if count is None:
        fit = [n for n in range(1, neurons + 1) if neurons % n == 0]
        close = sorted(sorted(fit, key=lambda n: abs(n - each))[:5])
        raise ConfigurationError(
            f"{neurons} neurons of {'an expert in ' if experts > 1 else ''}layer {layer} were to "
            f"be divided into {each} equal groups, a share of {shared} left out; counts that work "
            f"without shared neurons are {', '.join(str(n * experts) for n in close)}, and a "
            "small share (--shared 0.05) makes others work."
        )
    return Division(experts, neurons, groups, count)


def require_evidence(row: Method, shared: float, evidence: Evidence) -> None:
    """Refuse to go on without what is needed.

    Raises:
        DataError: if the method, or the choice of shared neurons, has nothing to look at.
    """
    has = {
        "weights": True,
        "activations": bool(evidence.instances),
        "analysis": evidence.analysis is not None,
    }
    if not has[row.needs]:
        what = "labelled instances (--data)" if row.needs == "activations" else (
            "the folder of an analysis of the model (--analysis; see `brickwork analyze`)"
        )  # fmt: skip
        raise DataError(
            f"the method {row.name!r} needs {row.needs}, and none are given; add {what}."
        )
    if shared and not (has["activations"] or has["analysis"]):
        raise DataError(
            f"a share of {shared} was to be shared, and neither data nor an analysis says which "
            "neurons are resident; add one (--data or --analysis), or leave the share out."
        )


def by_weights(
    place: Place, _measured: Measured, generator: torch.Generator
) -> Int[Tensor, " some"]:
    """Neurons whose input weights point the same way.

    Of a gated FFN the rows of the gate count alone: the gate decides when a neuron is active, and
    a row of ``up`` can change its sign without changing how active the neuron is. On the reference
    model a quarter of the groups held 0.72 of the output's energy by ``gate``, 0.70 by both, 0.68
    by ``up`` as by chance.
    """
    weights = place.ffn.up if place.ffn.gate is None else place.ffn.gate
    rows = weights.detach()[(place.neurons - place.first).to(weights.device)]
    return balanced_clusters(normalize(rows.float(), dim=1), place.groups, generator)


def by_coactivation(
    place: Place, measured: Measured, generator: torch.Generator
) -> Int[Tensor, " some"]:
    """Neurons that are active at the same tokens."""
    assert measured.coactivation is not None
    rows = measured.coactivation.profiles(place.layer)
    return balanced_clusters(rows[place.neurons.to(rows.device)], place.groups, generator)


def by_function(
    place: Place, measured: Measured, _generator: torch.Generator
) -> Int[Tensor, " some"]:
    """Neurons that serve the same functionality."""
    assert measured.scores is not None
    return split_by_function(measured.scores.activation[place.layer][place.neurons], place.groups)


def at_random(
    place: Place, _measured: Measured, generator: torch.Generator
) -> Int[Tensor, " some"]:
    """Any neurons."""
    return torch.randperm(len(place.neurons), generator=generator) % place.groups


def as_one(place: Place, _measured: Measured, _generator: torch.Generator) -> Int[Tensor, " some"]:
    """All neurons of the place together."""
    return torch.zeros(len(place.neurons), dtype=torch.int64)


def head_groups(model: CausalModel, layer: int) -> list[Int[Tensor, " heads"]]:
    """The query heads that read each key and value head: heads that come and go together."""
    heads = heads_of(model.config, layer)
    return list(torch.arange(heads.heads).split(heads.group))
