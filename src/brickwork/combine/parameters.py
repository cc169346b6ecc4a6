"""The settings of a recipe, and the value that each tensor gets from them.

A setting is written as one value, as a list of values (a gradient over the layers), or as a list
of ``{filter, value}``. All are kept as conditions, of which the first that a name meets decides.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from brickwork.combine.method import Parameter, Value

_KINDS: Mapping[str, TypeAdapter[Any]] = {
    "count": TypeAdapter(int),
    "number": TypeAdapter(Annotated[float, Field(allow_inf_nan=False)]),
    "switch": TypeAdapter(bool),
    "word": TypeAdapter(str),
}


@dataclass(frozen=True)
class Condition:
    """Values for the tensors whose name contains the filter.

    Attributes:
        filter: a part of the name; ``*`` meets every name.
        values: one value, or several that the layers pass through from first to last.
    """

    filter: str
    values: tuple[Value, ...]

    def meets(self, name: str) -> bool:
        """Whether the condition holds for a tensor of that name."""
        return self.filter == "*" or self.filter in name


Setting = tuple[Condition, ...]
Settings = Mapping[str, Setting]


def parse_setting(written: Any) -> Setting:
    """A setting as it is written in a recipe.

    Raises:
        ValueError: if it is none of the forms.

    >>> parse_setting([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}])
    (Condition(filter='mlp', values=(0, 1)), Condition(filter='*', values=(0.5,)))
    """
    if isinstance(written, dict):
        written = [written]
    if isinstance(written, list) and written and all(isinstance(c, dict) for c in written):
        return tuple(_parse_condition(condition) for condition in written)
    return (Condition("*", _parse_values(written)),)


def evaluate(setting: Setting, name: str, depth: float, parameter: Parameter) -> Value | None:
    """The value for a tensor of that name.

    Args:
        setting: as parsed.
        name: the tensor's name, which filters look at.
        depth: 0 at the first layer, 1 at the last; numbers are interpolated there, switches and
            words are picked.
        parameter: whose value it is.

    Returns:
        None if no condition is met.

    Raises:
        ValueError: if a value is not of the parameter's kind.
    """
    for condition in setting:
        if condition.meets(name):
            return _at(read_values(condition.values, parameter), depth, parameter)
    return None


def resolve(
    parameter: Parameter, scopes: Iterable[Settings], *, name: str, depth: float
) -> Value | None:
    """The value of a parameter: from the first scope with a setting that the name meets.

    Args:
        parameter: what to resolve.
        scopes: from the strongest to the weakest.
        name: of the tensor in the output for a shared parameter, in the model for one's own.
        depth: see ``evaluate``.

    Returns:
        The default if no scope decides; None if there is none.
    """
    for scope in scopes:
        if parameter.name in scope:
            value = evaluate(scope[parameter.name], name, depth, parameter)
            if value is not None:
                return value
    return parameter.default


def read_values(values: tuple[Value, ...], parameter: Parameter) -> list[Any]:
    """Values in the parameter's own type; ``"1e-5"`` is a number, as YAML does not know it is.

    Raises:
        ValueError: naming the value that is of another kind.
    """
    try:
        return [_KINDS[parameter.kind].validate_python(value) for value in values]
    except ValidationError as error:
        found = error.errors()[0]["input"]
        raise ValueError(f"{parameter.name} is a {parameter.kind}, not {found!r}") from None


def _at(values: list[Any], depth: float, parameter: Parameter) -> Value:
    place = depth * (len(values) - 1)
    first = int(place)
    if parameter.kind != "number":
        value: Value = values[first]
        return value
    rest = place - first
    number: float = (1 - rest) * values[first] + rest * values[min(len(values) - 1, first + 1)]
    return number


def _parse_condition(written: dict[Any, Any]) -> Condition:
    strangers = [str(key) for key in written if key not in ("filter", "value")]
    if strangers or "value" not in written:
        raise ValueError(
            "a condition has a value and, if wanted, a filter"
            + (f", but not {', '.join(strangers)}" if strangers else "; the value is missing")
        )
    pattern = written.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        raise ValueError(f"a filter is a part of a tensor's name, not {pattern!r}")
    return Condition("*" if pattern is None else pattern, _parse_values(written["value"]))


def _parse_values(written: Any) -> tuple[Value, ...]:
    values = written if isinstance(written, list) else [written]
    if not values or not all(isinstance(value, bool | int | float | str) for value in values):
        raise ValueError(
            "write one value, a list of values from the first to the last layer, or a list of "
            "{filter, value}"
        )
    return tuple(values)
