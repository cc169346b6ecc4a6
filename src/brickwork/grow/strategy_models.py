"""Strategies that train one model through all tasks: all of it, one LoRA, or new blocks."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from brickwork.errors import GrowthError
from brickwork.grow.answering import Answers, Examples, model_answers
from brickwork.grow.fresh import Fresh
from brickwork.grow.memory import MemoryRecipe, recall, remember
from brickwork.grow.planning import grow
from brickwork.grow.strategy import Added, StreamContext, StreamTask
from brickwork.grow.training import Replay, continue_training
from brickwork.model.cost import token_flops
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.lora import LoraRecipe, lora_layers
from brickwork.model.sizes import model_of
from brickwork.model.weights import ModelWeights, in_memory


class RehearsalOptions(BaseModel):
    """How much of what was learned before is trained on again."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    replay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each batch's tokens that comes from the memory."""
    instances: PositiveInt = 256
    """Of all tasks together, in the memory at most."""
    selector: str = "reservoir"
    """What is worth remembering: a row of SELECTORS."""


class BlockExpansionOptions(RehearsalOptions):
    """Of the new blocks, too."""

    blocks: PositiveInt = 2
    """How many; a divisor of the number of layers."""


class SharedLoraOptions(RehearsalOptions):
    """Of the LoRA, too."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32


class TrainedModel:
    """A model that is trained on task after task.

    Args:
        context: with the recipe and what the base learned before.
        loaded: the model, which is trained in place.
        fresh: what of it is trained; empty: everything.
        added: to the base, from the start.
        options: of rehearsal.
    """

    def __init__(
        self,
        context: StreamContext,
        loaded: LoadedModel,
        fresh: tuple[Fresh, ...],
        *,
        added: Added,
        options: RehearsalOptions,
    ) -> None:
        self._context, self._loaded, self._fresh = context, loaded, fresh
        self._options, self._memory, self._learned = options, context.memory, 0
        self.added = added

    def learn(self, task: StreamTask) -> None:
        """Train on the task, and on the memory beside it."""
        recipe, share = self._context.recipe, self._options.replay
        continue_training(
            self._loaded,
            task.train,
            replace(recipe, seed=recipe.seed + self._learned),
            replay=Replay(recall(self._memory), share) if share and self._memory else None,
            fresh=self._fresh,
            report=self._context.report,
        )
        self._learned += 1
        if share:
            self._memory = remember(
                self._context.loaded, task.name, task.train, self._bounds, memory=self._memory
            )

    @property
    def _bounds(self) -> MemoryRecipe:
        options, seed = self._options, self._context.recipe.seed
        return MemoryRecipe(instances=options.instances, selector=options.selector, seed=seed)

    def answers(self, examples: Examples, task: str | None) -> Answers:
        """What the model as it is now answers, whichever task it is."""
        return model_answers(self._loaded.model, examples.sequences)


@contextmanager
def train_all(context: StreamContext, options: RehearsalOptions) -> Iterator[TrainedModel]:
    """All weights, of a copy."""
    base = context.loaded
    loaded = wrap_model(copy.deepcopy(base.model), base.tokenizer, base.name)
    yield TrainedModel(context, loaded, (), added=Added(0, 0), options=options)


@contextmanager
def train_blocks(context: StreamContext, options: BlockExpansionOptions) -> Iterator[TrainedModel]:
    """New blocks, of a grown copy; the blocks that were there rest."""
    base = context.loaded
    grown = grow(ModelWeights(base.model), "depth", "blocks", {"blocks": options.blocks}).weights
    loaded = model_of(grown.outline.config, in_memory(grown), base)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (base.model, loaded.model)]
    added = Added(sizes[1] - sizes[0], token_flops(loaded.model) - token_flops(base.model))
    yield TrainedModel(context, loaded, grown.fresh, added=added, options=options)


@contextmanager
def train_shared_lora(context: StreamContext, options: SharedLoraOptions) -> Iterator[TrainedModel]:
    """One LoRA at the linear maps of all blocks; PEFT's layers leave the base afterwards.

    Raises:
        GrowthError: if there is no linear map to put it at.
    """
    base, seed = context.loaded, context.recipe.seed
    recipe = LoraRecipe(options.rank, options.alpha, lora_targets(base), seed=seed)
    with lora_layers(base, recipe):
        names = [name for name, p in base.model.named_parameters() if p.requires_grad]
        count = sum(base.model.get_parameter(name).numel() for name in names)
        yield TrainedModel(
            context,
            wrap_model(base.model, base.tokenizer, base.name),  # the base's fingerprint stays
            tuple(Fresh(parameter=name) for name in names),
            added=Added(count, 2 * count),
            options=options,
        )


def lora_targets(loaded: LoadedModel) -> tuple[str, ...]:
    """The linear maps of all blocks, by path.

    In a mixture of experts those of attention alone, for PEFT takes names of maps in FFNs for
    names of experts.

    Raises:
        GrowthError: if there is none.
    """
    part = ".attn." if loaded.base.of_kind("experts") else ""
    linear = loaded.base.of_kind("linear")
    found = tuple(s.path for s in linear if s.layer is not None and part in s.address)
    if not found:
        raise GrowthError(
            f"a LoRA was to be put in the blocks of {loaded.name or 'the model'!r}, but its "
            "family is not known, so none is; name a model that Brickwork describes."
        )
    return found
