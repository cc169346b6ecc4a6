"""Training of routers: from weights alone, or from what passes by while the model runs.

The model runs over the training sequences, and every layer's learner is shown the input and the
activations of each batch; nothing is kept of single tokens. All layers, and all routers that are
asked for, learn in the same passes.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.check import fingerprint_misfits, require_fit
from brickwork.brick.effects import Route
from brickwork.brick.partition import Partition
from brickwork.brick.spec import BrickSpec, Lineage, Metric
from brickwork.errors import ConfigurationError, DataError, UnknownNameError, listed
from brickwork.measure.centroids import centroids, weighted_centroids
from brickwork.measure.perplexity import TOKENS_PER_BATCH
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel, part_of
from brickwork.model.taps import output_norms
from brickwork.model.train import Encoded, batches_by_length
from brickwork.route.router_learners import (
    Given,
    Learner,
    MeanShares,
    Place,
    Quantiles,
    RouterRecipe,
    find_objective,
    gate_scorer,
    mlp_scorer,
)
from brickwork.route.router_passes import (
    captured_energy,
    dense_ffn,
    dense_layers,
    shown,
    watch,
)
from brickwork.route.routers import ROUTERS

Advance = Callable[[float], None]
Slots = Mapping[int, dict[str, Tensor]]


@dataclass(frozen=True)
class Training:
    """One row of TRAININGS: how routers of some kind come to be.

    Attributes:
        router: the kind of ``ROUTERS`` that it makes; empty for a control.
        grouped: whether it needs a partition.
        learner: what is shown the tokens of a layer.
    """

    meaning: str
    source: str
    router: str
    grouped: bool
    learner: Callable[[Place], Learner]


TRAININGS: Mapping[str, Training] = {
    "threshold": Training(
        "quantiles of the activation function's values, counted", ROUTERS["threshold"].source,
        "threshold", False, Quantiles,
    ),
    "magnitude": Training(
        "norms of the output columns, from the weights", "Xiao et al. 2024, arXiv:2409.02877, 4.3",
        "magnitude", False, lambda p: Given({"magnitude": p.norms}),
    ),
    "activation": Training(
        "|activation| as it is; by prompt, GRIFFIN", "GRIFFIN: Dong et al. 2024, arXiv:2404.01365",
        "magnitude", False, lambda p: Given({"magnitude": torch.ones_like(p.norms)}),
    ),
    "similarity": Training(
        "centroids of the groups' rows, from the weights",
        "MoEfication: Zhang et al. 2021, arXiv:2110.01786",
        "linear", True, lambda p: _linear(p, centroids(p.ffn, p.groups)),
    ),
    "centroid": Training(
        "centroids weighted by how loud each neuron can be, from the weights", "this package",
        "linear", True, lambda p: _linear(p, weighted_centroids(p.ffn, p.groups, p.norms)),
    ),
    "gate": Training(
        "a linear gate that learns each group's share of the output",
        "Shazeer et al. 2017, arXiv:1701.06538; Zhu et al. 2024, arXiv:2406.16554",
        "linear", True, gate_scorer,
    ),
    "mlp": Training(
        "a small MLP that learns each group's share of the output",
        "MoEfication: Zhang et al. 2021, arXiv:2110.01786",
        "mlp", True, mlp_scorer,
    ),
    "fixed": Training(
        "control: the groups that matter most on average, always", "", "", True, MeanShares
    ),
}  # fmt: skip


def _linear(place: Place, weight: Float[Tensor, "groups hidden"]) -> Given:
    return Given({"owner": place.groups.float(), "weight": weight})


def find_training(name: str) -> Training:
    """The row of that name, or an error that lists the nearest names."""
    if name not in TRAININGS:
        raise UnknownNameError("training of a router", name, TRAININGS)
    return TRAININGS[name]


def train_router(
    loaded: LoadedModel,
    kind: str,
    *,
    sequences: Sequence[Encoded],
    partition: Partition | None,
    recipe: RouterRecipe,
    generator: torch.Generator,
    advance: Advance = lambda _share: None,
) -> Brick:
    """A router for every dense FFN of a model, as a brick.

    Layers whose FFN is a mixture of experts have a router already; they are left as they are. The
    brick's metric is the share of the FFNs' energy that it captures on sequences that it was not
    trained on. What a router recalls of the active neurons would say less: it counts neurons that
    hardly matter like those that do.

    Args:
        loaded: the model; it is left as it is.
        kind: a row of ``TRAININGS`` that is no control.
        sequences: to learn from; some are held out. At the level ``prompt`` with a response each.
        partition: the groups; for kinds with groups.
        recipe: how.
        generator: on the CPU; equal states, equal routers.
        advance: told shares of the work that have just been done; 1 in all.

    Raises:
        UnknownNameError: if there is no such kind or objective.
        ConfigurationError: if the kind makes no brick, if the partition is missing, not needed or
            of another model, or if no layer has a dense FFN.
        DataError: if there are too few sequences.
    """
    row = find_training(kind)
    if not row.router:
        bricks = ", ".join(name for name, other in TRAININGS.items() if other.router)
        raise ConfigurationError(
            f"{kind!r} is a control to compare routers with and makes no brick; choose one of "
            f"{bricks}."
        )
    if partition is not None and not row.grouped:
        raise ConfigurationError(
            f"a partition was given, but {kind!r} chooses single neurons; leave the partition out."
        )
    learning, held_out = split_sequences(sequences, recipe.held_out, generator)
    slots = train_slots(
        loaded, [(kind, partition)], sequences=learning, recipe=recipe, generator=generator,
        advance=advance,
    )[0]  # fmt: skip
    routes = routes_of(loaded.model, slots, recipe)
    captured = captured_energy(loaded.model, routes, held_out)
    return _brick(
        loaded, kind, partition=partition, recipe=recipe, routes=routes, captured=captured
    )


def train_slots(
    loaded: LoadedModel,
    wanted: Sequence[tuple[str, Partition | None]],
    *,
    sequences: Sequence[Encoded],
    recipe: RouterRecipe,
    generator: torch.Generator,
    advance: Advance = lambda _share: None,
) -> list[Slots]:
    """The slots of several routers for every dense layer, all learned in the same passes.

    Args:
        loaded: the model; it is left as it is.
        wanted: rows of ``TRAININGS`` by name, each with its partition if it needs one.
        sequences: to learn from.
        recipe: how.
        generator: on the CPU.
        advance: as in ``train_router``.

    Raises:
        UnknownNameError: if there is no such training or objective.
        ConfigurationError: as ``train_router``.
    """
    find_objective(recipe.objective)
    model, layers = loaded.model, dense_layers(loaded.model)
    for name, partition in wanted:
        if find_training(name).grouped:
            require_partition(loaded, name, partition)
    found = [
        {n: TRAININGS[name].learner(_place(model, n, partition, recipe)) for n in layers}
        for name, partition in wanted
    ]
    learners = {n: [f[n] for f in found if f[n].waits] for n in layers}
    if any(learners.values()):
        _show(model, learners, sequences=sequences, recipe=recipe, generator=generator,
              advance=advance)  # fmt: skip
    return [{n: f[n].slots() for n in layers} for f in found]


def split_sequences(
    sequences: Sequence[Encoded], share: float, generator: torch.Generator
) -> tuple[list[Encoded], list[Encoded]]:
    """Sequences to learn from and to measure on, at random; at least one of each.

    Raises:
        DataError: if there are fewer than two.
    """
    if len(sequences) < 2:
        raise DataError(
            f"a router needs sequences to learn from and others to be measured on, but there are "
            f"{len(sequences)}; give at least 2."
        )
    order = torch.randperm(len(sequences), generator=generator).tolist()
    out = min(max(1, round(share * len(sequences))), len(sequences) - 1)
    return [sequences[i] for i in order[out:]], [sequences[i] for i in order[:out]]


def routes_of(model: CausalModel, slots: Slots, recipe: RouterRecipe) -> dict[int, Route]:
    """The routers of all layers as they act, at the density and the level of the recipe."""
    return {
        n: Route(part_of(model, "mlp.down", n).module, own, recipe.density, recipe.level)
        for n, own in slots.items()
    }


def _place(model: CausalModel, n: int, partition: Partition | None, recipe: RouterRecipe) -> Place:
    norms = output_norms(model, n)
    owner = None if partition is None else partition.owners[n].to(norms.device).long()
    return Place(dense_ffn(model, n), norms, owner, recipe)


@torch.no_grad()
def _show(
    model: CausalModel,
    learners: Mapping[int, Sequence[Learner]],
    *,
    sequences: Sequence[Encoded],
    recipe: RouterRecipe,
    generator: torch.Generator,
    advance: Advance,
) -> None:
    """Run the model over the sequences, its learners watching; tokens are shuffled in a batch."""
    shuffle = random.Random(int(torch.randint(2**62, (), generator=generator)))
    batches = [
        batch
        for _ in range(recipe.epochs)
        for batch in batches_by_length(sequences, TOKENS_PER_BATCH, shuffle)
    ]
    device = next(model.parameters()).device
    for number, texts in enumerate(batches):
        batch = shown(texts, device)
        at = batch.tokens.flatten().nonzero().squeeze(1)
        order = torch.randperm(len(at), generator=generator).to(device)
        watch(model, list(learners), batch.ids,
               partial(_teach, learners, at[order], number / len(batches)))  # fmt: skip
        advance(1 / len(batches))


def _teach(
    learners: Mapping[int, Sequence[Learner]], at: Tensor, done: float, n: int, x: Tensor, h: Tensor
) -> None:
    for learner in learners[n]:
        learner.see(x[at], h[at], done)


def require_partition(loaded: LoadedModel, kind: str, partition: Partition | None) -> None:
    """Refuse a partition that is missing, or that does not divide this model's dense FFNs."""
    if partition is None:
        raise ConfigurationError(
            f"a router of the kind {kind!r} chooses groups, but no partition was given; make one "
            "and name it."
        )
    found = fingerprint_misfits(partition.spec.base, loaded.base.fingerprint)
    for n in dense_layers(loaded.model):
        neurons = dense_ffn(loaded.model, n).neurons
        if n not in partition.owners:
            found.append(f"it has no groups for layer {n}")
        elif len(partition.owners[n]) != neurons:
            found.append(f"layer {n} has {neurons} neurons, it has {len(partition.owners[n])}")
    if found:
        raise ConfigurationError(
            f"a router was asked for with a partition ({partition.spec.method}) that is not of "
            f"this model:{listed(found)}\nMake a partition of this model."
        )


def _brick(
    loaded: LoadedModel,
    kind: str,
    *,
    partition: Partition | None,
    recipe: RouterRecipe,
    routes: Mapping[int, Route],
    captured: float,
) -> Brick:
    recipe_of = {k: v for k, v in asdict(recipe).items() if k != "data"}
    arguments = {"training": kind, **recipe_of}
    if partition is not None:
        arguments |= {"partition": partition.hash, "groups": partition.spec.method}
    metric = Metric(name="captured energy", after=captured, unit="share", data="held-out sequences")
    spec = BrickSpec(
        name=f"{kind}-router",
        form="router",
        base=loaded.base.fingerprint,
        sites=tuple(route.site for route in routes.values()),
        options={"density": recipe.density, "level": recipe.level},
        granularity="neuron" if partition is None else "group",
        lineage=Lineage(
            method=f"router: {TRAININGS[kind].meaning}", arguments=arguments, data=recipe.data
        ),
        metrics=(metric,),
    )
    tensors = {
        f"{route.site}/{slot}": tensor.detach().cpu().contiguous()
        for route in routes.values()
        for slot, tensor in route.tensors.items()
    }
    brick = Brick(spec, tensors)
    require_fit(brick, loaded.base)
    return brick
