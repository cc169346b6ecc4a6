"""The options of ``brickwork grow width`` and its like, from the fields of the rows of a part."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from brickwork.grow.growths import GrowthRow

_ROW = "row_"  # what the destination of a row's option begins with


class PartCommand(click.Command):
    """A command that has, beside its own options, ``--by`` and those of all rows of a part.

    ``part`` is what grows, ``others`` are ways to it besides the rows. Rows are read when the
    options are, not when the command is made.
    """

    part: str = ""
    others: tuple[str, ...] = ()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """``--by``, the options of the rows, and its own."""
        argument, *own = super().get_params(ctx)
        return [argument, *self._of_rows, *own]

    @cached_property
    def _of_rows(self) -> list[click.Option]:
        rows = rows_of(self.part)
        by = click.Option(
            ["--by"], type=click.Choice([*rows, *self.others]), default=next(iter(rows)),
            help="; ".join(f"{row.name}: {row.meaning}" for row in rows.values()),
        )  # fmt: skip
        return [by, *_options_of(rows)]


def rows_of(part: str) -> "Mapping[str, GrowthRow]":
    """The rows of a part by name, in their order."""
    from brickwork.grow.growths import growths

    return {row.name: row for row in growths().values() if row.part == part}


def row_options(
    part: str, by: str, options: Mapping[str, Any], *, besides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What was written for one row, by field.

    Args:
        part: what grows.
        by: the name of the row; one that is no row has no options.
        options: of the command.
        besides: flags that belong to this way, too.

    Raises:
        ConfigurationError: if something is written that this row does not have, or something is
            not that it needs.
    """
    from brickwork.errors import ConfigurationError

    rows = rows_of(part)
    written = {
        name.removeprefix(_ROW): list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if name.startswith(_ROW) and value not in (None, ())
    }
    own = _fields_of(rows[by]) if by in rows else {}
    flags = ", ".join([*(flag_of(name, field) for name, field in own.items()), *besides])
    every = {name: field for row in rows.values() for name, field in _fields_of(row).items()}
    if strangers := [flag_of(name, every[name]) for name in written if name not in own]:
        raise ConfigurationError(
            f"{strangers[0]} has no effect on {part} by {by}, whose options are {flags}; leave it "
            "out, or choose another way with --by."
        )
    needed = [name for name, field in own.items() if field.is_required() and name not in written]
    if needed:
        raise ConfigurationError(
            f"{part} by {by} was asked for without {flag_of(needed[0], own[needed[0]])}; give it "
            f"(the options are {flags})."
        )
    return written


def flag_of(name: str, field: "FieldInfo") -> str:
    """How a field is written: one that can be given several times in the singular."""
    _, many = _kind(field.annotation)
    return "--" + (name.removesuffix("s") if many else name).replace("_", "-")


def _options_of(rows: "Mapping[str, GrowthRow]") -> Iterator[click.Option]:
    having: dict[str, list[str]] = {}
    fields: dict[str, FieldInfo] = {}
    for row in rows.values():
        for name, field in _fields_of(row).items():
            having.setdefault(name, []).append(row.name)
            fields.setdefault(name, field)
    for name, field in fields.items():
        kind, many = _kind(field.annotation)
        whose = "" if len(having[name]) == len(rows) else f"For {', '.join(having[name])}: "
        about = " ".join((field.description or "").split())
        known = field.is_required() or field.default is None
        given = "" if known else f"  [default: {field.default}]"
        yield click.Option(
            [flag_of(name, field), _ROW + name], type=kind, multiple=many, show_default=False,
            help=f"{whose}{about}{given}".strip(),
        )  # fmt: skip


def _fields_of(row: "GrowthRow") -> "Mapping[str, FieldInfo]":
    from brickwork.brick.forms import load_target

    told: type[BaseModel] = load_target(row.options)
    return told.model_fields


def _kind(annotation: Any) -> tuple[Any, bool]:
    """How click reads a field, and whether it can be given several times."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin in (Union, UnionType):
        return _kind(next(one for one in inner if one is not NoneType))
    if origin is tuple:
        return _kind(inner[0])[0], True
    return (click.Choice(inner), False) if origin is Literal else (annotation, False)
