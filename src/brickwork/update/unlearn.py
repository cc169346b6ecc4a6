"""Unlearn: take away a behaviour that examples show, as far as everything else allows.

Two ways. *Negation*: a LoRA that was trained to show the behaviour, with its sign turned (task
arithmetic, Ilharco et al. 2022, arXiv:2212.04089). *Suppression*: the neurons that matter for the
behaviour, and little for anything else, made silent (Dai et al. 2022, arXiv:2104.08696, with a
score that compares). Either has a strength; the strongest is taken that leaves the other
functionalities within a bound.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import expm1
from typing import NoReturn

import torch
from jaxtyping import Int
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.spec import BrickSpec, Function, Lineage
from brickwork.errors import EditError
from brickwork.measure.aim import Aim
from brickwork.measure.intervals import perplexity_increase, resample_counts
from brickwork.measure.need import Asked, measure_need
from brickwork.measure.perplexity import instance_losses
from brickwork.measure.results import Interval
from brickwork.model.load import LoadedModel
from brickwork.model.parts import layers_of, role_path
from brickwork.model.train import Encoded
from brickwork.model.units import unit_counts

# Of the task vector; and of all neurons of the model.
STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "negation": (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0),
    "suppression": (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
}
_RESAMPLES = 1000
Serving = Callable[[Sequence[Brick]], AbstractContextManager[object]]


@dataclass(frozen=True)
class Rung:
    """One strength that was tried, on the instances to choose by.

    Attributes:
        strength: as in ``STRENGTHS``.
        behaviour: by what share the perplexity of the behaviour rose; more is better.
        others: the same for every other functionality; less is better.
        within: whether none of the others rose by more than the bound.
    """

    strength: float
    behaviour: float
    others: Mapping[str, float]
    within: bool


@dataclass(frozen=True)
class Unlearned:
    """What became of the behaviour.

    Attributes:
        brick: takes the behaviour away where it acts.
        strength: the brick's, as in ``STRENGTHS``.
        rungs: every strength that was tried.
        behaviour: rise of the behaviour's perplexity, as a share, on instances that nothing was
            chosen by.
        others: the same for every other functionality.
    """

    brick: Brick
    strength: float
    rungs: tuple[Rung, ...]
    behaviour: Interval
    others: Mapping[str, Interval]


def negated(task: Brick, strength: float, name: str) -> Brick:
    """A LoRA brick that does the opposite, so many times as strongly.

    Raises:
        EditError: if the brick is of another form.
    """
    if task.spec.form != "lora":
        raise EditError(
            f"{task.spec.name!r} was to be negated, but it is a {task.spec.form}; only what a lora "
            "adds can be taken away instead."
        )
    tensors = {
        path: tensor * -strength if path.endswith("/B") else tensor
        for path, tensor in task.tensors.items()
    }
    lineage = Lineage(
        method="negation", arguments={"strength": strength}, data=task.spec.lineage.data,
        parents=(task.hash,),
    )  # fmt: skip
    changes = {
        "name": name,
        "lineage": lineage,
        "metrics": (),
        "function": _without(task.spec.name),
    }
    return Brick(task.spec.model_copy(update=changes), tensors)


def selective_neurons(
    loaded: LoadedModel, behaviour: Sequence[Encoded], others: Mapping[str, Sequence[Encoded]]
) -> Int[Tensor, "neurons 2"]:
    """All neurons of the FFNs as layer and number, the most selective for the behaviour first.

    A neuron's score is its mean ``|gradient times activation|`` on the behaviour less that on the
    other functionality that needs it most; each is a share of the sum over all neurons.

    Raises:
        DataError: if there are no instances of one kind.
    """

    def shares(sequences: Sequence[Encoded]) -> Tensor:
        asked = Asked(loaded, "neurons", list(sequences), torch.Generator())
        need = measure_need(asked, "attribution")
        every = torch.cat([need[layer].double().cpu() for layer in layers])
        return every / every.sum()

    layers = range(layers_of(loaded.model))
    needed = torch.stack([shares(sequences) for sequences in others.values()]).amax(0)
    order = (shares(behaviour) - needed).argsort(descending=True, stable=True)
    counts = torch.tensor([unit_counts(loaded.model, n)["mlp.neurons"] for n in layers])
    layer = torch.arange(len(counts)).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    number = torch.arange(len(layer)) - first.repeat_interleave(counts)
    return torch.stack([layer, number], dim=1)[order]


def silencing(
    loaded: LoadedModel, neurons: Int[Tensor, "neurons 2"], behaviour: str, name: str
) -> Brick:
    """A brick (IA3) that makes neurons, given as layer and number, silent.

    Raises:
        EditError: if a layer is a mixture of experts, which has no factor for each neuron.
    """
    base, tensors = loaded.base, {}
    for layer in neurons[:, 0].unique().tolist():
        path = role_path(loaded.model, "mlp.down", layer) or ""
        if path not in base.sites:
            raise EditError(
                f"neurons of layers.{layer} were to be silent, but its FFN is a mixture of "
                "experts; take the way of negation."
            )
        factor = torch.ones(base.sites[path].sizes["in"], dtype=loaded.dtype)
        factor[neurons[neurons[:, 0] == layer, 1]] = 0
        tensors[f"{path}/factor_in"] = factor
    spec = BrickSpec(
        name=name,
        form="ia3",
        base=base.fingerprint,
        sites=tuple(path.rpartition("/")[0] for path in tensors),
        granularity="neuron",
        function=_without(behaviour),
        lineage=Lineage(method="suppression", arguments={"neurons": len(neurons)}),
    )
    return Brick(spec, tensors)


def unlearn(
    loaded: LoadedModel,
    aim: Aim,
    make: Callable[[float], Brick],
    strengths: Sequence[float],
    *,
    serving: Serving,
    bound: float = 0.02,
    seed: int = 0,
) -> Unlearned:
    """The strongest brick that keeps the perplexity of every other functionality within a bound.

    One that makes the behaviour no less likely does not count, however little else it changes.
    The evaluation instances of the aim are halved: by one half the strength is chosen, on the
    other the effect is measured.

    Args:
        loaded: the model.
        aim: the behaviour, and other functionalities to keep.
        make: the brick of a strength.
        strengths: rising; the ladder is climbed until the bound is broken.
        serving: a block in which the model runs under some bricks.
        bound: by what share the perplexity of another functionality may rise at most.
        seed: of the bootstrap.

    Raises:
        EditError: if even the weakest brick breaks the bound, or none within it takes anything of
            the behaviour away, or there is nothing to keep.
    """
    if len(aim.evaluation) < 2:
        raise EditError(
            f"{aim.name!r} is to be unlearned, but there is no other functionality to measure what "
            "else is lost; name labelled instances with --data."
        )
    chosen_by = {name: sequences[::2] for name, sequences in aim.evaluation.items()}
    before = _nats(loaded, chosen_by)
    rungs: list[Rung] = []
    taken: tuple[float, Brick] | None = None
    for strength in strengths:
        brick = make(strength)
        with serving([brick]):
            after = _nats(loaded, chosen_by)
        rises = {name: _rise(before[name], after[name]) for name in before}
        own = rises.pop(aim.name)
        rungs.append(Rung(strength, own, rises, max(rises.values()) <= bound))
        if not rungs[-1].within:
            break
        if own > 0:
            taken = strength, brick
    if taken is None:
        _refuse(aim.name, rungs, bound)
    effect = _effect(loaded, aim, taken[1], serving, seed)
    return Unlearned(taken[1], taken[0], tuple(rungs), effect.pop(aim.name), effect)


def _refuse(behaviour: str, rungs: Sequence[Rung], bound: float) -> NoReturn:
    first = rungs[0]
    if first.within:
        raise EditError(
            f"{behaviour!r} was to be unlearned, but its perplexity rises at no strength that "
            f"keeps the others within {bound:.1%}; take the other way (--by), or give examples of "
            "what the model does now."
        )
    worst = max(first.others, key=lambda name: first.others[name])
    raise EditError(
        f"{behaviour!r} was to be unlearned, but even at strength {first.strength:g} the "
        f"perplexity of {worst} rises by {first.others[worst]:.1%}, and {bound:.1%} is "
        "allowed; allow more with --bound, or give examples that are more of one kind."
    )


def _effect(
    loaded: LoadedModel, aim: Aim, brick: Brick, serving: Serving, seed: int
) -> dict[str, Interval]:
    measured = {name: own[1::2] or own for name, own in aim.evaluation.items()}
    before = _nats(loaded, measured)
    with serving([brick]):
        after = _nats(loaded, measured)
    found = {}
    for name, (nats, tokens) in before.items():
        counts = resample_counts(len(nats), _RESAMPLES, torch.Generator().manual_seed(seed))
        found[name] = perplexity_increase(nats, after[name][0], tokens, counts)
    return found


def _nats(
    loaded: LoadedModel, sequences: Mapping[str, Sequence[Encoded]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each functionality, every instance's nats and tokens."""
    found = {}
    for name, own in sequences.items():
        losses = instance_losses(loaded.model, own)
        found[name] = (losses.response, losses.response_tokens)
    return found


def _rise(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> float:
    nats = (after[0] - before[0]).sum() / before[1].sum()
    return expm1(min(float(nats), 100.0))


def _without(behaviour: str) -> Function:
    return Function(text=f"takes away: {behaviour}", labels=("unlearning",))
