"""A growth: what becomes of a model's axes and layers; and the grown model's weights, made one
by one from the old ones as they are asked for, so that a model larger than memory can grow.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any, Literal

import torch
from torch import Tensor

from brickwork.errors import GrowthError
from brickwork.grow.fresh import Fresh, spans_of
from brickwork.grow.spread import (
    Spread,
    fresh_entries,
    generator_for,
    sources_of,
    spread_axis,
    wide,
)
from brickwork.model.parameters import NORMS, Described, Kind, describe_parameters
from brickwork.model.parts import CausalModel, row_of
from brickwork.model.sizes import config_with, layer_entries, outline_of
from brickwork.model.weights import Weights

# How the grown model's logits stand to the old one's: equal up to rounding; equal for the tokens
# that there were; equal as long as the text is no longer than before; or not.
Promise = Literal["equal", "old tokens", "old lengths", "none"]
Old = Callable[[str, int | None, str], Tensor]


@dataclass(frozen=True)
class Placed:
    """What stands at one place of the grown model's layers.

    Attributes:
        source: the old layer whose weights it has.
        fresh: whether it counts as added.
        silent: whether it says nothing at first: its outputs, or the norms of them, are zero.
    """

    source: int
    fresh: bool = False
    silent: bool = False


@dataclass(frozen=True)
class Growth:
    """What becomes of a model.

    Attributes:
        promise: what stays equal.
        config: entries of the configuration that change.
        spreads: by kind of unit.
        layers: one for every layer of the grown model; None: all stay.
        factors: by role, what an embedding is multiplied by, and what comes out of a norm.
        replaced: the whole configuration, where the family changes.
        made: by role and name, how a parameter is made that is no spread of an old one.
        tokens: what is added to the vocabulary, in the order of their numbers.
        length: tokens of the longest text afterwards; None: as before.
    """

    promise: Promise
    config: Mapping[str, Any] = field(default_factory=dict)
    spreads: Mapping[Kind, Spread] = field(default_factory=dict)
    layers: tuple[Placed, ...] | None = None
    factors: Mapping[str, float] = field(default_factory=dict)
    replaced: Any = None
    made: Mapping[tuple[str, str], Callable[[Old, int | None, int], Tensor]] = field(
        default_factory=dict
    )
    tokens: tuple[str, ...] = ()
    length: int | None = None


class GrownWeights:
    """The weights of the grown model; nothing is computed before it is asked for.

    Raises:
        GrowthError: if the family's configuration cannot say what the growth makes.
    """

    def __init__(self, old: Weights, growth: Growth, seed: int = 0) -> None:
        self.old, self.growth, self.seed = old, growth, seed
        self._old = {d.key: d for d in describe_parameters(old.outline).values()}
        self._described = describe_parameters(self.outline)
        self._require_shapes()

    @cached_property
    def outline(self) -> CausalModel:
        """Modules and shapes of the grown model."""
        return outline_of(grown_config(self.old.outline, self.growth), self.old.outline.dtype)

    def tensor(self, path: str) -> Tensor:
        """One parameter of the grown model, in the dtype that its source has."""
        described = self._described[path]
        make = self.growth.made.get((described.role, described.name))
        if make is not None:
            made = make(self._old_tensor, self.source_of(described.layer), self._seed(path))
            return made.to(self.dtype_of(path))
        source = self._old_of(described)
        result = self.old.tensor(source.path)
        # Layers and their copies share what is drawn for no axis, but not what is drawn.
        generator = generator_for(self.seed, path)
        for number, axis in enumerate(source.axes):
            result = spread_axis(result, number, axis, self.growth.spreads, generator=generator)
        return self._adjusted(described, result)

    def dtype_of(self, path: str) -> torch.dtype:
        """The number format of its source; of what is made, the widest of the old layer's."""
        described = self._described[path]
        layer = self.source_of(described.layer)
        found = self._old.get((described.role, layer, described.name))
        if found is not None:
            return self.old.dtype_of(found.path)
        own = (self.old.dtype_of(d.path) for d in self._old.values() if d.layer == layer)
        return reduce(torch.promote_types, own)

    @cached_property
    def fresh(self) -> tuple[Fresh, ...]:
        """Which numbers of the grown model are new."""
        return tuple(entry for d in self._described.values() for entry in self._fresh_of(d))

    def _adjusted(self, described: Described, tensor: Tensor) -> Tensor:
        """With the factors of its role; silent, if its layer is to be and it is what speaks."""
        base = row_of(self.outline).norm_base if described.role in NORMS else 0.0
        if described.layer is not None and self.is_silent(described):
            # A new tensor: what was read may be the old model's own.
            return tensor.new_full(tensor.shape, -base)
        queries = self.growth.factors.get("attn.q", 1.0)
        if described.role == "attn.qkv" and queries != 1.0:
            return _scaled_queries(described, tensor, queries)
        factor = self.growth.factors.get(described.role, 1.0)
        if factor == 1.0:
            return tensor
        if described.name == "bias":
            return (wide(tensor) * factor).to(tensor.dtype)
        return ((wide(tensor) + base) * factor - base).to(tensor.dtype)

    def is_silent(self, described: Described) -> bool:
        """Whether a parameter of a layer is zero, so that the layer says nothing at first."""
        assert described.layer is not None, "a part of a layer"
        layers = self.growth.layers
        if layers is None or not layers[described.layer].silent:
            return False
        if "norms.mlp_out" in row_of(self.outline).roles:
            return described.role in ("norms.attn_out", "norms.mlp_out")
        speaks = described.role in ("attn.o", "mlp.down")
        return speaks or described.axes[-1].segments[0].kind == "expert_neurons"

    def source_of(self, layer: int | None) -> int | None:
        """The old layer whose weights a layer of the grown model has."""
        if layer is None or self.growth.layers is None:
            return layer
        return self.growth.layers[layer].source

    def _seed(self, path: str) -> int:
        return generator_for(self.seed, path).initial_seed()

    def _old_tensor(self, role: str, layer: int | None, name: str) -> Tensor:
        return self.old.tensor(self._old[role, layer, name].path)

    def _old_of(self, described: Described) -> Described:
        found = self._old.get((described.role, self.source_of(described.layer), described.name))
        if found is None:
            raise GrowthError(
                f"the grown model has {described.path!r}, and the old one nothing that it could "
                "come from; name another growth for this family."
            )
        return found

    def _fresh_of(self, described: Described) -> list[Fresh]:
        whole = [Fresh(parameter=described.path)]
        layers, layer = self.growth.layers, described.layer
        source = self._old.get((described.role, self.source_of(layer), described.name))
        if source is None or (layers and layer is not None and layers[layer].fresh):
            return whole
        before = self._fresh_before.get(source.path, {})
        if None in before:
            return whole
        found = []
        for number, axis in enumerate(source.axes):
            entries = fresh_entries(axis.segments, self.growth.spreads)
            if number in before:
                came_from = sources_of(axis.segments, self.growth.spreads)
                entries |= before[number][came_from.clamp_min(0)]
            if entries.any():
                spans = spans_of(entries.tolist())
                found.append(Fresh(parameter=described.path, axis=number, spans=spans))
        return found

    @cached_property
    def _fresh_before(self) -> Mapping[str, Mapping[int | None, Tensor]]:
        """What an earlier growth has added: by path and axis, which entries."""
        found: dict[str, dict[int | None, Tensor]] = defaultdict(dict)
        for entry in self.old.fresh if isinstance(self.old, GrownWeights) else ():
            shape = self.old.outline.get_parameter(entry.parameter).shape
            line = torch.zeros(1 if entry.axis is None else shape[entry.axis], dtype=torch.bool)
            for first, last in entry.spans:
                line[first:last] = True
            found[entry.parameter][entry.axis] = line
        return found

    def _require_shapes(self) -> None:
        for path, described in self._described.items():
            if (described.role, described.name) in self.growth.made:
                continue
            planned = tuple(
                sum(len(fresh_entries((s,), self.growth.spreads)) for s in axis.segments)
                for axis in self._old_of(described).axes
            )
            found = tuple(self.outline.get_parameter(path).shape)
            if planned != found:
                raise GrowthError(
                    f"the growth makes {path!r} {list(planned)}, but a "
                    f"{row_of(self.outline).model_type} model of its configuration has "
                    f"{list(found)} there: the family cannot be of these sizes; choose others, or "
                    "another growth."
                )


def _scaled_queries(described: Described, fused: Tensor, factor: float) -> Tensor:
    """A map of queries, keys and values with its queries multiplied."""
    (axis,) = (n for n, own in enumerate(described.axes) if len(own.segments) > 1)
    result = fused.clone()
    queries = result.narrow(axis, 0, described.axes[axis].segments[0].entries)
    queries.copy_(wide(queries) * factor)
    return result


def grown_config(model: CausalModel, growth: Growth) -> Any:
    """The configuration of the grown model."""
    if growth.replaced is not None:
        return growth.replaced
    entries = dict(growth.config)
    if growth.layers is not None:
        entries |= layer_entries(model, [placed.source for placed in growth.layers])
    return config_with(model.config, entries)
