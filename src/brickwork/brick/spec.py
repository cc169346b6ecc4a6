"""The description of a brick: what it is for, which base it fits, how it was made."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from brickwork.brick.base import Fingerprint
from brickwork.errors import BrickFormatError

# A name is also a folder's name, so it never holds '/', '..', a space or a capital.
NAME_PATTERN = r"[a-z0-9]+(?:(?:\.|[_-]+)[a-z0-9]+)*"
Name = Annotated[str, StringConstraints(pattern=rf"^{NAME_PATTERN}\z", max_length=80)]
SitePath = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\z", max_length=500)
]
# Adding 0 turns -0.0 into 0.0: the two are equal, so they must have equal hashes.
Finite = Annotated[float, Field(allow_inf_nan=False), AfterValidator(lambda number: number + 0.0)]

FUNCTIONALITIES = (
    "Coding", "Math", "Linguistic", "Knowledge", "Translation", "Ethics", "Writing",
)  # fmt: skip


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Function(_Document):
    """What a brick is for: in words, as labels, and by example instructions."""

    text: str = ""
    labels: tuple[str, ...] = ()
    exemplars: tuple[str, ...] = ()


class Metric(_Document):
    """One measured figure: without the brick, with it, and on what."""

    name: str
    before: Finite | None = None
    after: Finite
    unit: str = ""
    data: str = ""


class Lineage(_Document):
    """How a brick came to be: the method with its arguments, the data, and its parents' hashes."""

    method: str = ""
    arguments: dict[str, JsonValue] = {}
    data: str = ""
    parents: tuple[str, ...] = ()


class BrickSpec(_Document):
    """Everything about a brick except its tensors.

    ``options`` holds what the form needs to know (the scaling of a LoRA, say), ``sites`` the
    module paths where the tensors sit, a prefix's in the base's order. ``peft`` keeps the adapter
    configuration of an imported PEFT adapter, so that nothing is lost when it is written again;
    whoever changes the sites, ranks or scaling of such a brick sets it to None.
    """

    name: Name
    form: str
    base: Fingerprint
    sites: tuple[SitePath, ...]
    options: dict[str, JsonValue] = {}
    origin: Literal["emergent", "customized"] = "customized"
    granularity: Literal["neuron", "group", "head", "layer", "model"] = "model"
    function: Function = Function()
    lineage: Lineage = Lineage()
    licence: str = ""
    metrics: tuple[Metric, ...] = ()
    peft: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _can_be_written(self) -> "BrickSpec":
        try:
            json.dumps(self.model_dump(), allow_nan=False, ensure_ascii=False).encode()
        except ValueError as error:
            raise ValueError(f"it cannot be written as JSON ({error})") from None
        return self


def parse_spec(document: Any, where: str) -> BrickSpec:
    """A spec from parsed JSON.

    Raises:
        BrickFormatError: naming every field that is missing, unknown or of the wrong type.
    """
    try:
        return BrickSpec.model_validate(document)
    except ValidationError as error:
        raise BrickFormatError(f"{where} does not describe a brick: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """Every complaint of a validation, each with the dotted path of its field."""
    complaints = [_complaint(item["loc"], item["msg"], item["input"]) for item in error.errors()]
    more = f"; and {len(complaints) - 12} more" if len(complaints) > 12 else ""
    return "; ".join(complaints[:12]) + more


def _complaint(path: tuple[int | str, ...], message: str, found: object) -> str:
    field = ".".join(map(str, path[:8])) or "document"
    value = repr(found) if isinstance(found, str | int | float | None) else ""
    return f"{field}: {message}" + (f", not {value}" if value and len(value) <= 60 else "")
