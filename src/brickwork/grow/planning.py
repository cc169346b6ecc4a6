"""One growth of a model by a row of GROWTHS, planned: what it will be, before it is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from brickwork.brick.forms import load_target
from brickwork.brick.spec import explain
from brickwork.errors import ConfigurationError
from brickwork.grow.growth import GrownWeights, Growth
from brickwork.grow.growths import find_growth
from brickwork.model.tokens import Tokenizer, with_length, with_tokens
from brickwork.model.weights import Weights


@dataclass(frozen=True)
class Grown:
    """A grown model that is still to be made: its weights, its tokenizer, and what was done."""

    weights: GrownWeights
    tokenizer: Tokenizer | None
    growth: Growth


def grow(
    weights: Weights,
    part: str,
    name: str,
    options: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
) -> Grown:
    """Plan a growth; nothing of the model is read before its weights are asked for.

    Args:
        weights: of the model; those of another growth will do.
        part: what grows.
        name: how.
        options: of the row.
        tokenizer: of the model, where there is one.
        seed: of all that is drawn.

    Raises:
        UnknownNameError: if there is no such row.
        ConfigurationError: if the options are not those of the row.
        GrowthError: if this model cannot grow so; says why.
    """
    row = find_growth(part, name)
    try:
        told = load_target(row.options).model_validate(dict(options))
    except ValidationError as error:
        raise ConfigurationError(f"{part} by {name!r} was asked for: {explain(error)}.") from None
    extra = {"tokenizer": tokenizer} if part == "vocab" else {}
    growth: Growth = load_target(row.target)(weights, told, **extra)
    larger = tokenizer
    if growth.tokens and tokenizer is not None:
        larger, _ = with_tokens(tokenizer, growth.tokens)
    if growth.length is not None and larger is not None:
        larger = with_length(larger, growth.length)
    return Grown(GrownWeights(weights, growth, seed), larger, growth)
