"""A recipe's file as plain data: YAML that holds one document, no key twice and no bomb."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from brickwork.errors import ConfigurationError

_MOST_BYTES = 1 << 20
_MOST_DEPTH = 100  # reading brackets inside brackets takes time squared
_MOST_NODES = 100_000  # a few short lines of aliases can stand for billions


def read_document(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigurationError: if the file cannot be read, is too large, holds several documents,
            names a key twice, or is no mapping.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise ConfigurationError(
                f"{path} is larger than {_MOST_BYTES:,} bytes, so it is no recipe; name another."
            )
        return parse_document(raw.decode("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from None


def parse_document(text: str, where: str) -> dict[str, Any]:
    """The mapping that a YAML text holds; see ``read_document``."""
    depths = accumulate((c in "[{") - (c in "]}") for c in text)
    if max(depths, default=0) > _MOST_DEPTH:
        raise ConfigurationError(
            f"{where} opens more than {_MOST_DEPTH} brackets that it does not close; close them."
        )
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        if len(nodes) > 1:
            raise ConfigurationError(
                f"{where} holds {len(nodes)} documents, but a recipe is one; write each into a "
                "file of its own and merge them in turn."
            )
        sizes: dict[int, int] = {}
        if nodes and _size(nodes[0], sizes, where) > _MOST_NODES:
            raise ConfigurationError(
                f"{where} stands for more than {_MOST_NODES:,} values; write it without aliases."
            )
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigurationError(f"{where} is no YAML that can be read: {error}.") from None
    if not isinstance(document, dict):
        raise ConfigurationError(
            f"{where} must be a mapping with keys such as `merge_method` and `models`, but it is "
            f"{'empty' if document is None else 'a ' + type(document).__name__}."
        )
    return document


def _size(node: Any, sizes: dict[int, int], where: str) -> int:
    """How many values a node stands for with its aliases written out; refuses a key twice."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ConfigurationError(f"{where} holds an alias of a value inside itself.")
        return sizes[id(node)]
    sizes[id(node)] = 0
    children: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_twice([key for key, _ in node.value], where)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    sizes[id(node)] = 1 + sum(_size(child, sizes, where) for child in children)
    return sizes[id(node)]


def _refuse_twice(keys: list[Any], where: str) -> None:
    lines: dict[str, int] = {}
    for key in keys:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in lines:
            raise ConfigurationError(
                f"{where} names the key {key.value!r} twice, in lines {lines[key.value]} and "
                f"{line}; keep one."
            )
        lines[key.value] = line
