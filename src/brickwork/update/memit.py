"""MEMIT: many facts are written at once, spread over several layers.

Source: Meng et al. 2022, Mass-Editing Memory in a Transformer (arXiv:2210.07229). Departures: see
``values``; what weighs the corpus against the facts is measured in the facts' own keys, see
``MemitOptions.weight``; it is raised until the corpus is spared, see ``harm``; facts that the model
does not say then are left out, and the others written without them; and the keys of earlier edits
are left alone, too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from brickwork.model.parts import CausalModel
from brickwork.update.answers import answer_scores
from brickwork.update.contexts import Placed
from brickwork.update.harm import bounded_reader, rooms, too_harmful
from brickwork.update.keys import edit_path, recall, residual_scale
from brickwork.update.method import Draft, EditContext
from brickwork.update.rewrite import (
    DescentOptions,
    earlier_keys,
    low_rank_draft,
    placed_prompts,
    protected,
    rewritings,
    ridged,
    solved,
    unlearned,
)
from brickwork.update.values import Descent, learn_values
from brickwork.update.words import EncodedFact

# For the keys of a layer, the keys as ``bounded_reader`` takes them, and the least weight.
Whiten = Callable[
    [int, Float[Tensor, "facts neurons"]], tuple[Float[Tensor, "neurons facts"], float]
]


class SpreadOptions(DescentOptions):
    """Options of the methods that spread facts over layers."""

    contexts: int = Field(default=0, ge=0)
    """Short texts that the model writes itself, before each of which the edit shall hold, too. A
    few help where prompts will stand in longer texts; each costs as much as the prompt itself."""


class MemitOptions(SpreadOptions):
    """Options of MEMIT."""

    weight: float = Field(default=0.3, gt=0)
    """Weighs the corpus against the facts. At 1, a lone fact of middling rarity reaches half of its
    change in one layer; at 0, all of it. In the paper's terms, lambda is this times the median
    of ``k^T C^-1 k``, so that it depends neither on the layer's width nor on the number of
    tokens."""
    ridge: float = Field(default=1e-4, gt=0)
    """What is added to the covariance's diagonal, as a share of its mean."""


def draft_memit(context: EditContext, facts: Sequence[EncodedFact], options: MemitOptions) -> Draft:
    """A low-rank term at each layer of the site that adds up to the facts' values at the last.

    Args:
        context: with the covariance of each layer.
        facts: any number.
        options: see there.

    Raises:
        EditError: if a layer is one of experts, or there is no such.
    """

    def whiten(layer: int, keys: Tensor) -> tuple[Tensor, float]:
        assert context.covariance is not None, "checked with the method's needs"
        covariance = ridged(context.covariance(layer).matrix.to(keys.device), options.ridge)
        earlier = earlier_keys(context, edit_path(context.loaded.model, layer), keys)
        whitened = solved(protected(covariance, earlier), keys.T)
        return whitened, options.weight * float((keys * whitened.T).sum(1).median())

    return spread(context, facts, options, whiten)


def spread(
    context: EditContext, facts: Sequence[EncodedFact], options: SpreadOptions, whiten: Whiten
) -> Draft:
    """Learn the values at the last layer, and let each layer add its part of what is left."""
    model, layers = context.loaded.model, context.site.layers
    prompts = placed_prompts(context, facts, options.contexts)
    descent = Descent(**{name: getattr(options, name) for name in vars(Descent())})
    learned = learn_values(
        model,
        layers[-1],
        "block",
        rewritings(context, facts, prompts),
        descent,
        advance=context.advance,
    )
    failures = unlearned(learned.nats)
    room = rooms(context, [own[0] for own in prompts], layers, options.harm)
    if full := [layer for layer, left in room.items() if left <= 0]:
        failures = dict.fromkeys(range(len(facts)), too_harmful(full[0], options.harm))
    while kept := [number for number in range(len(facts)) if number not in failures]:
        own = [prompts[number] for number in kept]
        factors, keys = _written(context, own, learned.delta[kept], whiten, room)
        with acting(model, factors):
            told = answer_scores(model, [(facts[n].prompt.ids, facts[n].target) for n in kept])
        lost = unlearned(told.nats_per_token)
        if not lost:
            return low_rank_draft(factors, keys, failures, facts=len(kept))
        failures |= {kept[number]: reason for number, reason in lost.items()}
    return low_rank_draft({}, {}, failures, facts=0)


def _written(
    context: EditContext,
    prompts: Sequence[Sequence[Placed]],
    delta: Float[Tensor, "facts hidden"],
    whiten: Whiten,
    room: Mapping[int, float],
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Factors and keys by path that add up to the deltas, each layer within its room."""
    model, layers = context.loaded.model, list(room)
    assert context.covariance is not None, "checked with the method's needs"
    rows, weights = _weighted(prompts)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    keys: dict[str, Tensor] = {}
    goal: Tensor | None = None
    for number, layer in enumerate(layers):
        with acting(model, factors):
            found = recall(model, rows, layer, block=layers[-1])
        key, value, state = (
            weights.to(x.device) @ x.double() for x in (found.keys, found.values, found.states)
        )
        goal = state + delta.double() if goal is None else goal
        rest = (goal - state) / (len(layers) - number)
        corpus = context.covariance(layer).matrix.to(key.device).double()
        whitened, weight = whiten(layer, key)
        reader = bounded_reader(key, whitened, rest, corpus, weight=weight, most=room[layer])
        path = edit_path(model, layer)
        keys[path] = key
        factors[path] = (reader, (rest / residual_scale(model, layer, value)).T)
    return factors, keys


def _weighted(
    prompts: Sequence[Sequence[Placed]],
) -> tuple[list[Placed], Float[Tensor, "facts prompts"]]:
    """All prompts, and for each fact their weights: half for the prompt by itself."""
    rows = [one for own in prompts for one in own]
    weights = torch.zeros(len(prompts), len(rows), dtype=torch.float64)
    first = 0
    for fact, own in enumerate(prompts):
        others = len(own) - 1
        weights[fact, first] = 0.5 if others else 1.0
        weights[fact, first + 1 : first + len(own)] = 0.5 / max(others, 1)
        first += len(own)
    return rows, weights


@contextmanager
def acting(model: CausalModel, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Let low-rank terms act on the linear maps at these paths."""

    def adding(A: Tensor, B: Tensor) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + (args[0].to(A.dtype) @ A.T @ B.T).to(output.dtype)

        return hook

    hooks = [
        model.get_submodule(path).register_forward_hook(adding(A.float(), B.float()))
        for path, (A, B) in factors.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
