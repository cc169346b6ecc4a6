"""A recipe for bricks: the YAML of model merges with ``bricks`` where those have ``models``.

    merge_method: ties
    bricks:
      - brick: fr-en
        parameters: {weight: 1.0, density: 0.5}
      - brick: ./shell-adapter
        parameters: {weight: [0.2, 0.8]}
    parameters: {normalize: true}
    rank: 16
    name: fr-en-shell

A setting is one value, a list that the layers pass through from first to last, or a list of
``{filter, value}`` in which the first filter that a site's path contains decides. Unknown keys are
refused.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brickwork.brick.brick import Brick
from brickwork.brick.spec import Name, explain
from brickwork.combine.brick_forms import OWN_METHODS
from brickwork.combine.bricks import Combined, combine_by, keys_of
from brickwork.combine.method import Method
from brickwork.combine.methods import find_method
from brickwork.combine.parameters import Settings, parse_setting, resolve
from brickwork.combine.products import Recipe
from brickwork.errors import ConfigurationError, UnknownNameError
from brickwork.measure.updates import sites_of


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BrickOperand(_Document):
    """One brick of a recipe: its name, version or hash in a store, or its folder."""

    brick: str = Field(min_length=1)
    parameters: dict[str, Any] = {}


class BrickRecipe(_Document):
    """Bricks that become one brick."""

    merge_method: str
    bricks: tuple[BrickOperand, ...] = Field(min_length=1)
    parameters: dict[str, Any] = {}
    rank: int | None = Field(None, ge=1)
    name: Name | None = None
    seed: int = Field(0, ge=0, lt=2**63)


def parse_brick_recipe(document: Any, where: str = "the recipe") -> BrickRecipe:
    """A recipe from parsed YAML, checked as far as it can be without the bricks.

    Raises:
        ConfigurationError: naming every field that is missing, unknown or out of range.
        UnknownNameError: if there is no such method or parameter.
    """
    try:
        recipe = BrickRecipe.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"{where} is not valid: {explain(error)}.") from None
    if recipe.merge_method in OWN_METHODS:
        if recipe.parameters or any(use.parameters for use in recipe.bricks):
            raise ConfigurationError(
                f"{where}: {recipe.merge_method} has no parameters; take them out."
            )
    else:
        _Scopes(find_method(recipe.merge_method), recipe, where).at("", 0.0)
    return recipe


def run_brick_recipe(
    recipe: BrickRecipe,
    find: Callable[[str], Brick],
    *,
    seed: int | None = None,
    name: str = "",
) -> Combined:
    """The brick that a recipe makes.

    Args:
        recipe: as parsed.
        find: the brick of a reference or folder.
        seed: instead of the recipe's.
        name: of the result if the recipe has none; empty: made of the parents' names.

    Raises:
        MergeError: if the bricks do not go together.
    """
    bricks = [find(use.brick) for use in recipe.bricks]
    depths = _depths(sites_of(bricks))

    def parameters(site: str) -> Mapping[str, Any]:
        if recipe.merge_method in OWN_METHODS:
            return {}
        scopes = _Scopes(find_method(recipe.merge_method), recipe, "the recipe")
        return scopes.at(site, depths[site])

    how = Recipe(
        recipe.merge_method, parameters, keys_of(bricks), recipe.rank,
        recipe.seed if seed is None else seed,
    )  # fmt: skip
    written = {"all": recipe.parameters, "each": [use.parameters for use in recipe.bricks]}
    return combine_by(how, bricks, name=recipe.name or name, written=written)


@dataclass(frozen=True)
class _Scopes:
    """Where the value of a parameter is looked for."""

    method: Method
    recipe: BrickRecipe
    where: str

    def at(self, site: str, depth: float) -> dict[str, Any]:
        """Every parameter that has a value at a site; those of the bricks as tuples."""
        shared = self._settings(self.recipe.parameters, "parameters")
        own = [
            self._settings(use.parameters, f"bricks.{place}.parameters")
            for place, use in enumerate(self.recipe.bricks)
        ]
        found: dict[str, Any] = {}
        try:
            for parameter in self.method.parameters:
                if parameter.scope == "operand":
                    found[parameter.name] = tuple(
                        resolve(parameter, [scope, shared], name=site, depth=depth) for scope in own
                    )
                else:
                    found[parameter.name] = resolve(parameter, [shared], name=site, depth=depth)
        except ValueError as error:
            raise ConfigurationError(f"{self.where}: {error}.") from None
        return {name: self._required(name, value, site) for name, value in found.items()}

    def _settings(self, written: Mapping[str, Any], place: str) -> Settings:
        known = {p.name: p for p in self.method.parameters}
        for name in written:
            if name not in known:
                raise UnknownNameError(f"parameter of {self.method.name}", name, known)
            if place != "parameters" and known[name].scope == "shared":
                raise ConfigurationError(
                    f"{self.where}: {place}.{name} is one value for all bricks, but stands with "
                    "one of them; move it to the recipe's own `parameters`."
                )
        try:
            return {name: parse_setting(value) for name, value in written.items()}
        except ValueError as error:
            raise ConfigurationError(f"{self.where}: {place}: {error}.") from None

    def _required(self, name: str, value: Any, site: str) -> Any:
        values = value if isinstance(value, tuple) else (value,)
        # Filters may leave a value open where no site is named yet.
        if (None in values) if site else not self._written(name, values):
            at = f" at {site!r}" if site else ""
            raise ConfigurationError(
                f"{self.where}: {self.method.name} needs the parameter {name!r}{at}, and "
                f"{'a brick' if isinstance(value, tuple) else 'the recipe'} has none; give it."
            )
        return value

    def _written(self, name: str, values: Sequence[Any]) -> bool:
        given = [use.parameters for use in self.recipe.bricks]
        held = name in self.recipe.parameters
        return all(
            value is not None or held or (place < len(given) and name in given[place])
            for place, value in enumerate(values)
        )


def _depths(sites: Sequence[str]) -> dict[str, float]:
    """For each site, 0 in the first layer to 1 in the last that any brick has; 0 outside."""
    numbers = {site: re.search(r"\.([0-9]{1,6})(?:\.|$)", site) for site in sites}
    layers = {site: int(match[1]) if match else 0 for site, match in numbers.items()}
    last = max(layers.values())
    return {site: layer / last if last else 0.0 for site, layer in layers.items()}
