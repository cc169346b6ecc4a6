"""A stream of tasks, learned one after the other by a strategy, and what becomes of the base.

After every task each task's test set is measured, and the base's own functionalities with it.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brickwork.brick.durable import write_file
from brickwork.brick.files import json_bytes
from brickwork.errors import DataError, GrowthError
from brickwork.grow.answering import Examples, require_responses
from brickwork.grow.strategies import find_strategy
from brickwork.grow.strategy import Learner, StreamContext, StreamTask
from brickwork.grow.stream_results import (
    STREAM_FILE,
    StepCost,
    StreamResult,
    StreamStudy,
    TaskFacts,
)
from brickwork.grow.stream_summary import Run, Snapshot, summarise

__all__ = ["StreamContext", "StreamTask", "facts_of", "run_stream", "write_study"]


def run_stream(
    context: StreamContext,
    tasks: Sequence[StreamTask],
    *,
    strategy: str,
    options: Mapping[str, Any] | None = None,
    background: Mapping[str, Examples] | None = None,
    label: str = "",
) -> StreamResult:
    """Learn tasks one after the other, and measure all of them before the first and after each.

    The base is as it was afterwards, to the bit. Equal seeds give equal results on one machine.

    Args:
        context: the base, the recipe, and what the strategy needs.
        tasks: in the order in which they are learned.
        strategy: a row of STRATEGIES.
        options: of the strategy.
        background: the base's own functionalities: what it must not forget.
        label: how the run is called; empty: the strategy with its options.

    Raises:
        GrowthError: if the tasks do not make a stream, or the context lacks something.
        UnknownNameError: if there is no such strategy.
        ConfigurationError: if an option is not valid.
        DataError: if a task has nothing to learn from or to be measured on.
    """
    given, own = dict(options or {}), dict(background or {})
    _require_stream(tasks, own)
    row = find_strategy(strategy)
    settings = row.parse(given)
    began = time.perf_counter()
    with row.start(context, settings) as learner:
        snapshots, costs = _learn(learner, tasks, own)
    learning = sum(cost.seconds for cost in costs)
    run = Run(
        strategy,
        label or ", ".join([strategy, *(f"{name} {value}" for name, value in given.items())]),
        settings.model_dump(mode="json"),
        costs,
        time.perf_counter() - began - learning,
        context.recipe.seed,
    )
    return summarise(snapshots, run)


def facts_of(task: StreamTask) -> TaskFacts:
    """What the document says of a task."""
    return TaskFacts(
        name=task.name,
        functionality=task.functionality,
        text=task.text,
        train=len(task.train),
        test=len(task.test),
        test_tokens=sum(len(one.ids) - one.response_start for one in task.test),
    )


def write_study(study: StreamStudy, folder: Path) -> Path:
    """Write the document whole, in place of an older one, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / STREAM_FILE, json_bytes(STREAM_FILE, study.model_dump(mode="json")))
    return folder / STREAM_FILE


def _learn(
    learner: Learner, tasks: Sequence[StreamTask], background: Mapping[str, Examples]
) -> tuple[list[Snapshot], list[StepCost]]:
    snapshots, costs = [_measure(learner, tasks, background)], []
    for task in tasks:
        start = time.perf_counter()
        learner.learn(task)
        seconds, added = time.perf_counter() - start, learner.added
        costs.append(StepCost(parameters=added.parameters, flops=added.flops, seconds=seconds))
        snapshots.append(_measure(learner, tasks, background))
    return snapshots, costs


def _measure(
    learner: Learner, tasks: Sequence[StreamTask], background: Mapping[str, Examples]
) -> Snapshot:
    return Snapshot(
        {task.name: learner.answers(task.examples, task.name) for task in tasks},
        {name: learner.answers(examples, None) for name, examples in background.items()},
    )


def _require_stream(tasks: Sequence[StreamTask], background: Mapping[str, Examples]) -> None:
    names = [*(task.name for task in tasks), *background]
    if not tasks or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), "")
        raise GrowthError(
            f"a stream of {len(tasks)} tasks beside {len(background)} functionalities was asked "
            f"for{f', with {twice!r} in it twice' if twice else ''}; give at least one task, and "
            "everything a name of its own."
        )
    for task in tasks:
        if not (task.train and task.prompts):
            raise DataError(
                f"the task {task.name!r} has {len(task.train)} training examples and "
                f"{len(task.prompts)} instructions; give at least one of each."
            )
        require_responses(task.train)
        require_responses(task.examples.sequences)
