"""What a search chooses among: methods, and numbers for their parameters.

The space is the same for every candidate: a parameter that the chosen method does not have is
chosen all the same and passed over, so that any sampler can learn from every trial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brickwork.combine.methods import find_method, methods, require_count
from brickwork.combine.search_recipe import SearchSpec
from brickwork.errors import ConfigurationError, UnknownNameError

METHOD, RANK = "method", "rank"


@dataclass(frozen=True)
class Axis:
    """One thing to choose: a number between two, or one of some values."""

    name: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A way to combine.

    Attributes:
        method: a row of METHODS.
        parameters: of the method, for each block of layers.
        rank: of the result at a site, at most; None: what the parents need.
    """

    method: str
    parameters: tuple[Mapping[str, Any], ...]
    rank: int | None = None

    @property
    def written(self) -> tuple[dict[str, Any], ...]:
        """The parameters as JSON takes them."""
        return tuple(
            {key: list(v) if isinstance(v, tuple) else v for key, v in block.items()}
            for block in self.parameters
        )


@dataclass(frozen=True)
class Space:
    """All candidates of a search.

    Attributes:
        spec: as the recipe has it.
        operands: what is combined, beside the base.
        axes: what is chosen.
        fixed: parameters that the recipe gives one value.
    """

    spec: SearchSpec
    operands: int
    axes: tuple[Axis, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def candidate(self, chosen: Mapping[str, Any]) -> Candidate:
        """The candidate that a choice on every axis means."""
        row = find_method(str(chosen[METHOD]))
        blocks: list[Mapping[str, Any]] = []
        for block in range(self.spec.blocks):
            values: dict[str, Any] = {}
            for parameter in row.parameters:
                name = parameter.name
                if name in self.fixed:
                    values[name] = self.fixed[name]
                elif parameter.scope == "operand" and _axis(name, block, 0) in chosen:
                    values[name] = tuple(
                        chosen[_axis(name, block, operand)] for operand in range(self.operands)
                    )
                elif name in chosen:
                    values[name] = chosen[name]
            blocks.append(values)
        return Candidate(row.name, tuple(blocks), chosen.get(RANK))


def space_of(spec: SearchSpec, operands: int, *, has_base: bool) -> Space:
    """The space that a recipe describes, checked before anything is tried.

    Args:
        spec: the recipe's part.
        operands: how many bricks or models are combined.
        has_base: whether they are compared with a base.

    Raises:
        UnknownNameError: if there is no such method, or none of them has such a parameter.
        MergeError: if a method cannot combine so many.
        ConfigurationError: if a method needs a parameter that the recipe does not give, or weighs
            by statistics; or a range is none.
    """
    rows = [find_method(name) for name in dict.fromkeys(spec.methods)]
    for row in rows:
        require_count(row, operands, has_base)
        missing = [p.name for p in row.parameters if p.default is None]
        missing = [name for name in missing if name not in spec.parameters]
        if missing or row.statistics:
            needs = ", ".join(missing) or f"{row.statistics} statistics, which no candidate has"
            raise ConfigurationError(
                f"the search names the method {row.name!r}, which needs {needs}; give it under "
                "`parameters`, or leave the method out."
            )
    scopes = {p.name: p.scope for row in rows for p in row.parameters}
    axes = [Axis(METHOD, choices=tuple(row.name for row in rows))]
    fixed: dict[str, Any] = {}
    for name, given in spec.parameters.items():
        if name not in scopes:
            raise UnknownNameError(f"parameter of {', '.join(spec.methods)}", name, scopes)
        if not isinstance(given, list):
            fixed[name] = given
        elif scopes[name] == "operand":
            axes += [
                _make(_axis(name, block, operand), given)
                for block in range(spec.blocks)
                for operand in range(operands)
            ]
        else:
            axes.append(_make(name, given))
    if spec.ranks:
        axes.append(Axis(RANK, choices=spec.ranks))
    return Space(spec, operands, tuple(axes), fixed)


def single_methods(space: Space) -> list[tuple[str, Candidate]]:
    """What somebody without a search would try: every method with equal weights, by its name.

    The weights are 1, and 1 over the number of operands where the method does not normalise.
    """
    found = []
    for name in dict.fromkeys(space.spec.methods):
        known = {parameter.name for parameter in methods()[name].parameters}
        weights: Sequence[float] = (1.0, 1 / space.operands) if "weight" in known else (1.0,)
        for weight in weights:
            values = _usual(space, name) | ({"weight": weight} if "weight" in known else {})
            label = f"{name}, weights {weight:.3g}" if "weight" in known else name
            found.append((label, Candidate(name, (values,) * space.spec.blocks)))
    return found


def _usual(space: Space, method: str) -> dict[str, Any]:
    """Defaults, and where there is none the recipe's value or the middle of its range."""
    row = methods()[method]
    values = {p.name: space.fixed[p.name] for p in row.parameters if p.name in space.fixed}
    for parameter in row.parameters:
        if parameter.default is None and parameter.name not in values:
            values[parameter.name] = _middle(space.spec.parameters[parameter.name])
    return values


def _middle(given: Any) -> Any:
    return (given[0] + given[-1]) / 2 if _is_range(given) else given[0]


def _axis(name: str, block: int, operand: int) -> str:
    return f"{name}/{block}/{operand}"


def _is_range(given: Any) -> bool:
    return len(given) == 2 and all(type(value) in {int, float} for value in given)


def _make(name: str, given: list[Any]) -> Axis:
    if _is_range(given):
        low, high = map(float, given)
        if not -1e9 <= low < high <= 1e9:
            raise ConfigurationError(
                f"the range of {name.partition('/')[0]!r} is {given}; write the lower end first, "
                "or one value without brackets."
            )
        return Axis(name, low, high)
    if not given or not all(type(value) in {int, float, bool, str} for value in given):
        raise ConfigurationError(
            f"{name.partition('/')[0]!r} is to be one of {given}; list numbers, words or switches."
        )
    return Axis(name, choices=tuple(given))
