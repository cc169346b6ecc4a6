"""Which modules a PEFT configuration targets: PEFT's ``check_target_module_exists``.

A pattern from a file is untrusted. It is matched by the engine behind pydantic, whose time is
linear in the text, so that no pattern can keep the process busy; what that engine cannot read
(look-arounds, back-references) is refused.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from brickwork.brick.spec import explain
from brickwork.errors import BrickFormatError

Item = TypeVar("Item", str, int)


class Targets(BaseModel):
    """The fields of a LoRA or IA3 configuration that choose modules."""

    target_modules: str | list[str]
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None

    @property
    def all_linear(self) -> bool:
        """Whether every linear map but the unembedding is meant."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == "all-linear"

    def include(self, path: str) -> bool:
        """Whether PEFT would put the adapter at the module ``path``.

        >>> targets = Targets(target_modules=["q_proj"], layers_to_transform=[1])
        >>> [targets.include(f"model.layers.{layer}.attn.q_proj") for layer in (0, 1)]
        [False, True]
        """
        if self.exclude_modules and names(self.exclude_modules, path):
            return False
        if self.all_linear or path in _listed(self.target_modules):
            return True
        found = names(self.target_modules, path)
        return found and (isinstance(self.target_modules, str) or self._in_chosen_layer(path))

    def _in_chosen_layer(self, path: str) -> bool:
        chosen = _listed(self.layers_to_transform)
        return not chosen or _layer(path, _listed(self.layers_pattern or None)) in chosen


def read_targets(config: Mapping[str, Any]) -> Targets:
    """The targets of a parsed ``adapter_config.json``.

    Raises:
        BrickFormatError: if it names none.
    """
    try:
        return Targets.model_validate(dict(config))
    except ValidationError as error:
        raise BrickFormatError(
            f"the adapter's configuration does not say where it sits: {explain(error)}; "
            "write the names of the modules into it."
        ) from None


def names(wanted: str | list[str], path: str) -> bool:
    """Whether a pattern matches the path, or a list holds it or the end of it."""
    if isinstance(wanted, str):
        return match_pattern(wanted, path)
    return path in wanted or any(path.endswith(f".{name}") for name in wanted)


def match_pattern(pattern: str, path: str) -> bool:
    r"""Whether the pattern matches all of the path.

    >>> match_pattern(r".*\.(q|v)_proj", "h.0.q_proj"), match_pattern("q_proj", "h.0.q_proj")
    (True, False)

    Raises:
        BrickFormatError: if the pattern cannot be matched safely.
    """
    try:
        _matcher(pattern).validate_python(path)
    except ValidationError:
        return False
    return True


def _layer(path: str, above: list[str]) -> int | None:
    """The number that follows one of the names, or else the first name that a number follows."""
    for name in above:
        if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
            raise BrickFormatError(f"layers_pattern {name!r} is not a module's name.")
        if found := re.match(rf"(?:^|.*?\.){name}\.([0-9]+)\.", path):
            return int(found[1])
    found = None if above else re.match(r".*?\.[^.]*\.([0-9]+)\.", path)
    return int(found[1]) if found else None


def _listed(value: Item | list[Item] | None) -> list[Item]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


@lru_cache(maxsize=64)
def _matcher(pattern: str) -> TypeAdapter[str]:
    try:
        return TypeAdapter(Annotated[str, StringConstraints(pattern=rf"^(?:{pattern})\z")])
    except SchemaError:
        raise BrickFormatError(
            f"the pattern {pattern[:200]!r} is not one that can be matched safely; write the "
            "names of the modules into adapter_config.json instead."
        ) from None
