"""Which numbers of a grown model are new: those that may be trained while the old ones rest."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, NonNegativeInt
from torch import Tensor, nn

from brickwork.errors import ConfigurationError

Span = tuple[NonNegativeInt, NonNegativeInt]


class Fresh(BaseModel):
    """Entries of a parameter that growth has added.

    Attributes:
        parameter: its path in the grown model.
        axis: the axis that ``spans`` count along; None: the whole parameter is new.
        spans: first entry, and the one after the last, of each run of new entries.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameter: str
    axis: NonNegativeInt | None = None
    spans: tuple[Span, ...] = ()


def spans_of(entries: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    """The runs of true entries.

    >>> spans_of([False, True, True, False, True])
    ((1, 3), (4, 5))
    """
    found: list[tuple[int, int]] = []
    for place, new in enumerate(entries):
        if new and found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        elif new:
            found.append((place, place + 1))
    return tuple(found)


def fresh_masks(
    model: nn.Module, fresh: Iterable[Fresh]
) -> Mapping[str, Bool[Tensor, "..."] | None]:
    """For each parameter with new entries, a mask that is True where an entry is new.

    An entry is new if any of its axes is new there. None stands for a parameter that is new as a
    whole. Masks are views over few numbers: as large as the parameter only in shape.

    Raises:
        ConfigurationError: if the model has no such parameter, or it is too small.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    grouped: dict[str, list[Fresh]] = defaultdict(list)
    for entry in fresh:
        grouped[entry.parameter].append(entry)
    problem = next((e for own in grouped.values() for e in own if not _fits(e, shapes)), None)
    if problem is not None:
        raise ConfigurationError(
            f"the new entries {problem.spans} on axis {problem.axis} of {problem.parameter!r} were "
            f"named, but this model has {tuple(shapes.get(problem.parameter, ())) or 'no such'} "
            "there; name the model that the growth wrote."
        )
    return {name: _mask(shapes[name], own) for name, own in grouped.items()}


def _fits(entry: Fresh, shapes: Mapping[str, Any]) -> bool:
    shape = shapes.get(entry.parameter)
    if shape is None or entry.axis is None:
        return shape is not None
    return entry.axis < len(shape) and all(a < b <= shape[entry.axis] for a, b in entry.spans)


def _mask(shape: Sequence[int], entries: Iterable[Fresh]) -> Bool[Tensor, "..."] | None:
    mask: Tensor = torch.zeros([1] * len(shape), dtype=torch.bool)
    for entry in entries:
        if entry.axis is None:
            return None
        line = torch.zeros(shape[entry.axis], dtype=torch.bool)
        for first, last in entry.spans:
            line[first:last] = True
        mask = mask | line.view([-1 if a == entry.axis else 1 for a in range(len(shape))])
    return mask.expand(*shape)
