"""Strategies that leave the base as it is: a brick for each task, frozen once it is built."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt

from brickwork.brick.brick import Brick
from brickwork.brick.spec import Function
from brickwork.errors import GrowthError
from brickwork.grow.answering import Answers, Examples, row_answers
from brickwork.grow.progressive import PromptRecipe, train_progressive
from brickwork.grow.strategy import Added, Build, StreamContext, StreamTask
from brickwork.grow.strategy_models import lora_targets
from brickwork.grow.subspaces import Orthogonality, train_orthogonal
from brickwork.model.fit import FitRecipe
from brickwork.model.lora import About, LoraRecipe
from brickwork.model.train import batches_by_length

# For each example the tasks whose bricks answer it; none: the base alone.
_Choose = Callable[[Examples, str | None], Sequence[tuple[str, ...]]]
_EXEMPLARS = 12


class NoOptions(BaseModel):
    """Nothing to choose."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class OrthogonalOptions(NoOptions):
    """Of O-LoRA."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    penalty: NonNegativeFloat = 0.5
    """Weight of directions that are shared."""
    decay: NonNegativeFloat = 0.0
    """Weight of the new LoRA's size."""


class PromptOptions(NoOptions):
    """Of progressive prompts."""

    tokens: PositiveInt = 10
    """Vectors of each task's prompt."""
    bottleneck: NonNegativeInt = 0
    """Inner width of an MLP that they are trained through; 0: none."""


class TaskBricks:
    """The bricks so far, by task, and who chooses among them.

    Args:
        context: with what runs the base with bricks.
        build: the brick of a task, given those of the tasks before it.
        chooser: who chooses among the bricks of the tasks so far; asked before the first task and
            after each.
        together: whether several bricks answer at once.
    """

    def __init__(
        self,
        context: StreamContext,
        build: Build | None,
        chooser: Callable[[Sequence[StreamTask]], _Choose],
        *,
        together: bool = False,
    ) -> None:
        assert build is not None, "checked with the strategy's needs"
        self._context, self._build, self._chooser = context, build, chooser
        self._together = together
        self._tasks: list[StreamTask] = []
        self._choose = chooser(())
        self.bricks: dict[str, Brick] = {}

    def learn(self, task: StreamTask) -> None:
        """Build the task's brick; the others stay as they are."""
        self.bricks[task.name] = self._build(task, tuple(self.bricks.values()))
        self._tasks.append(task)
        self._choose = self._chooser(tuple(self._tasks))

    def answers(self, examples: Examples, task: str | None) -> Answers:
        """What the chosen bricks answer."""
        assert self._context.logits is not None, "checked with the strategy's needs"
        chosen = self._choose(examples, task)
        bricks = [tuple(self.bricks[name] for name in names) for names in chosen]
        served = None if self._together else tuple(next(iter(names), None) for names in chosen)
        return row_answers(self._context.logits, examples.sequences, bricks, served)

    @property
    def added(self) -> Added:
        """All bricks are kept; a token meets one of them, or all."""
        assert self._context.brick_flops is not None, "checked with the strategy's needs"
        kept = sum(t.numel() for brick in self.bricks.values() for t in brick.tensors.values())
        flops = [self._context.brick_flops(brick) for brick in self.bricks.values()]
        return Added(kept, sum(flops) if self._together else max(flops, default=0))


@contextmanager
def route_bricks(context: StreamContext, options: NoOptions) -> Iterator[TaskBricks]:
    """A router picks by the instruction alone, and may abstain."""

    def chooser(tasks: Sequence[StreamTask]) -> _Choose:
        assert context.router is not None, "checked with the strategy's needs"
        if not tasks:
            return _none
        router, known = context.router(tasks), [task.name for task in tasks]
        return lambda examples, _task: [_named(n, known) for n in router(examples.prompts)]

    yield TaskBricks(context, context.build, chooser)


@contextmanager
def tell_bricks(context: StreamContext, options: NoOptions) -> Iterator[TaskBricks]:
    """The brick of the true task, once it is there."""
    yield TaskBricks(context, context.build, _told)


@contextmanager
def add_orthogonal(context: StreamContext, options: OrthogonalOptions) -> Iterator[TaskBricks]:
    """LoRAs that read other directions each; all act on everything, whichever task it is."""
    targets = lora_targets(context.loaded)
    weights = Orthogonality(options.penalty, options.decay)

    def build(task: StreamTask, earlier: Sequence[Brick]) -> Brick:
        recipe = _lora_recipe(context.recipe, task, options, targets)
        return train_orthogonal(
            context.loaded, task.train, recipe, _about(task), earlier=earlier, weights=weights,
            report=context.report,
        )  # fmt: skip

    def chooser(tasks: Sequence[StreamTask]) -> _Choose:
        known = tuple(task.name for task in tasks)
        return lambda examples, _task: [known] * len(examples.prompts)

    yield TaskBricks(context, build, chooser, together=True)


@contextmanager
def tell_prompts(context: StreamContext, options: PromptOptions) -> Iterator[TaskBricks]:
    """A soft prompt for each task before those of the tasks before it; the true task is told."""
    recipe = PromptRecipe(context.recipe, options.tokens, options.bottleneck)

    def build(task: StreamTask, earlier: Sequence[Brick]) -> Brick:
        return train_progressive(
            context.loaded, task.train, recipe, _about(task),
            earlier=earlier[-1] if earlier else None, report=context.report,
        )  # fmt: skip

    yield TaskBricks(context, build, _told)


def _lora_recipe(
    recipe: FitRecipe, task: StreamTask, options: OrthogonalOptions, targets: tuple[str, ...]
) -> LoraRecipe:
    """As many steps as the recipe has, in whole rounds through the task's examples."""
    groups = batches_by_length(task.train, recipe.tokens_per_batch, random.Random(recipe.seed))
    return LoraRecipe(
        options.rank, options.alpha, targets, rate=recipe.rate, warm_up=recipe.warm_up,
        tokens_per_batch=recipe.tokens_per_batch, seed=recipe.seed,
        epochs=max(1, round(recipe.steps / len(groups))),
    )  # fmt: skip


def _about(task: StreamTask) -> About:
    function = Function(
        text=task.text, labels=(task.functionality,), exemplars=task.prompts[:_EXEMPLARS]
    )
    return About(task.name, function, f"{len(task.train)} examples")


def _told(tasks: Sequence[StreamTask]) -> _Choose:
    known = {task.name for task in tasks}
    return lambda examples, task: [(task,) if task in known else ()] * len(examples.prompts)


def _none(examples: Examples, _task: str | None) -> Sequence[tuple[str, ...]]:
    return [()] * len(examples.prompts)


def _named(name: str | None, known: Sequence[str]) -> tuple[str, ...]:
    if name is not None and name not in known:
        raise GrowthError(
            f"the router sends an instruction to {name!r}, but the tasks learned so far are "
            f"{', '.join(known)}; let it choose among the tasks that it is made of."
        )
    return () if name is None else (name,)
