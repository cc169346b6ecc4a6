"""What a row of METHODS says: how a merge method is called, what it needs, and who wrote it up."""

import importlib
import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from brickwork.combine.operands import Combine, Operands

Value = float | bool | str


@dataclass(frozen=True)
class Parameter:
    """One setting of a method.

    Attributes:
        name: as recipes write it.
        scope: ``shared``: one value for a tensor; ``operand``: one for each operand.
        kind: what the value is; a ``count`` is a whole number.
        default: used where a recipe says nothing; None: a recipe must say it.
        meaning: one line for people, with unit and range.
        ignored: accepted, as recipes for mergekit have it, but of no effect and not passed on.
    """

    name: str
    scope: Literal["shared", "operand"]
    kind: Literal["number", "count", "switch", "word"]
    default: Value | None
    meaning: str
    ignored: bool = False

    @property
    def argument(self) -> str:
        """The name as an argument of the method's function (``lambda`` gets an underscore)."""
        return f"{self.name}_" if keyword.iskeyword(self.name) else self.name


@dataclass(frozen=True)
class Method:
    """One row of METHODS.

    Attributes:
        name: as recipes write it.
        meaning: one line for people.
        target: ``"module:function"`` that prepares a merge.
        base: ``required``: operands are compared with it; ``optional``; ``operand``: a base, if
            the recipe names one, is an operand like the others.
        least: fewest operands, not counting a base that is not one.
        most: most operands; None: any number.
        parameters: its settings.
        source: the paper.
        random: whether it draws random numbers.
        statistics: the kind of statistics that each operand must bring; empty: none.
        alone: what becomes of a tensor that only one of several models holds (an optional one,
            such as an output head): ``merge``: what the method makes of it, or its refusal;
            ``copy``: the tensor itself; ``copy_base``: the same, if the one is the base;
            ``copy_base_or_skip``: as ``copy_base``, and the output leaves the tensor out if
            there are fewer operands than ``least``.
    """

    name: str
    meaning: str
    target: str
    base: Literal["required", "optional", "operand"]
    least: int
    most: int | None
    parameters: tuple[Parameter, ...]
    source: str
    random: bool = False
    statistics: Literal["", "fisher", "gram"] = ""
    alone: Literal["merge", "copy", "copy_base", "copy_base_or_skip"] = "merge"

    def prepare(self, operands: Operands, values: Mapping[str, Any]) -> Combine:
        """What each piece becomes.

        Args:
            operands: of a number that the row allows.
            values: every parameter by its name; those of the scope ``operand`` as tuples.
        """
        module, _, function = self.target.partition(":")
        prepare = getattr(importlib.import_module(module), function)
        combine: Combine = prepare(
            operands, **{p.argument: values[p.name] for p in self.parameters if not p.ignored}
        )
        return combine
