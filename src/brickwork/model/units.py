"""The numbered units of a layer, and the entries of the parameters that belong to each.

``mlp.neurons[17,99]``
    Rows of gate and up with their biases, columns of down. In an MoE layer, neuron i of expert e
    counts as ``e * width + i``.
``attn.heads[4]``
    Rows of q, columns of o; rows of k and v too where no other head reads them.
``attn.kv_heads[1]``
    Rows of k and v, and the query heads that read them.
``mlp.experts[2]``
    An expert of an MoE with its row of the router.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from transformers import PreTrainedModel

from brickwork.model.heads import heads_of
from brickwork.model.parts import (
    Slice,
    experts_row_of,
    ffn_row_of,
    find_module,
    part_of,
    role_path,
)


def unit_counts(model: PreTrainedModel, layer: int) -> dict[str, int]:
    """How many units of each word a layer has, ``mlp.neurons`` for example."""
    heads = heads_of(model.config, layer)
    counts = {"attn.heads": heads.heads, "attn.kv_heads": heads.kv_heads}
    if ffn_row_of(model, layer).form != "moe_gated":
        return counts | {"mlp.neurons": len(part_of(model, "mlp.up", layer).outputs)}
    experts, _, width = model.get_parameter(experts_row_of(model, layer).down).shape
    return counts | {"mlp.neurons": experts * width, "mlp.experts": experts}


def _neurons(model: PreTrainedModel, layer: int, units: Sequence[int]) -> Iterable[Slice]:
    form = ffn_row_of(model, layer).form
    if form == "moe_gated":
        yield from _expert_neurons(model, layer, units)
        return
    for role in ("mlp.up",) if form == "vanilla" else ("mlp.gate", "mlp.up"):
        yield from part_of(model, role, layer).rows(units)
    yield part_of(model, "mlp.down", layer).columns(units)


def _expert_neurons(model: PreTrainedModel, layer: int, units: Sequence[int]) -> Iterable[Slice]:
    row = experts_row_of(model, layer)
    width = model.get_parameter(row.down).shape[-1]
    for expert in sorted({unit // width for unit in units}):
        own = tuple(unit % width for unit in units if unit // width == expert)
        yield Slice(row.gate_up, 1, (*own, *(width + unit for unit in own)), expert)
        yield Slice(row.down, 2, own, expert)


def _whole_experts(model: PreTrainedModel, layer: int, units: Sequence[int]) -> Iterable[Slice]:
    row = experts_row_of(model, layer)
    router = role_path(model, "mlp.router", layer)
    for parameter in (f"{router}.weight", row.gate_up, row.down):
        yield Slice(parameter, 0, tuple(units))


def _heads(model: PreTrainedModel, layer: int, units: Sequence[int]) -> Iterable[Slice]:
    heads = heads_of(model.config, layer)
    if heads.group == 1:
        yield from _keys_and_values(model, layer, units)
    entries = _entries(units, heads.head_dim)
    yield from part_of(model, "attn.q", layer).rows(entries)
    yield from _norm(model, "norms.q", layer, entries, heads.heads * heads.head_dim)
    yield part_of(model, "attn.o", layer).columns(entries)


def _kv_heads(model: PreTrainedModel, layer: int, units: Sequence[int]) -> Iterable[Slice]:
    group = heads_of(model.config, layer).group
    if group > 1:
        yield from _keys_and_values(model, layer, units)
    yield from _heads(model, layer, _entries(units, group))


def _keys_and_values(model: PreTrainedModel, layer: int, units: Sequence[int]) -> Iterable[Slice]:
    heads = heads_of(model.config, layer)
    entries = _entries(units, heads.head_dim)
    yield from part_of(model, "attn.k", layer).rows(entries)
    yield from _norm(model, "norms.k", layer, entries, heads.kv_heads * heads.head_dim)
    yield from part_of(model, "attn.v", layer).rows(entries)


UNITS: Mapping[str, Callable[[PreTrainedModel, int, Sequence[int]], Iterable[Slice]]] = {
    "mlp.neurons": _neurons,
    "mlp.experts": _whole_experts,
    "attn.heads": _heads,
    "attn.kv_heads": _kv_heads,
}


def _norm(
    model: PreTrainedModel, role: str, layer: int, entries: Sequence[int], width: int
) -> Iterable[Slice]:
    """The entries of a norm over all heads (OLMo 2); one that all heads share is no head's."""
    path = role_path(model, role, layer)
    weight = getattr(find_module(model, path), "weight", None)
    if weight is not None and len(weight) == width:
        yield Slice(f"{path}.weight", 0, tuple(entries))


def _entries(units: Sequence[int], width: int) -> list[int]:
    return [unit * width + i for unit in units for i in range(width)]
