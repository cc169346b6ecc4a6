"""An edit: a brick that teaches facts, and the record of how it came to be.

On disk an edit is a folder: ``brick/`` (for linear edits also a PEFT adapter), ``edit.json`` and
``keys.safetensors``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, JsonValue
from torch import Tensor

from brickwork.brick.base import Fingerprint
from brickwork.brick.brick import Brick
from brickwork.update.words import Place


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TaughtFact(_Document):
    """A fact that an edit teaches."""

    id: str
    subject: str
    prompt: str
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
    """

    brick: Brick
    record: EditRecord
    keys: Mapping[str, Float[Tensor, "facts in"]]
