"""What every axis of every parameter counts: hidden numbers, neurons, heads, tokens, experts.

With this table a change of a model's size is a change of a few axes, the same in every family.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from brickwork.errors import ModelError
from brickwork.model.heads import Heads, heads_of
from brickwork.model.parts import (
    experts_row_of,
    ffn_row_of,
    find_module,
    layers_of,
    role_path,
    row_of,
)

Kind = Literal[
    "vocabulary", "positions", "hidden", "neurons", "heads", "kv_heads", "head_dim",
    "experts", "expert_neurons",
]  # fmt: skip
# Along an axis a parameter makes what is counted there, or reads it, or norms it.
Side = Literal["writes", "reads", "norms"]

_INNER = ("block", "attn", "mlp")  # roles that hold others
NORMS = ("norms.attn", "norms.mlp", "norms.attn_out", "norms.mlp_out", "final_norm")


@dataclass(frozen=True)
class Segment:
    """Consecutive entries of an axis: ``count`` units of ``width`` entries each."""

    kind: Kind
    count: int
    width: int = 1

    @property
    def entries(self) -> int:
        """How long the segment is."""
        return self.count * self.width


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter, in segments, and what the parameter does along it."""

    segments: tuple[Segment, ...]
    side: Side


@dataclass(frozen=True)
class Described:
    """One parameter: its path, role, layer, last name, and what its axes count."""

    path: str
    role: str
    layer: int | None
    name: str
    axes: tuple[Axis, ...]

    @property
    def key(self) -> tuple[str, int | None, str]:
        """The same parameter in another model of the family, or in another layer."""
        return self.role, self.layer, self.name


def describe_parameters(model: PreTrainedModel) -> Mapping[str, Described]:
    """Every parameter by its path, tied ones once; an outline is enough.

    Raises:
        UnknownNameError: if no row describes the family.
        ModelError: if the model has parameters that its family's row does not tell of.
    """
    found: dict[str, Described] = {}
    tied = {path for path, _ in model.named_parameters()}
    for role, layer, path in _places(model):
        module = find_module(model, path)
        assert module is not None, "only places that are there are listed"
        for name, parameter in module.named_parameters():
            whole = f"{path}.{name}"
            if whole in tied:
                axes = _axes(model, role, layer, name)
                found[whole] = Described(whole, role, layer, name, axes)
                length = tuple(sum(s.entries for s in axis.segments) for axis in axes)
                _require(length == tuple(parameter.shape), model, whole, tuple(parameter.shape))
    for path, parameter in model.named_parameters():
        _require(path in found, model, path, tuple(parameter.shape))
    return found


def _places(model: PreTrainedModel) -> Iterator[tuple[str, int | None, str]]:
    row = row_of(model)
    for role, template in row.roles.items():
        for layer in range(layers_of(model)) if "{layer}" in template else (None,):
            path = row.path(role, layer)
            if path and role not in _INNER and find_module(model, path) is not None:
                yield role, layer, path
    head = role_path(model, "unembed", None)
    if head is not None:
        yield "unembed", None, head


def _require(fits: bool, model: PreTrainedModel, path: str, shape: tuple[int, ...]) -> None:
    if not fits:
        raise ModelError(
            f"the parameter {path!r} of shape {list(shape)} is in this "
            f"{model.config.model_type} model, but its family's row does not tell what it counts; "
            "name a model whose modules match the row."
        )


def _axes(model: PreTrainedModel, role: str, layer: int | None, name: str) -> tuple[Axis, ...]:
    config = model.config.get_text_config()
    hidden = Segment("hidden", config.hidden_size)
    if role in NORMS:
        return (Axis((hidden,), "norms"),)
    if role in ("embed", "positions", "unembed"):
        kind: Kind = "positions" if role == "positions" else "vocabulary"
        module = find_module(model, role_path(model, role, None))
        assert isinstance(module, nn.Embedding | nn.Linear), "embeddings and their inverse"
        entries = Axis((Segment(kind, module.weight.shape[0]),), "writes")
        inner = Axis((hidden,), "reads" if role == "unembed" else "writes")
        return (entries,) if name == "bias" else (entries, inner)
    assert layer is not None, "all other parts are of a layer"
    if role in ("norms.q", "norms.k"):
        return (Axis(_head_norm(model, role, layer), "norms"),)
    if role == "mlp.experts":
        return _expert_axes(model, layer, name, hidden)
    outputs, inputs = _linear(model, role, layer, hidden)
    if name == "bias":
        return (Axis(outputs, "writes"),)
    axes = (Axis(outputs, "writes"), Axis(inputs, "reads"))
    return axes if row_of(model).orientation == "out in" or role == "mlp.router" else axes[::-1]


def _linear(
    model: PreTrainedModel, role: str, layer: int, hidden: Segment
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """What the outputs and the inputs of a linear map count."""
    heads = heads_of(model.config, layer)
    queries = Segment("heads", heads.heads, heads.head_dim)
    keys = Segment("kv_heads", heads.kv_heads, heads.head_dim)
    if role in ("attn.q", "attn.k", "attn.v"):
        return (queries if role == "attn.q" else keys,), (hidden,)
    if role == "attn.qkv":
        return _fused(model, heads, queries, keys), (hidden,)
    if role == "attn.o":
        return (hidden,), (queries,)
    if role == "mlp.router":
        return (Segment("experts", _expert_sizes(model, layer)[0]),), (hidden,)
    neurons = Segment("neurons", _width(model, layer))
    outputs = {"mlp.down": (hidden,), "mlp.gate_up": (neurons, neurons)}.get(role, (neurons,))
    return outputs, (neurons,) if role == "mlp.down" else (hidden,)


def _fused(
    model: PreTrainedModel, heads: Heads, queries: Segment, keys: Segment
) -> tuple[Segment, ...]:
    if row_of(model).fused["attn.qkv"] == "interleaved":
        return (Segment("heads", heads.heads, 3 * heads.head_dim),)
    return queries, keys, keys


def _head_norm(model: PreTrainedModel, role: str, layer: int) -> tuple[Segment, ...]:
    """A norm of one head that all share, or one over all heads together (OLMo 2)."""
    heads = heads_of(model.config, layer)
    module = find_module(model, role_path(model, role, layer))
    assert module is not None, "only places that are there are listed"
    if len(module.get_parameter("weight")) == heads.head_dim:
        return (Segment("head_dim", heads.head_dim),)
    kind: Kind = "heads" if role == "norms.q" else "kv_heads"
    return (Segment(kind, heads.heads if role == "norms.q" else heads.kv_heads, heads.head_dim),)


def _expert_axes(
    model: PreTrainedModel, layer: int, name: str, hidden: Segment
) -> tuple[Axis, ...]:
    experts, width = _expert_sizes(model, layer)
    owner = Axis((Segment("experts", experts),), "writes")
    neurons = Segment("expert_neurons", width)
    if experts_row_of(model, layer).down.endswith(f".{name}"):
        return owner, Axis((hidden,), "writes"), Axis((neurons,), "reads")
    return owner, Axis((neurons, neurons), "writes"), Axis((hidden,), "reads")


def _expert_sizes(model: PreTrainedModel, layer: int) -> tuple[int, int]:
    experts, _, width = model.get_parameter(experts_row_of(model, layer).down).shape
    return experts, width


def _width(model: PreTrainedModel, layer: int) -> int:
    form = ffn_row_of(model, layer).form
    assert form != "moe_gated", "the neurons of experts are counted apart"
    path = role_path(model, "mlp.down", layer)
    weight = model.get_parameter(f"{path}.weight")
    return int(weight.shape[1 if row_of(model).orientation == "out in" else 0])
