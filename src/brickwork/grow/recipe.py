"""Growths one after the other, as a recipe in YAML says, and the grown model as a checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from math import log2
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field, ValidationError

from brickwork.brick.files import json_bytes
from brickwork.brick.spec import explain
from brickwork.errors import ConfigurationError, DataError
from brickwork.grow.fresh import Fresh
from brickwork.grow.growth import GrownWeights
from brickwork.grow.growths import NOTHING, find_growth
from brickwork.grow.options import Options
from brickwork.grow.planning import grow
from brickwork.grow.record import GrowthRecord, Step
from brickwork.model.checkpoint import files_beside
from brickwork.model.cost import token_flops
from brickwork.model.export import RECORD
from brickwork.model.load import LoadedModel
from brickwork.model.shard_layout import ShardLayout
from brickwork.model.sizes import model_of
from brickwork.model.stream import planned_layout, write_weights
from brickwork.model.tokens import Tokenizer, saved_tokenizer
from brickwork.model.weights import Weights, in_memory


class RecipeStep(Options):
    """One growth of a recipe.

    Attributes:
        part: what grows.
        by: how, the name of a row.
        options: of the row.
    """

    part: str
    by: str
    options: Mapping[str, Any] = Field(default_factory=dict)


class GrowthRecipe(Options):
    """What is to become of a model: growths in their order, and the seed of all that is drawn."""

    steps: tuple[RecipeStep, ...] = Field(min_length=1)
    seed: int = 0


@dataclass(frozen=True)
class GrownModel:
    """A grown model that is still to be made.

    Attributes:
        weights: made one by one when they are asked for.
        tokenizer: with the new tokens, if there are some; None where the model has none.
        old_tokens: how many tokens there were whose logits are comparable.
        steps: what was done.
        notes: what the user should know.
        own_tokenizer: whether the tokenizer is another than the old model's.
    """

    weights: Weights
    tokenizer: Tokenizer | None
    old_tokens: int
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    own_tokenizer: bool = False

    @property
    def fresh(self) -> tuple[Fresh, ...]:
        """Which numbers of the grown model are new."""
        return self.weights.fresh if isinstance(self.weights, GrownWeights) else ()

    @property
    def keeps(self) -> tuple[str, ...]:
        """What every step keeps, without repetition, as its rows say it."""
        return tuple(dict.fromkeys(step.keeps for step in self.steps))


@dataclass(frozen=True)
class Sizes:
    """What a model takes: parameters, bytes of its weights, and operations for each token."""

    parameters: int
    bytes: int
    token_flops: int


def read_recipe(file: Path) -> GrowthRecipe:
    """A recipe from a YAML file.

    Raises:
        DataError: if the file cannot be read.
        ConfigurationError: if it is no recipe; names every entry that is wrong.
    """
    try:
        document = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"the recipe {file.name!r} cannot be read: {error}") from None
    try:
        return GrowthRecipe.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"{file.name} is no recipe of growth: {explain(error)}.") from None


def grow_by_recipe(
    weights: Weights, recipe: GrowthRecipe, *, tokenizer: Tokenizer | None = None
) -> GrownModel:
    """Plan all growths of a recipe; no weight is read or made yet.

    Raises:
        UnknownNameError: if a step names no row.
        ConfigurationError: if the options of a step are not those of its row.
        GrowthError: if the model cannot grow so; says why.
    """
    head: Any = weights.outline.get_output_embeddings()
    rows = len(head.weight)
    start = GrownModel(weights, tokenizer, rows, (), ())
    return reduce(lambda grown, step: _step(grown, step, recipe.seed), recipe.steps, start)


def _step(before: GrownModel, step: RecipeStep, seed: int) -> GrownModel:
    number = len(before.steps)
    grown = grow(
        before.weights, step.part, step.by, step.options,
        tokenizer=before.tokenizer, seed=seed + number,
    )  # fmt: skip
    promise = grown.growth.promise
    done = Step(
        part=step.part,
        name=step.by,
        options=dict(step.options),
        seed=seed + number,
        keeps=NOTHING if promise == "none" else find_growth(step.part, step.by).keeps,
    )
    known = before.old_tokens
    if grown.growth.tokens and before.tokenizer is not None:
        known = min(known, len(before.tokenizer))
    notes = before.notes + _rounding(grown.weights.outline.dtype, grown.growth.factors)
    own = before.own_tokenizer or grown.tokenizer is not before.tokenizer
    return GrownModel(grown.weights, grown.tokenizer, known, (*before.steps, done), notes, own)


def _rounding(dtype: torch.dtype, factors: Mapping[str, float]) -> tuple[str, ...]:
    """What to say where weights are multiplied by what a short number format rounds."""
    rounded = sorted(role for role, factor in factors.items() if not log2(factor).is_integer())
    if not rounded or dtype.itemsize > 2:
        return ()
    most = torch.finfo(dtype).eps / 2
    note = (
        f"{', '.join(rounded)} are multiplied by no power of two, which {dtype} rounds by up to "
        f"{most:.2%}; the logits differ by about as much."
    )
    return (note,)


def sizes_of(weights: Weights) -> Sizes:
    """What a model takes, from its outline."""
    layout = planned_layout(weights)
    return Sizes(layout.parameters, layout.bytes, token_flops(weights.outline))


def load_grown(grown: GrownModel, old: LoadedModel) -> LoadedModel:
    """The grown model in memory, in the dtype and on the device of the old one."""
    # Copies: nothing of the old model may change when the grown one is trained.
    own = in_memory(grown.weights, old.dtype)
    return model_of(grown.weights.outline.config, own, old, tokenizer=grown.tokenizer)


def write_grown(
    grown: GrownModel,
    source: Path,
    name: str,
    folder: Path,
    *,
    advance: Callable[[int], None] = lambda _bytes: None,
) -> ShardLayout:
    """Write the grown model as a new checkpoint, holding one parameter at a time.

    Args:
        grown: as planned.
        source: folder of the old model, whose small files are taken over.
        name: of the old model, for the record.
        folder: where; there must be nothing yet.
        advance: told the bytes that have just been written.

    Raises:
        ModelError: if something is there already, there is no room, or it cannot be written.
    """
    record = GrowthRecord(model=name, steps=grown.steps, fresh=grown.fresh)
    files = files_beside(source, tokenizer=not grown.own_tokenizer)
    if grown.own_tokenizer and grown.tokenizer is not None:
        files |= saved_tokenizer(grown.tokenizer)
    files[RECORD] = json_bytes(RECORD, record.model_dump(mode="json"))
    return write_weights(grown.weights, folder, files, advance=advance)
