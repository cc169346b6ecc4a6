"""What continued training and streams of tasks read: instances to learn from and to measure on."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from brickwork.cli.console import stderr_console

if TYPE_CHECKING:
    from brickwork.measure.instances import Instance
    from brickwork.model.load import LoadedModel
    from brickwork.model.train import Encoded

# What a person wrote, and the same as tokens.
Pair = tuple[str, "Encoded"]


@dataclass
class Parted:
    """Instances by functionality: those to learn from, and those that losses are measured on.

    No prompt is on both sides, also not of different functionalities.
    """

    train: dict[str, list[Pair]] = field(default_factory=lambda: defaultdict(list))
    measured: dict[str, list[Pair]] = field(default_factory=lambda: defaultdict(list))


def part(
    loaded: "LoadedModel", instances: "Sequence[Instance]", options: Mapping[str, Any]
) -> Parted:
    """Hold out a fifth of each functionality at most, drawn at random.

    Args:
        loaded: the model, or its outline, with its tokenizer.
        instances: any number.
        options: ``evaluation``, ``longest`` and ``seed``.

    Raises:
        DataError: if a functionality has fewer than two different prompts.
    """
    from brickwork.measure.instances import encode_instances

    encoded = encode_instances(loaded, instances, options["longest"]).sequences
    pairs = [(i, s) for i, s in zip(instances, encoded, strict=True) if s is not None]
    if left_out := len(instances) - len(pairs):
        stderr_console().print(f"{left_out} instances are too long or empty", markup=False)
    prompts: dict[str, list[str]] = {instance.functionality: [] for instance in instances}
    for instance, _ in pairs:
        prompts[instance.functionality].append(instance.prompt)
    held = {text for name, own in prompts.items() for text in _held_out(name, own, options)}
    found = Parted()
    for instance, sequence in pairs:
        side = found.measured if instance.prompt in held else found.train
        side[instance.functionality].append((instance.prompt, sequence))
    return found


def sequences_of(pairs: Iterable[Pair]) -> "list[Encoded]":
    """The tokens of each."""
    return [sequence for _, sequence in pairs]


def _held_out(name: str, prompts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    import torch

    from brickwork.errors import DataError

    different = sorted(set(prompts))
    if len(different) < 2:
        raise DataError(
            f"{name!r} has {len(prompts)} instances, {len(different)} of them with prompts of "
            "their own; some are learned from and others measured on, so give at least two, "
            "better hundreds."
        )
    order = torch.randperm(len(different), generator=torch.Generator().manual_seed(options["seed"]))
    count = max(1, min(options["evaluation"], len(different) // 5))
    return [different[place] for place in order[:count].tolist()]
