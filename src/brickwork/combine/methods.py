"""METHODS: every way to make one tensor of several, and ``merge_tensors``, which applies one.

A row names the function that prepares a merge: it takes ``Operands`` and the parameters by name,
measures what it must in passes over the pieces, and returns what each piece becomes. An outside
package adds rows through the entry-point group ``brickwork.merge_methods``.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from brickwork.brick.tables import collect_rows, find_row
from brickwork.combine.method import Method, Parameter
from brickwork.combine.operands import Operands, TensorSource, matrix_shape
from brickwork.combine.rows import ROWS
from brickwork.errors import MergeError, UnknownNameError

__all__ = ["Method", "Parameter", "find_method", "merge_tensors", "methods", "require_count"]


@cache
def methods() -> Mapping[str, Method]:
    """All rows by name, those of installed packages included."""
    return collect_rows(ROWS, "brickwork.merge_methods", "merge method", MergeError)


def find_method(name: str) -> Method:
    """The row of that name, or an error that lists the nearest names."""
    return find_row(methods(), "merge method", name)


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
        A tensor of the same shape, in the dtype of the first operand (or of the base, if there
        is nothing else).

    Raises:
        MergeError: if shapes differ, a parameter is missing, or a value is not finite.
        UnknownNameError: if the method, or a parameter of it, does not exist.

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
    if statistics and (not row.statistics or len(statistics) != len(tensors)):
        wanted = f"{len(tensors)}, or none" if row.statistics else "none"
        raise MergeError(
            f"{method} got {len(statistics)} statistics for {len(tensors)} operands; give {wanted}."
        )
    operands = Operands(
        "tensor",
        [TensorSource(t) for t in tensors],
        list(keys) if keys is not None else [str(n) for n in range(len(tensors))],
        None if base is None else TensorSource(base),
        [TensorSource(s) for s in statistics],
        seed,
    )
    combine = row.prepare(operands, _complete(row, parameters, len(tensors)))
    dtype = (tensors[0] if tensors or base is None else base).dtype
    result = torch.empty(matrix_shape(operands.shape), dtype=dtype)
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
