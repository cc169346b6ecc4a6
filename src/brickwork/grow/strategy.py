"""What a row of STRATEGIES says, what a strategy is given, and what it must be able to do."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ValidationError

from brickwork.brick.brick import Brick
from brickwork.brick.forms import load_target
from brickwork.brick.spec import explain
from brickwork.errors import ConfigurationError, GrowthError
from brickwork.grow.answering import Answers, Examples, RowLogits
from brickwork.model.fit import FitRecipe, Report
from brickwork.model.load import LoadedModel
from brickwork.model.train import Encoded

# For each instruction the name of the task whose brick answers it, or None: the base alone.
Router = Callable[[Sequence[str]], list[str | None]]


@dataclass(frozen=True)
class StreamTask:
    """A task of the stream.

    Attributes:
        name: it is also the name of its brick.
        functionality: that it needs.
        text: what it asks for, in words.
        prompts: instructions of the training examples, for routing.
        train: what it is learned from.
        test: what it is measured on.
        test_prompts: instructions of these.
    """

    name: str
    functionality: str
    text: str
    prompts: tuple[str, ...]
    train: tuple[Encoded, ...]
    test: tuple[Encoded, ...]
    test_prompts: tuple[str, ...]

    @cached_property
    def examples(self) -> Examples:
        """What it is measured on."""
        return Examples(self.test_prompts, self.test)


# The brick of a task, given those of the tasks before it.
Build = Callable[[StreamTask, Sequence[Brick]], Brick]


@dataclass(frozen=True, eq=False)
class StreamContext:
    """What a strategy works with.

    Attributes:
        loaded: the base; outside the strategy's block it is as it was, to the bit.
        recipe: of training that is the strategy's own; its seed decides every random choice.
        memory: a brick of what the base learned before, to train on again beside the tasks.
        build: the brick of a task, of any form.
        router: a router over the tasks learned so far.
        logits: the base with bricks of each row's own.
        brick_flops: operations that a brick takes for each token.
        report: told of each training step, the number of steps, and the loss.
    """

    loaded: LoadedModel
    recipe: FitRecipe
    memory: Brick | None = None
    build: Build | None = None
    router: Callable[[Sequence[StreamTask]], Router] | None = None
    logits: RowLogits | None = None
    brick_flops: Callable[[Brick], int] | None = None
    report: Report = lambda step, steps, loss: None


@dataclass(frozen=True)
class Added:
    """What has been added to the base: numbers kept, and operations of a served token at most."""

    parameters: int
    flops: int


class Learner(Protocol):
    """A strategy at work: it learns task after task, and answers at any time."""

    def learn(self, task: StreamTask) -> None:
        """Learn a task, all data of the tasks before it being gone."""

    def answers(self, examples: Examples, task: str | None) -> Answers:
        """How examples are answered now.

        Args:
            examples: what is asked.
            task: the true task, for a strategy that is told; None: none of the stream's.
        """

    @property
    def added(self) -> Added:
        """What the tasks so far have added."""


Need = Literal["build", "router", "logits", "brick_flops"]


@dataclass(frozen=True)
class Strategy:
    """One row of STRATEGIES.

    Attributes:
        name: as the command line writes it.
        meaning: one line for people.
        target: ``"module:function"`` that takes a ``StreamContext`` and the options, and returns
            a context manager of a ``Learner``.
        options: ``"module:class"`` of the pydantic model of its options, each with a default.
        needs: what of the context it cannot do without.
        source: the paper.
    """

    name: str
    meaning: str
    target: str
    options: str
    needs: tuple[Need, ...]
    source: str

    def parse(self, given: Mapping[str, Any]) -> BaseModel:
        """Its options, from what was given.

        Raises:
            ConfigurationError: naming every option that is unknown or not valid.
        """
        kind: type[BaseModel] = load_target(self.options)
        try:
            return kind.model_validate(dict(given))
        except ValidationError as error:
            known = ", ".join(kind.model_fields) or "none"
            raise ConfigurationError(
                f"the options of the strategy {self.name!r} are not valid: {explain(error)}; it "
                f"has these: {known}."
            ) from None

    def start(self, context: StreamContext, options: BaseModel) -> AbstractContextManager[Learner]:
        """A learner, whose block leaves the base as it was.

        Raises:
            GrowthError: if the context lacks what the strategy needs.
        """
        missing = [need for need in self.needs if getattr(context, need) is None]
        if missing:
            raise GrowthError(
                f"the strategy {self.name!r} was to learn a stream, but was given no "
                f"{', no '.join(missing)}; pass it in the StreamContext."
            )
        started: AbstractContextManager[Learner] = load_target(self.target)(context, options)
        return started
