"""How a grown model came to be, and which of its numbers are new: ``brickwork.json`` beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from brickwork.brick.spec import explain
from brickwork.errors import GrowthError
from brickwork.grow.fresh import Fresh
from brickwork.model.export import RECORD


class Step(BaseModel):
    """One growth: its row, its options, and what is promised to stay equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    name: str
    options: Mapping[str, Any]
    seed: int
    keeps: str


class GrowthRecord(BaseModel):
    """What ``brickwork grow`` did.

    Attributes:
        model: name of the old model.
        steps: in their order.
        fresh: entries of the grown model that were added.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: Literal["grow"] = "grow"
    model: str
    steps: Sequence[Step]
    fresh: Sequence[Fresh]


def read_growth(folder: Path) -> GrowthRecord:
    """The record in the folder of a grown model.

    Raises:
        GrowthError: if there is none, or it is damaged.
    """
    try:
        return GrowthRecord.model_validate(json.loads((folder / RECORD).read_text("utf-8")))
    except (OSError, ValueError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else str(error)
        if isinstance(error, FileNotFoundError):  # its own words name places of this machine
            reason = "there is none"
        raise GrowthError(
            f"{folder.name!r} was to be a grown model, but its {RECORD} does not say how it grew "
            f"({reason}); name a folder that a growth has written."
        ) from None
