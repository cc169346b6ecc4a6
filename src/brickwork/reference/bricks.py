"""Train the built-in bricks: ``brickwork reference bricks``.

Each brick is a LoRA on a task that the base model has not seen. A tenth of the task's examples,
at most 200, is held out; the losses and the share of exact answers before and after, on these,
go into the brick's metrics.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from brickwork.brick.brick import Brick
from brickwork.brick.configuration import BrickUse, Configuration, Options
from brickwork.brick.folder import write_brick
from brickwork.brick.spec import Function, Metric
from brickwork.build.task import About, build_task
from brickwork.errors import UnknownNameError
from brickwork.measure.instances import Instance
from brickwork.model.load import LoadedModel, load_model
from brickwork.reference.paths import NAME
from brickwork.reference.tasks import TASKS, Task
from brickwork.reference.tokenizer import encode_instances
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.score import mean_loss

EXEMPLARS = 12
ROWS = 20


def build(task: Task, loaded: LoadedModel, data: Path, report: Callable[[str], None]) -> Brick:
    """The brick of one task, trained, rounded to bfloat16 and measured."""
    held_out, train = split(task.examples(data))
    tokenizer, longest = loaded.tokenizer, 256
    assert tokenizer is not None
    exemplars = tuple(i.prompt for i in train[:EXEMPLARS])
    about = About(
        task.name,
        Function(text=task.text, labels=(task.functionality,), exemplars=exemplars),
        f"{task.source}; {len(train)} examples, {len(held_out)} held out",
        "Apache-2.0",
    )
    sequences = encode_instances(tokenizer, train, longest)
    brick = build_task(loaded, sequences, task.recipe, about, step_report(task.name, report))
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in brick.tensors.items()}
    brick = Brick(brick.spec, rounded)
    metrics = measure(brick, loaded, held_out)
    return Brick(brick.spec.model_copy(update={"metrics": metrics}), brick.tensors)


def step_report(name: str, report: Callable[[str], None]) -> Callable[[int, int, float], None]:
    """Every fiftieth step, and the last, as a line for people."""

    def at_step(step: int, steps: int, loss: float) -> None:
        if step % 50 == 0 or step == steps:
            report(f"{name}: step {step}/{steps} loss {loss:.3f}")

    return at_step


def split(examples: Sequence[Instance]) -> tuple[list[Instance], list[Instance]]:
    """Held-out examples (a tenth, at most 200) and the others, in an order that is always so."""
    order = list(examples)
    random.Random(1).shuffle(order)
    count = min(200, len(order) // 10)
    return order[:count], order[count:]


def measure(brick: Brick, loaded: LoadedModel, held_out: Sequence[Instance]) -> tuple[Metric, ...]:
    """Loss on held-out responses, and the share answered word for word, before and after."""
    model = ConfiguredModel(loaded)
    model.add(brick)
    options = Options(max_new_tokens=64)
    bare = Configuration(options=options)
    with_brick = bare.model_copy(update={"bricks": (BrickUse(name=brick.spec.name),)})
    losses, exact = [], []
    for configuration in (bare, with_brick):
        losses.append(mean_loss(model, held_out_ids(loaded, held_out), configuration))
        right = 0
        for start in range(0, len(held_out), ROWS):
            some = held_out[start : start + ROWS]
            answers = model.generate([i.prompt for i in some], [configuration] * len(some))
            right += sum(
                a.text.strip() == i.response.strip() for a, i in zip(answers, some, strict=True)
            )
        exact.append(right / len(held_out))
    data = f"{len(held_out)} held-out examples of its task"
    return (
        Metric(
            name="response loss", before=losses[0], after=losses[1], unit="nats/token", data=data
        ),
        Metric(name="exact answers", before=exact[0], after=exact[1], unit="share", data=data),
    )


def held_out_ids(
    loaded: LoadedModel, instances: Sequence[Instance]
) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of each instance as token ids."""
    assert loaded.tokenizer is not None
    encoded = encode_instances(
        loaded.tokenizer, instances, loaded.model.config.max_position_embeddings
    )
    return [(e.ids[: e.response_start], e.ids[e.response_start :]) for e in encoded]


def build_all(
    data: Path, model: Path, folder: Path, names: Sequence[str], report: Callable[[str], None]
) -> list[Brick]:
    """Build the named bricks (all if there are none) and write a folder for each.

    Raises:
        UnknownNameError: if a name is not among the tasks.
    """
    table = {task.name: task for task in TASKS}
    for name in names:
        if name not in table:
            raise UnknownNameError("built-in task", name, table)
    loaded = load_model(str(model), dtype="float32", device="cpu", name=NAME)
    bricks = []
    for name in names or table:
        brick = build(table[name], loaded, data, report)
        write_brick(brick, folder / name, replace=True)
        bricks.append(brick)
        for m in brick.spec.metrics:
            report(f"{name}: {m.name} {m.before:.3f} -> {m.after:.3f}")
    return bricks
