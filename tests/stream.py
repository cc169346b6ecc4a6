"""Streams of tasks for tests: random tokens, a brick and a router without training."""

from collections.abc import Sequence
from typing import Any

import torch

from brickwork.brick.brick import Brick
from brickwork.grow.answering import Examples
from brickwork.grow.memory import MemoryRecipe, remember
from brickwork.grow.strategy import Router, StreamContext, StreamTask
from brickwork.model.fit import FitRecipe
from brickwork.model.load import LoadedModel
from brickwork.model.train import Encoded
from brickwork.runtime.brick_rows import row_logits
from brickwork.runtime.plan import flops_per_token
from tests.bricks import random_brick

RECIPE = FitRecipe(rate=1e-2, steps=4, tokens_per_batch=64, warm_up=1)
NAMES = ("sums", "verbs")


def sequences(seed: int, count: int) -> tuple[Encoded, ...]:
    """Four to eight random tokens of the tiny vocabulary, two of them the prompt."""
    chance = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (count,), generator=chance).tolist()
    return tuple(
        Encoded(torch.randint(2, 112, (length,), generator=chance).tolist(), 2)
        for length in lengths
    )


def task(name: str, seed: int) -> StreamTask:
    prompts = tuple(f"{name} {number}" for number in range(6))
    own = sequences(seed, 6)
    # Learned and measured on the same: what is learned shows, and there is nothing to generalise.
    return StreamTask(name, "Math", f"Do {name}.", prompts, own, own, prompts)


def tasks() -> list[StreamTask]:
    return [task(name, seed) for seed, name in enumerate(NAMES, start=1)]


def background() -> dict[str, Examples]:
    """Two functionalities of the base; one instruction looks like one of a task."""
    return {
        "Coding": Examples(("code", "more code", "sums of code"), sequences(11, 3)),
        "Ethics": Examples(("right", "wrong"), sequences(12, 2)),
    }


def by_first_word(learned: Sequence[StreamTask]) -> Router:
    """A router that believes the first word."""
    names = {task.name for task in learned}
    return lambda prompts: [w if (w := p.split()[0]) in names else None for p in prompts]


def context(loaded: LoadedModel, **changes: Any) -> StreamContext:
    """A context with everything: random LoRAs as bricks."""

    def build(one: StreamTask, earlier: Sequence[Brick]) -> Brick:
        chance = torch.Generator().manual_seed(len(earlier))
        return random_brick("lora", loaded.base, chance, name=one.name)

    memory = remember(loaded, "before", sequences(21, 6), MemoryRecipe(instances=6))
    given: dict[str, Any] = {
        "memory": memory, "build": build, "router": by_first_word, "logits": row_logits(loaded),
        "brick_flops": lambda brick: flops_per_token(brick, loaded),
    }  # fmt: skip
    return StreamContext(loaded, RECIPE, **(given | changes))
