"""Consolidation: the bricks of several tasks become one, and what that costs each task."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.errors import GrowthError
from brickwork.grow.answering import RowLogits, row_answers
from brickwork.grow.strategy import StreamTask
from brickwork.grow.stream_results import ConsolidatedTask, Consolidation
from brickwork.measure.updates import brick_updates, sites_of

# One brick from several, under a name.
Merge = Callable[[Sequence[Brick], str], Brick]


@dataclass(frozen=True, eq=False)
class Consolidated:
    """The bricks by task, several tasks having the same one, and what it costs."""

    bricks: Mapping[str, Brick]
    document: Consolidation


def consolidate(
    bricks: Mapping[str, Brick],
    groups: Mapping[str, Sequence[str]],
    merge: Merge,
    *,
    tasks: Sequence[StreamTask],
    logits: RowLogits,
) -> Consolidated:
    """Merge the bricks of each group, and measure every task before and after.

    Args:
        bricks: by task.
        groups: tasks by the name of the brick that they get together; a task that is in none
            keeps its own.
        merge: how several bricks become one.
        tasks: with their test examples; those of the bricks, in any order.
        logits: the base with bricks.

    Raises:
        GrowthError: if a group is of tasks that have no brick or are in another one, or is of
            fewer than two, or a brick has no task to measure it by.
    """
    _require_groups(bricks, groups)
    known = {task.name: task for task in tasks}
    missing = sorted(set(bricks) - set(known))
    if missing:
        raise GrowthError(
            f"the bricks of {', '.join(missing)} were to be consolidated, but no such task was "
            "given to measure them by; give the StreamTask of every brick."
        )
    after = dict(bricks)
    for name, members in groups.items():
        after |= dict.fromkeys(members, merge([bricks[task] for task in members], name))
    group_of = {task: name for name, members in groups.items() for task in members}

    def loss(task: str, brick: Brick | None) -> float:
        sequences = known[task].test
        chosen = [() if brick is None else (brick,)] * len(sequences)
        return row_answers(logits, sequences, chosen).loss

    rows = [
        ConsolidatedTask(
            name=task, group=group_of.get(task, ""), base=loss(task, None),
            before=loss(task, bricks[task]), after=loss(task, after[task]),
        )
        for task in bricks
    ]  # fmt: skip
    return Consolidated(
        after,
        Consolidation(
            tasks=rows,
            parameters_before=_numbers(bricks.values()),
            parameters_after=_numbers(after.values()),
        ),
    )


def similar_groups(bricks: Mapping[str, Brick], least: float) -> dict[str, list[str]]:
    """Tasks whose bricks do alike, as groups of two or more.

    Two bricks are alike if the cosine of their updates, over all sites together, is at least
    ``least``; whoever is alike to one of a group is in it.

    Args:
        bricks: by task, all of one form: LoRAs or vectors.
        least: in (-1, 1].

    Raises:
        GrowthError: if the bricks are of different forms, or there is nothing to compare.
    """
    forms = sorted({brick.spec.form for brick in bricks.values()})
    if len(forms) != 1:
        raise GrowthError(
            f"{len(bricks)} bricks of the forms {', '.join(forms) or 'none'} were to be grouped by "
            "what they do; give bricks of one form, or name the groups."
        )
    names, alike = list(bricks), similarity(list(bricks.values())) >= least
    found: list[list[int]] = []
    for place in range(len(names)):
        near = [group for group in found if alike[place, group].any()]
        joined = [member for group in near for member in group]
        found = [group for group in found if group not in near] + [[*joined, place]]
    several = sorted(sorted(group) for group in found if len(group) > 1)
    return {f"group-{n}": [names[i] for i in group] for n, group in enumerate(several, start=1)}


def similarity(bricks: Sequence[Brick]) -> Float[Tensor, "bricks bricks"]:
    """The cosine of what every two bricks do, over all sites together; 0 for one that does nothing.

    Args:
        bricks: of one form: LoRAs or vectors.
    """
    inner = torch.stack([brick_updates(bricks, site).gram for site in sites_of(bricks)]).sum(0)
    length = inner.diagonal().sqrt()
    return torch.nan_to_num(inner / (length[:, None] * length))


def _require_groups(bricks: Mapping[str, Brick], groups: Mapping[str, Sequence[str]]) -> None:
    members = [task for own in groups.values() for task in own]
    strange = sorted(set(members) - set(bricks))
    twice = sorted({task for task in members if members.count(task) > 1})
    small = sorted(name for name, own in groups.items() if len(own) < 2)
    if strange or twice or small or not groups:
        raise GrowthError(
            f"{len(groups)} groups were to be consolidated, but {', '.join(strange) or 'no task'} "
            f"has no brick, {', '.join(twice) or 'none'} is in two groups, and "
            f"{', '.join(small) or 'none'} has fewer than two tasks; give groups of two or more "
            f"of {', '.join(bricks)}."
        )


def _numbers(bricks: Iterable[Brick]) -> int:
    """Those of all tensors, equal bricks counted once."""
    distinct = {brick.hash: brick for brick in bricks}
    return sum(t.numel() for brick in distinct.values() for t in brick.tensors.values())
