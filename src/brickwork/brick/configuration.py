"""A configuration: which model an instruction should run on, as a document."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from brickwork.brick.brick import canonical_json
from brickwork.brick.spec import NAME_PATTERN, Finite, explain
from brickwork.errors import ConfigurationError

Reference = Annotated[
    str,
    StringConstraints(
        pattern=rf"^(?:{NAME_PATTERN}(?:@[1-9][0-9]{{0,8}})?|sha256:[0-9a-f]{{64}})\z",
        max_length=100,
    ),
]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BrickUse(_Document):
    """One brick of a configuration: its name in the store (``fr-en``, ``fr-en@2``, or
    ``sha256:...``), and how strongly it acts (1 as built, 0 not at all, negative the other way).
    """

    name: Reference
    weight: Finite = 1.0


class Options(_Document):
    """How to generate. A temperature of 0 takes the likeliest token each time."""

    max_new_tokens: int = Field(64, ge=1, le=1_000_000)
    temperature: Finite = Field(0.0, ge=0, le=100)
    top_p: Finite = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)


class Configuration(_Document):
    """A base model, the bricks that act on it, and how to generate. Empty: the bare base."""

    base: str = Field("reference", min_length=1)
    bricks: tuple[BrickUse, ...] = ()
    options: Options = Options()

    @property
    def hash(self) -> str:
        """sha256 of the content, in hex; equal documents have equal hashes."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()

    def diff(self, other: "Configuration") -> list[str]:
        """Every field in which the two differ, as ``field: this -> that``."""
        mine, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        return [
            f"{field}: {mine.get(field, '(absent)')} -> {theirs.get(field, '(absent)')}"
            for field in sorted(mine.keys() | theirs.keys())
            if mine.get(field, "(absent)") != theirs.get(field, "(absent)")
        ]


def parse_configuration(document: Any, where: str = "the configuration") -> Configuration:
    """A configuration from parsed YAML or JSON.

    Raises:
        ConfigurationError: naming every field that is missing, unknown or out of range.
    """
    try:
        return Configuration.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"{where} is not valid: {explain(error)}.") from None


def read_configuration(path: Path) -> Configuration:
    """The configuration in a YAML or JSON file."""
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    return parse_configuration(document, str(path))


def parse_uses(text: str) -> tuple[BrickUse, ...]:
    """Bricks as written on a command line: ``fr-en``, ``fr-en@2:0.5``, comma-separated.

    >>> [(use.name, use.weight) for use in parse_uses("fr-en@2:0.5,shell")]
    [('fr-en@2', 0.5), ('shell', 1.0)]
    """
    uses = []
    for piece in filter(None, (p.strip() for p in text.split(","))):
        match = re.fullmatch(r"((?:sha256:)?[^:]+)(?::([^:]*))?", piece)
        if not match:
            raise ConfigurationError(f"{piece!r} is not NAME or NAME:WEIGHT.")
        document = {"name": match[1], **({} if match[2] is None else {"weight": match[2]})}
        try:
            uses.append(BrickUse.model_validate(document))
        except ValidationError as error:
            raise ConfigurationError(f"{piece!r} is no brick: {explain(error)}.") from None
    return tuple(uses)


def _flat(document: Any, path: str = "") -> dict[str, Any]:
    if isinstance(document, dict):
        items = [(f"{path}.{key}" if path else str(key), value) for key, value in document.items()]
    elif isinstance(document, list):
        items = [(f"{path}.{index}", value) for index, value in enumerate(document)]
    else:
        return {path: document}
    return {key: leaf for item, value in items for key, leaf in _flat(value, item).items()}
