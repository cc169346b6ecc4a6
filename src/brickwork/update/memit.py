"""MEMIT: many facts are written at once, spread over several layers.

Source: Meng et al. 2022, Mass-Editing Memory in a Transformer (arXiv:2210.07229). Departures: see
``values``; and what weighs the corpus against the facts is measured in the facts' own keys, see
``MemitOptions.weight``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from brickwork.model.parts import CausalModel
from brickwork.update.contexts import Placed
from brickwork.update.keys import edit_path, recall, residual_scale
from brickwork.update.method import Draft, EditContext
from brickwork.update.rewrite import (
    DescentOptions,
    low_rank_draft,
    placed_prompts,
    rewritings,
    ridged,
    solved,
    unlearned,
)
from brickwork.update.values import Descent, learn_values
from brickwork.update.words import EncodedFact

# For the keys of a layer, what reads them: a column for each fact that answers its key with 1, as
# far as the corpus allows.
Reader = Callable[[int, Float[Tensor, "facts neurons"]], Float[Tensor, "facts neurons"]]


class SpreadOptions(DescentOptions):
    """Options of the methods that spread facts over layers."""

    contexts: int = Field(default=0, ge=0)
    """Short texts that the model writes itself, before each of which the edit shall hold, too. A
    few help where prompts will stand in longer texts; each costs as much as the prompt itself."""
    clamp: float = Field(default=3.0, gt=0)
    """The greatest length of what is added, in lengths of what the block says."""


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

    def reader(layer: int, keys: Tensor) -> Tensor:
        assert context.covariance is not None, "checked with the method's needs"
        covariance = context.covariance(layer).matrix.to(keys.device)
        return regularised_reader(keys, ridged(covariance, options.ridge), options.weight)

    return spread(context, facts, options, reader)


def regularised_reader(
    keys: Float[Tensor, "facts neurons"],
    covariance: Float[Tensor, "neurons neurons"],
    weight: float,
) -> Float[Tensor, "facts neurons"]:
    """``((lambda C + K K^T)^-1 K)^T``, by which the paper's change is residuals times this.

    Args:
        keys: what the map reads for each fact, in float64.
        covariance: C, of full rank.
        weight: lambda in units of the median of ``k^T C^-1 k``.
    """
    rarity = (keys * solved(covariance, keys.T).T).sum(1)
    matrix = weight * rarity.median() * covariance + keys.T @ keys
    return solved(matrix, keys.T).T


def spread(
    context: EditContext, facts: Sequence[EncodedFact], options: SpreadOptions, reader: Reader
) -> Draft:
    """Learn the values at the last layer, and let each layer add its part of what is left."""
    model, layers = context.loaded.model, context.site.layers
    paths = {layer: edit_path(model, layer) for layer in layers}
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
    kept = [number for number in range(len(facts)) if number not in failures]
    rows, weights = _weighted([prompts[number] for number in kept])
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    keys: dict[str, Tensor] = {}
    if not kept:
        return low_rank_draft(factors, keys, failures, facts=0)
    delta = learned.delta[kept].double()
    goal: Tensor | None = None
    for number, layer in enumerate(layers):
        with acting(model, factors):
            found = recall(model, rows, layer, block=layers[-1])
        key, value, state = (
            weights.to(x.device) @ x.double() for x in (found.keys, found.values, found.states)
        )
        goal = state + delta if goal is None else goal
        rest = (goal - state) / (len(layers) - number) / residual_scale(model, layer, value)
        keys[paths[layer]] = key
        factors[paths[layer]] = (reader(layer, key), rest.T)
    return low_rank_draft(factors, keys, failures, facts=len(kept))


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
