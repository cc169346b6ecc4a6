"""How to get labelled instances out of the records of a data set: a mapping, as a document.

Shipped mappings lie beside this file; ``mappings/infinity-instruct.yaml`` is the one for the data
of Xiao et al. 2024 (arXiv:2409.02877).
"""

import re
from collections.abc import Iterator
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, model_validator

from brickwork.brick.spec import explain
from brickwork.errors import DataError, UnknownNameError
from brickwork.measure.instances import Instance, instance_of

Name = Annotated[StrictStr, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(min_length=1)]

FILTERED = "left out by `where`"
UNLABELLED = "no functionality"
AMBIGUOUS = "several functionalities"
INCOMPLETE = "no prompt with a response"

_USER = ("human", "user", "prompter")
_ASSISTANT = ("gpt", "assistant", "bot", "model", "chatgpt")


class Mapping(BaseModel):
    """Which fields of a record hold what, and which labels stand for which functionality.

    A field inside another is written with a dot: ``label.ability_en``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    config: Name | None = None
    """Which configuration of the data set to read, if it has several."""
    split: Name = "train"
    prompt: Name | None = None
    response: Name | None = None
    conversation: Name | None = None
    """Instead of prompt and response: a list of messages, of which the first exchange is taken."""
    id: Name | None = None
    task: Name | None = None
    source: Name | None = None
    labels: Names
    """Fields that hold a label or a list of labels."""
    functionalities: Annotated[dict[Name, Names], Field(min_length=2)]
    """The labels of each functionality; case does not matter, ``*`` stands for any characters."""
    where: dict[Name, Names] = {}
    """Fields that must have one of some values."""

    @model_validator(mode="after")
    def _one_way_to_the_texts(self) -> "Mapping":
        flat = (self.prompt is not None, self.response is not None)
        if flat not in ((True, True), (False, False)) or all(flat) == bool(self.conversation):
            raise ValueError("name either prompt and response, or conversation")
        return self

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        return {name: _pattern(labels) for name, labels in self.functionalities.items()}

    def functionalities_of(self, record: dict[str, Any]) -> list[str]:
        """All functionalities that the record's labels stand for."""
        labels = [label for field in self.labels for label in _texts(_value(record, field))]
        return [n for n, p in self._patterns.items() if any(map(p.fullmatch, labels))]

    def instance(self, record: dict[str, Any], where: str) -> Instance | str:
        """The instance in a record, or why there is none: one of the four reasons above.

        Args:
            record: as the data set holds it.
            where: names the record in messages.

        Raises:
            DataError: if a text of the record is no text.
        """
        if any(
            not set(_texts(_value(record, field))) & {value.strip().casefold() for value in values}
            for field, values in self.where.items()
        ):
            return FILTERED
        found = self.functionalities_of(record)
        if len(found) != 1:
            return AMBIGUOUS if found else UNLABELLED
        prompt, response = self._exchange(record)
        if not isinstance(prompt, str) or not prompt.strip() or not isinstance(response, str):
            return INCOMPLETE
        told = {name: getattr(self, name) for name in ("id", "task", "source")}
        named = {name: _value(record, field) for name, field in told.items() if field}
        texts = {"functionality": found[0], "prompt": prompt, "response": response}
        return instance_of(texts | named, where)

    def _exchange(self, record: dict[str, Any]) -> tuple[Any, Any]:
        if self.prompt and self.response:
            return _value(record, self.prompt), _value(record, self.response)
        return _first_exchange(_value(record, self.conversation or ""))


def _pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    pieces = (map(re.escape, label.strip().casefold().split("*")) for label in labels)
    return re.compile("|".join(".*".join(piece) for piece in pieces), re.DOTALL)


def _value(record: Any, field: str) -> Any:
    """What a field holds, the whole name first, then part by part; None if it is not there."""
    if not isinstance(record, dict):
        return None
    if field in record:
        return record[field]
    head, dot, rest = field.partition(".")
    return _value(record.get(head), rest) if dot else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif value is not None:
        yield str(value).strip().casefold()


def _first_exchange(messages: Any) -> tuple[Any, Any]:
    """The first message, system messages aside, if it is the user's, and its answer."""
    if not isinstance(messages, list | tuple) or not all(isinstance(m, dict) for m in messages):
        return None, None
    turns = [
        (str(m.get("from", m.get("role"))).casefold(), m.get("value", m.get("content")))
        for m in messages
    ]
    said = [turn for turn in turns if turn[0] != "system"][:2]
    roles = [role for role, _ in said]
    if len(said) < 2 or roles[0] not in _USER or roles[1] not in _ASSISTANT:
        return None, None
    return said[0][1], said[1][1]


def shipped_mappings() -> dict[str, Path]:
    """The mappings that come with the package, by name."""
    folder = Path(str(files("brickwork.measure"))) / "mappings"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_mapping(mapping: str | Path) -> Mapping:
    """The mapping of that name, or in that file.

    Args:
        mapping: the name of a shipped mapping, or the path of a YAML file.

    Raises:
        UnknownNameError: if there is no such name and no such file.
        DataError: if the file is no mapping; every mistake is named.
    """
    shipped = shipped_mappings()
    path = shipped.get(str(mapping)) or Path(mapping).expanduser()
    if not path.is_file():
        raise UnknownNameError("mapping (or file with one)", str(mapping), shipped)
    try:
        return Mapping.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        mistakes = explain(error) if isinstance(error, ValidationError) else str(error)
        raise DataError(
            f"{path} is no valid mapping: {mistakes}; see the shipped ones: "
            f"{', '.join(map(str, shipped.values()))}."
        ) from None
