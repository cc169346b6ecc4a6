"""An edit: a brick that teaches facts, and the record of how it came to be.

On disk an edit is a folder: ``brick/`` (for linear edits also a PEFT adapter), ``edit.json`` and
``keys.safetensors``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from torch import Tensor

from brickwork.brick.base import Fingerprint
from brickwork.brick.brick import Brick
from brickwork.brick.spec import Function
from brickwork.update.words import Place


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TaughtFact(_Document):
    """A fact that an edit teaches."""

    id: str
    subject: str
    prompt: str = Field(min_length=1)
    target: str
    target_true: str = ""
    relation: str = ""
    note: str = ""
    """What is worth knowing, such as that the model did not know the old answer."""


class FailedFact(_Document):
    """A fact that was asked for and is not in the edit."""

    id: str
    reason: str


class StatisticsUsed(_Document):
    """The covariance that an edit was made with."""

    data: str
    tokens: int
    sha256: str


class EditRecord(_Document):
    """How an edit came to be, so that it can be judged, made again, and taken back."""

    format: Literal[1] = 1
    method: str
    options: dict[str, JsonValue]
    seed: int
    layers: tuple[int, ...]
    place: Place
    located: bool
    """Whether causal tracing found the site; else it was asked for."""
    raw: bool
    facts: tuple[TaughtFact, ...]
    failures: tuple[FailedFact, ...] = ()
    owners: tuple[int, ...] | None = None
    """For each row of the brick's tensors the number of the fact that it is for."""
    base: Fingerprint
    statistics: StatisticsUsed | None = None
    depends_on: tuple[str, ...] = ()
    """Hashes of the bricks of the edits that acted when this one was planned, in their order."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A planned edit. The model that it was planned on is as it was.

    Attributes:
        brick: what it does.
        record: how it came to be.
        keys: by site, what the linear map there reads where the facts are recalled.
        id: its name in the ledger; empty where it is in none.
    """

    brick: Brick
    record: EditRecord
    keys: Mapping[str, Float[Tensor, "facts in"]]
    id: str = ""

    @property
    def label(self) -> str:
        """What people call it: its name in the ledger, or the brick's with the hash."""
        return self.id or f"{self.brick.spec.name} ({self.brick.hash[:8]})"


def keys_of(edits: Iterable[Edit]) -> dict[str, Float[Tensor, "keys in"]]:
    """The keys of several edits by site, one below the other in the order of the edits."""
    found: dict[str, list[Tensor]] = {}
    for edit in edits:
        for site, keys in edit.keys.items():
            found.setdefault(site, []).append(keys)
    return {site: torch.cat(parts) for site, parts in found.items()}


def function_of(facts: Sequence[TaughtFact]) -> Function:
    """What a brick that teaches these facts, at least one, is for."""
    return Function(
        text=f"{facts[0].prompt} {facts[0].target}" + (" and more" if len(facts) > 1 else ""),
        labels=("edit",),
        exemplars=tuple(fact.prompt for fact in facts[:8]),
    )
