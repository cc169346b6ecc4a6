"""Unlearning: what it takes away, what it leaves, and what it refuses."""

import copy
import math
from collections import defaultdict
from functools import cache

import pytest
import torch

from brickwork.brick.brick import Brick
from brickwork.brick.effects import Add
from brickwork.brick.forms import effects_of
from brickwork.brick.spec import Function
from brickwork.build.task import About, LoraRecipe, build_task
from brickwork.errors import EditError
from brickwork.measure.aim import Aim
from brickwork.measure.perplexity import instance_losses
from brickwork.model.load import wrap_model
from brickwork.model.train import Encoded
from brickwork.model.words import token_ids
from brickwork.runtime.configured import ConfiguredModel
from brickwork.update.unlearn import STRENGTHS, negated, selective_neurons, silencing, unlearn
from tests.bricks import random_brick
from tests.tiny import tiny_model
from tests.world import world

BEHAVIOUR = "city"


@cache
def cities() -> tuple[Aim, dict[str, list[Encoded]]]:
    """To forget where people live, and nothing else; and other instances of the rest."""
    loaded = world().loaded
    by_relation: dict[str, list[Encoded]] = defaultdict(list)
    for fact in world().facts:
        prompt, whole = token_ids(loaded, [fact.prompt, f"{fact.prompt} {fact.object}"])
        by_relation[fact.relation].append(Encoded(whole, len(prompt)))
    measured = {relation: own[:24] for relation, own in by_relation.items()}
    others = {relation: own[24:] for relation, own in by_relation.items()}
    choosing = others.pop(BEHAVIOUR)
    return Aim(BEHAVIOUR, choosing, measured, [], frozenset()), others


def test_neurons_of_one_behaviour_are_silenced_and_the_rest_stays_within_the_bound() -> None:
    aim, others = cities()
    loaded = world().loaded
    order = selective_neurons(loaded, aim.choosing, others)
    assert len(order) == 6 * 256
    assert len(set(map(tuple, order.tolist()))) == len(order)

    def make(share: float) -> Brick:
        return silencing(loaded, order[: max(1, round(share * len(order)))], BEHAVIOUR, "no-city")

    found = unlearn(
        loaded, aim, make, STRENGTHS["suppression"], serving=ConfiguredModel(loaded).applied,
        bound=0.1,
    )  # fmt: skip
    kept = [rung for rung in found.rungs if rung.within]
    assert max(kept[-1].others.values()) <= 0.1
    assert found.behaviour.value > 0.5
    assert found.behaviour.value > 3 * max(own.value for own in found.others.values())


def test_a_task_vector_turned_round_raises_the_loss_of_its_task() -> None:
    aim, _ = cities()
    loaded = world().loaded
    targets = ("up_proj", "down_proj")
    recipe = LoraRecipe(4, 8, targets, rate=2e-3, epochs=1, tokens_per_batch=64, warm_up=2)
    about = About("cities", Function(), "the small world")
    # The world's model knows its cities, so what it learns here are other ones.
    other = [
        Encoded([*s.ids[:-1], aim.choosing[0].ids[-1]], s.response_start) for s in aim.choosing
    ]
    task = build_task(loaded, other, recipe, about)
    behaviour = {
        name: other[:8] if name == BEHAVIOUR else own for name, own in aim.evaluation.items()
    }
    aimed = Aim(BEHAVIOUR, other, behaviour, [], frozenset())
    found = unlearn(
        loaded, aimed, lambda strength: negated(task, strength, "none"), (0.25, 0.5),
        serving=ConfiguredModel(loaded).applied, bound=1e9,
    )  # fmt: skip
    assert found.behaviour.low > 0
    assert found.strength == 0.5
    with pytest.raises(EditError, match="its perplexity rises at no strength that keeps"):
        unlearn(
            loaded, aimed, lambda strength: negated(task, -strength, "more"), (0.25, 0.5),
            serving=ConfiguredModel(loaded).applied, bound=1e9,
        )  # fmt: skip


def test_the_effect_is_that_of_losses_measured_by_hand() -> None:
    aim, others = cities()
    loaded = world().loaded
    order = selective_neurons(loaded, aim.choosing[:8], {n: o[:8] for n, o in others.items()})
    brick = silencing(loaded, order[:5], BEHAVIOUR, "five")
    found = unlearn(
        loaded, aim, lambda _: brick, (1.0,), serving=ConfiguredModel(loaded).applied, bound=1e9
    )
    before = instance_losses(loaded.model, aim.evaluation[BEHAVIOUR][1::2]).response
    silent = copy.deepcopy(loaded.model)
    for layer, neuron in order[:5].tolist():
        silent.get_submodule(f"model.layers.{layer}.mlp.down_proj").weight.data[:, neuron] = 0
    after = instance_losses(silent, aim.evaluation[BEHAVIOUR][1::2]).response
    expected = math.expm1(float((after - before).sum()) / len(before))
    assert found.behaviour.value == pytest.approx(expected, rel=1e-6)  # sums in another order


def test_a_negated_lora_adds_the_opposite_times_the_strength() -> None:
    loaded = wrap_model(tiny_model("llama"))
    task = random_brick("lora", loaded.base, torch.Generator().manual_seed(1))
    opposite = negated(task, 0.5, "opposite")
    for one, other in zip(effects_of(task), effects_of(opposite), strict=True):
        assert isinstance(one, Add)
        assert isinstance(other, Add)
        assert torch.equal(other.scaling * other.B @ other.A, -0.5 * (one.scaling * one.B @ one.A))
    assert opposite.spec.lineage.parents == (task.hash,)


def test_only_loras_are_negated() -> None:
    loaded = wrap_model(tiny_model("llama"))
    with pytest.raises(EditError, match="is a ia3; only what a lora"):
        negated(random_brick("ia3", loaded.base, torch.Generator().manual_seed(1)), 1.0, "x")


def test_neurons_of_experts_are_not_silenced() -> None:
    loaded = wrap_model(tiny_model("mixtral"))
    with pytest.raises(EditError, match="mixture of experts"):
        silencing(loaded, torch.tensor([[0, 1]]), "anything", "x")


def test_a_bound_that_nothing_meets_is_told_with_the_functionality() -> None:
    aim, others = cities()
    loaded = world().loaded
    order = selective_neurons(loaded, aim.choosing[:8], {n: o[:8] for n, o in others.items()})
    with pytest.raises(EditError, match="even at strength 1 the perplexity of"):
        unlearn(
            loaded, aim, lambda _: silencing(loaded, order, BEHAVIOUR, "all"), (1.0,),
            serving=ConfiguredModel(loaded).applied,
        )  # fmt: skip


def test_something_to_keep_is_asked_for() -> None:
    aim, _ = cities()
    alone = Aim(BEHAVIOUR, aim.choosing, {BEHAVIOUR: aim.evaluation[BEHAVIOUR]}, [], frozenset())
    loaded = world().loaded
    with pytest.raises(EditError, match="no other functionality"):
        unlearn(
            loaded, alone, lambda _: pytest.fail("made"), (1.0,),
            serving=ConfiguredModel(loaded).applied,
        )  # fmt: skip
