"""From how everything was answered after each task to the numbers of a stream's document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.grow.answering import Answers
from brickwork.grow.stream_results import BaseChange, Served, StepCost, StreamResult
from brickwork.measure.intervals import per_token, resample_counts

RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Snapshot:
    """How everything is answered at one time: the tasks, and the base's functionalities."""

    tasks: Mapping[str, Answers]
    background: Mapping[str, Answers]


@dataclass(frozen=True)
class Run:
    """What a run is called, how it was asked for, and what it took."""

    strategy: str
    label: str
    options: Mapping[str, Any]
    costs: Sequence[StepCost]
    measured_seconds: float
    seed: int


def summarise(snapshots: Sequence[Snapshot], run: Run) -> StreamResult:
    """The document of one run.

    Args:
        snapshots: before the first task, and after each.
        run: the seed is that of the intervals.
    """
    first, last = snapshots[0], snapshots[-1]
    kept = [_kept(first.background[name], last.background[name]) for name in last.background]
    return StreamResult(
        strategy=run.strategy,
        label=run.label,
        options=dict(run.options),
        losses=[[one.loss for one in snapshot.tasks.values()] for snapshot in snapshots],
        accuracies=[[one.accuracy for one in snapshot.tasks.values()] for snapshot in snapshots],
        base_losses=[[one.loss for one in s.background.values()] for s in snapshots],
        base={
            name: _change([first.background[name]], [last.background[name]], run.seed)
            for name in last.background
        },
        overall=_change(list(first.background.values()), list(last.background.values()), run.seed)
        if last.background
        else None,
        served=_served(last),
        untouched=sum(untouched for untouched, _ in kept),
        moved=sum(moved for _, moved in kept),
        costs=list(run.costs),
        measured_seconds=run.measured_seconds,
    )


def _change(before: Sequence[Answers], after: Sequence[Answers], seed: int) -> BaseChange:
    """The same instances before and after, of one functionality or of several together."""
    old, new = (torch.cat([one.nats for one in side]) for side in (before, after))
    tokens = torch.cat([one.tokens for one in before])
    generator = torch.Generator().manual_seed(seed)
    counts: Float[Tensor, "resamples samples"] = resample_counts(len(old), RESAMPLES, generator)
    return BaseChange(
        instances=len(old),
        before=per_token(old, tokens, counts),
        change=per_token(new - old, tokens, counts),
    )


def _kept(before: Answers, after: Answers) -> tuple[int, int]:
    """How many the base alone answered in the end, and how many of these moved by any bit."""
    if after.served is None:
        return 0, 0
    alone = torch.tensor([name is None for name in after.served])
    return int(alone.sum()), int((before.nats != after.nats)[alone].sum())


def _served(snapshot: Snapshot) -> dict[str, Served]:
    everything = {**snapshot.background, **snapshot.tasks}
    return {
        name: _count(name if name in snapshot.tasks else None, answers.served)
        for name, answers in everything.items()
        if answers.served is not None
    }


def _count(task: str | None, served: Sequence[str | None]) -> Served:
    none = sum(name is None for name in served)
    own = 0 if task is None else sum(name == task for name in served)
    return Served(prompts=len(served), own=own, other=len(served) - own - none, none=none)
