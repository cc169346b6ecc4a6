"""What ``brickwork grow task`` reads: tasks, and what the base can do without them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.inputs import read_labelled

if TYPE_CHECKING:
    from brickwork.cli.grow_data import Pair
    from brickwork.grow.answering import Examples
    from brickwork.grow.strategy import StreamTask
    from brickwork.model.load import LoadedModel


@dataclass(frozen=True, eq=False)
class Stream:
    """The tasks in their order, and the base's own functionalities.

    ``background`` is what must not be forgotten, ``known`` other instances of the same, for routers
    and memories.
    """

    tasks: "tuple[StreamTask, ...]"
    background: "dict[str, Examples]"
    known: "dict[str, list[Pair]]"


def read_stream(
    loaded: "LoadedModel", asked: Sequence[str], data: str | None, options: Mapping[str, Any]
) -> Stream:
    """The tasks of ``--task`` and the functionalities of ``--data``, each parted in two.

    Args:
        loaded: the model, or its outline, with its tokenizer.
        asked: ``NAME=FILE``, in the order of learning.
        data: labelled instances of what the base can do.
        options: ``mapping``, ``instances``, ``evaluation``, ``longest`` and ``seed``.

    Raises:
        ConfigurationError: if a name is none for a brick, or there is no file.
        DataError: if a file cannot be read, or is too small to be parted.
    """
    from brickwork.cli.grow_data import Parted, part

    files = [_named(one) for one in asked]
    tasks = tuple(_task(loaded, name, file, options) for name, file in files)
    found = part(loaded, read_labelled(data, options), options) if data else Parted()
    background = {name: _examples(own) for name, own in sorted(found.measured.items())}
    return Stream(tasks, background, dict(sorted(found.train.items())))


def _named(asked: str) -> tuple[str, Path]:
    from brickwork.brick.spec import NAME_PATTERN
    from brickwork.errors import ConfigurationError

    name, _, file = asked.partition("=")
    if not re.fullmatch(NAME_PATTERN, name) or not file:
        raise ConfigurationError(
            f"--task {asked!r} was given; write NAME=FILE, and name the task as its brick shall "
            "be called: small letters, digits, '-', '_' and '.'."
        )
    return name, Path(file)


def _task(loaded: "LoadedModel", name: str, file: Path, options: Mapping[str, Any]) -> "StreamTask":
    from brickwork.cli.carve_inputs import read_examples
    from brickwork.cli.grow_data import part, sequences_of
    from brickwork.grow.strategy import StreamTask

    read = read_examples(file)
    given = {instance.functionality for instance in read} - {"examples"}
    # One task is parted as one, whatever its instances are labelled.
    parted = part(loaded, [replace(one, functionality=name) for one in read], options)
    train, measured = parted.train[name], parted.measured[name]
    prompts = tuple(prompt for prompt, _ in train)
    return StreamTask(
        name=name,
        functionality=", ".join(sorted(given)) or name,
        text=prompts[0].strip().split("\n")[0] if prompts else "",
        prompts=prompts,
        train=tuple(sequences_of(train)),
        test=tuple(sequences_of(measured)),
        test_prompts=tuple(prompt for prompt, _ in measured),
    )


def _examples(pairs: "Sequence[Pair]") -> "Examples":
    from brickwork.cli.grow_data import sequences_of
    from brickwork.grow.answering import Examples

    return Examples(tuple(prompt for prompt, _ in pairs), tuple(sequences_of(pairs)))
