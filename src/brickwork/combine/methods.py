"""METHODS: every way to make one tensor of several, and ``merge_tensors``, which applies one.

A row names the function that prepares a merge: it takes ``Operands`` and the parameters by name,
measures what it must in passes over the pieces, and returns what each piece becomes. An outside
package adds rows through the entry-point group ``brickwork.merge_methods``.
"""

import importlib
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

import torch
from torch import Tensor

from brickwork.combine.operands import Combine, Operands, TensorSource, matrix_shape
from brickwork.errors import MergeError, UnknownNameError

Value = float | bool | str


@dataclass(frozen=True)
class Parameter:
    """One setting of a method.

    Attributes:
        name: as recipes write it.
        scope: ``shared``: one value for a tensor; ``operand``: one for each operand.
        kind: what the value is.
        default: used where a recipe says nothing; None: a recipe must say it.
        meaning: one line for people, with unit and range.
    """

    name: str
    scope: Literal["shared", "operand"]
    kind: Literal["number", "switch", "word"]
    default: Value | None
    meaning: str

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

    def prepare(self, operands: Operands, values: Mapping[str, Any]) -> Combine:
        """What each piece becomes.

        Args:
            operands: of a number that the row allows.
            values: every parameter by its name; those of the scope ``operand`` as tuples.
        """
        module, _, function = self.target.partition(":")
        prepare = getattr(importlib.import_module(module), function)
        combine: Combine = prepare(
            operands, **{p.argument: values[p.name] for p in self.parameters}
        )
        return combine


_WEIGHT = Parameter("weight", "operand", "number", None, "factor of this model; any sign")

_ROWS = (
    Method(
        "linear", "weighted average (model soup)", "brickwork.combine.linear:linear",
        "operand", 1, None,
        (
            _WEIGHT,
            Parameter("normalize", "shared", "switch", True, "divide by the sum of the weights"),
        ),
        "Wortsman et al. 2022, arXiv:2203.05482",
    ),
)  # fmt: skip


@cache
def methods() -> Mapping[str, Method]:
    """All rows by name, those of installed packages included."""
    rows = {row.name: row for row in _ROWS}
    for entry in entry_points(group="brickwork.merge_methods"):
        row = entry.load()
        if row.name in rows:
            raise MergeError(f"two packages define the merge method {row.name!r}; remove one.")
        rows[row.name] = row
    return rows


def find_method(name: str) -> Method:
    """The row of that name, or an error that lists the nearest names."""
    if name not in methods():
        raise UnknownNameError("merge method", name, methods())
    return methods()[name]


def merge_tensors(
    method: str,
    tensors: Sequence[Tensor],
    *,
    base: Tensor | None = None,
    statistics: Sequence[Tensor] = (),
    keys: Sequence[str] | None = None,
    seed: int = 0,
    **parameters: Any,
) -> Tensor:
    """Merge tensors in memory by a method of the table.

    The arithmetic is in float32 (float64 if an operand is), and is rounded once.

    Args:
        method: the name of a row.
        tensors: the operands, of one shape.
        base: what they were fine-tuned from.
        statistics: one for each operand, if the method weighs by them.
        keys: names of the operands, which their random numbers depend on.
        seed: of every random choice.
        **parameters: the method's, by name; one number for all operands, or one for each.

    Returns:
        A tensor of the same shape, in the dtype of the first operand.

    Raises:
        MergeError: if shapes differ, a parameter is missing or unknown, or a value is not finite.

    >>> merge_tensors("linear", [torch.zeros(2), torch.ones(2)], weight=[1, 3])
    tensor([0.7500, 0.7500])
    """
    row = find_method(method)
    if base is not None and row.base == "operand":
        tensors, base = [*tensors, base], None
    shapes = {tuple(t.shape) for t in (*tensors, *(() if base is None else (base,)))}
    if len(shapes) != 1:
        raise MergeError(f"{method} needs tensors of one shape, got {sorted(shapes)}.")
    require_count(row, len(tensors), base is not None)
    operands = Operands(
        "tensor",
        [TensorSource(t) for t in tensors],
        list(keys) if keys is not None else [str(n) for n in range(len(tensors))],
        None if base is None else TensorSource(base),
        [TensorSource(s) for s in statistics],
        seed,
    )
    combine = row.prepare(operands, _complete(row, parameters, len(tensors)))
    result = torch.empty(matrix_shape(operands.shape), dtype=tensors[0].dtype)
    for piece in operands.pieces():
        result[piece.start : piece.stop] = combine(piece)
    return result.reshape(operands.shape)


def require_count(row: Method, operands: int, has_base: bool) -> None:
    """Refuse a number of operands, or a base, that the method cannot work with.

    Raises:
        MergeError: with what the method needs.
    """
    if row.base == "required" and not has_base:
        raise MergeError(f"{row.name} needs a base, and there is none; name it as `base_model`.")
    if operands < row.least or (row.most is not None and operands > row.most):
        wanted = f"{row.least}" if row.most == row.least else f"at least {row.least}"
        if row.most not in (None, row.least):
            wanted += f" and at most {row.most}"
        beside = " beside the base" if row.base != "operand" and has_base else ""
        raise MergeError(f"{row.name} needs {wanted} operands{beside}, but there are {operands}.")


def _complete(row: Method, given: Mapping[str, Any], operands: int) -> dict[str, Any]:
    """Every parameter of the row: as given, or its default; one for each operand as a tuple."""
    known = {p.name for p in row.parameters}
    for name in given:
        if name not in known:
            raise UnknownNameError(f"parameter of {row.name}", name, known)
    values: dict[str, Any] = {}
    for parameter in row.parameters:
        value = given.get(parameter.name, parameter.default)
        if value is None:
            raise MergeError(f"{row.name} needs the parameter {parameter.name!r}; give it.")
        if parameter.scope == "operand":
            value = tuple(value) if isinstance(value, list | tuple) else (value,) * operands
            if len(value) != operands:
                raise MergeError(
                    f"{row.name}: {len(value)} values of {parameter.name!r} for {operands} "
                    "operands; give one for each."
                )
        values[parameter.name] = value
    return values
