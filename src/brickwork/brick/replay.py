"""The form that holds instances to train on again: read by whoever trains, never run."""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from torch import Tensor

from brickwork.brick.brick import Brick

LARGEST = 1 << 24  # all whole numbers up to it are float32 numbers
Task = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ReplayOptions(BaseModel):
    """The tasks that the instances are of, by their number in ``task``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]


def replay_problems(brick: Brick) -> list[str]:
    """Numbers that are no token ids, lengths, starts of responses or tasks."""
    tasks = len(ReplayOptions.model_validate(brick.spec.options).tasks)
    found = []
    for site, slots in brick.by_site.items():
        found += [
            f"{site}/{slot}: holds other than whole numbers from 0 to {LARGEST:,}"
            for slot, tensor in slots.items()
            if not _whole(tensor)
        ]
        if found:
            continue
        length, start, task = (slots[slot].double() for slot in ("length", "start", "task"))
        positions = len(slots["ids"])
        if length.sum() != positions or (length < 1).any():
            found.append(
                f"{site}/length: instances of {length.min():g} tokens at least and "
                f"{length.sum():g} in all, for {positions} tokens"
            )
        if (start > length).any():
            found.append(f"{site}/start: a response starts behind the end of its instance")
        if (task >= tasks).any():
            found.append(f"{site}/task: names task {task.max():g} of {tasks}, the first being 0")
    return found


def _whole(tensor: Tensor) -> bool:
    return bool(((tensor == tensor.round()) & (tensor >= 0) & (tensor <= LARGEST)).all())


def instance_tensors(
    ids: list[list[int]], starts: list[int], tasks: list[int]
) -> dict[str, Tensor]:
    """The slots of instances, in float32."""
    return {
        "ids": torch.tensor([token for own in ids for token in own], dtype=torch.float32),
        "length": torch.tensor([len(own) for own in ids], dtype=torch.float32),
        "start": torch.tensor(starts, dtype=torch.float32),
        "task": torch.tensor(tasks, dtype=torch.float32),
    }
