"""Write a dense model whose FFN neurons are partitioned as a mixture of experts, without training.

A group becomes an expert, the shared group the shared expert, and a linear map the router. The
experts together are the dense FFN; with fewer, the model is the dense one whose other groups are
silent. The idea is MoEfication's (Zhang et al. 2021, arXiv:2110.01786). Unlike LLaMA-MoE
(arXiv:2406.16554) and CMoE (arXiv:2502.04416), which scale what the chosen experts say, an expert
keeps the weight 1 that its neurons had, so that no training is needed to make up for it.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from brickwork.brick.check import fingerprint_misfits
from brickwork.brick.partition import Partition
from brickwork.build.moe_routers import centroid_routers, flat_router, gated_ffn, hearing
from brickwork.build.moe_targets import MoeSizes, MoeTarget, choose_target, moe_config
from brickwork.errors import ConfigurationError, ModelError, listed
from brickwork.model.config import transformers_at
from brickwork.model.load import LoadedModel
from brickwork.model.parts import find_part, layers_of, role_path, row_of

_BLOCK = "model.layers.{layer}"
# Where all targets keep the parts of a block; ``norms.attn_out`` stands in for ``norms.mlp`` in
# families that norm what a part says instead of what it hears.
_PLACES: Mapping[str, str] = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "norms.q": "self_attn.q_norm",
    "norms.k": "self_attn.k_norm",
    "norms.attn": "input_layernorm",
    "norms.mlp": "post_attention_layernorm",
    "norms.attn_out": "post_attention_layernorm",
    "norms.mlp_out": "post_feedforward_layernorm",
}
_ZERO = "e_score_correction_bias"  # takes part in the choice; 0 is no correction
_LINEAR = ("attn.q", "attn.k", "attn.v", "attn.o")


@dataclass(frozen=True)
class MoePlan:
    """What an export will write.

    Attributes:
        target: the family.
        sizes: experts, the same in every layer.
        config: the configuration of the mixture.
        parameters: of the mixture, tied ones once.
        active: those of them that a token uses.
    """

    target: MoeTarget
    sizes: MoeSizes
    config: PreTrainedConfig
    parameters: int
    active: int


def plan_moe(
    loaded: LoadedModel,
    partition: Partition,
    *,
    target: str | None = None,
    top_k: int | None = None,
) -> MoePlan:
    """What ``export_moe`` will write; an outline of the model is enough.

    Args:
        loaded: the dense model.
        partition: groups of equal size, as many in every layer, over all layers.
        target: a row of MOE_TARGETS; by default the first that fits.
        top_k: experts of a token; by default all.

    Raises:
        UnknownNameError: if there is no such target, or no row describes the model's family.
        ModelError: if no target has the block of the model's family, or for float16, which cannot
            hold the routers.
        ConfigurationError: if the partition or the target does not fit, or ``top_k`` is not from 1
            to the number of groups.
    """
    row_of(loaded.model)
    config = loaded.model.config
    sizes = moe_sizes(partition, top_k)
    row = choose_target(config, sizes, target)
    _require_layers(loaded.model, partition)
    _require_dtype(sizes, loaded.dtype)
    made = moe_config(row, config, sizes)
    with torch.device("meta"), transformers_at(f"build the {row.model_type} outline"):
        outline: Any = AutoModelForCausalLM.from_config(made)
    parameters = sum(parameter.numel() for parameter in outline.parameters())
    idle = (sizes.experts - sizes.top_k) * sizes.width * 3 * config.hidden_size
    return MoePlan(row, sizes, made, parameters, parameters - idle * layers_of(loaded.model))


def moe_sizes(partition: Partition, top_k: int | None = None) -> MoeSizes:
    """The sizes of the mixture that a partition makes.

    Raises:
        ConfigurationError: if they differ within or between layers, or ``top_k`` does not fit.
    """
    found = {}
    for layer in partition.owners:
        widths = sorted({len(group) for group in partition.members(layer)})
        found[layer] = (partition.groups(layer), widths, len(partition.shared(layer)))
    first, (experts, widths, shared) = next(iter(found.items()))
    other = next((layer for layer, sizes in found.items() if sizes != found[first]), None)
    if len(widths) > 1 or other is not None:
        shown = [first] if other is None else [first, other]
        problems = [
            f"layer {n}: {found[n][0]} groups of {' or '.join(map(str, found[n][1]))} neurons, "
            f"{found[n][2]} shared"
            for n in shown
        ]
        raise ConfigurationError(
            "a mixture of experts has the same number of groups, of one size, in every layer; make "
            f"a balanced partition:{listed(problems)}"
        )
    if top_k is not None and not 1 <= top_k <= experts:
        raise ConfigurationError(
            f"{top_k} experts for each token were asked for, but the partition has {experts} "
            f"groups; choose from 1 to {experts}."
        )
    return MoeSizes(experts, widths[0], shared, experts if top_k is None else top_k)


def _require_layers(model: PreTrainedModel, partition: Partition) -> None:
    wanted, found = list(range(layers_of(model))), sorted(partition.owners)
    if wanted != found:
        raise ConfigurationError(
            f"a mixture of experts needs groups in all {len(wanted)} layers, but the partition has "
            f"them in {len(found)} ({', '.join(map(str, found[:8]))}); partition the whole model."
        )


def _require_dtype(sizes: MoeSizes, dtype: torch.dtype) -> None:
    """Refuse what the number format, or the matrix product of transformers in it, cannot hold."""
    if dtype == torch.float16:
        raise ModelError(
            "a mixture of experts has router weights too small for float16; load the model in "
            "bfloat16 or float32."
        )
    step = 16 // dtype.itemsize
    if sizes.width % step:
        name = str(dtype).removeprefix("torch.")
        raise ConfigurationError(
            f"experts of {sizes.width} neurons were asked for, but the grouped matrix product of "
            f"transformers takes a multiple of {step} in {name}; make groups of another size."
        )


def export_moe(
    loaded: LoadedModel,
    partition: Partition,
    *,
    target: str | None = None,
    top_k: int | None = None,
    routers: Mapping[int, Float[Tensor, "groups hidden"]] | None = None,
) -> PreTrainedModel:
    """The dense model as a mixture of experts, in its dtype and on its device, ready to evaluate.

    With all experts chosen it says what the dense model says. With fewer, it says what the dense
    model says when the neurons of the other groups are silent. Both hold up to the rounding of
    the routers' logits (``moe_routers.SPREAD``), and for which ``top_k`` is in ``MOE_TARGETS``.

    Args:
        loaded: the dense model; it is left as it is and shares no memory with the result.
        partition: as for ``plan_moe``; made for this model.
        target: as for ``plan_moe``.
        top_k: as for ``plan_moe``.
        routers: for every layer a row for each group, which scores the group by its product with
            what the FFN reads; by default ``centroid_routers``. Only their order of the groups is
            kept.

    Raises:
        ConfigurationError: as ``plan_moe``; also if the partition was made for another model, or
            the routers do not fit it.
        UnknownNameError, ModelError: as ``plan_moe``.
    """
    plan = plan_moe(loaded, partition, target=target, top_k=top_k)
    problems = fingerprint_misfits(partition.spec.base, loaded.base.fingerprint)
    if problems:
        raise ConfigurationError(
            f"the partition was made for another model than {loaded.name!r}; make one for this "
            f"model:{listed(problems)}"
        )
    found = centroid_routers(loaded.model, partition) if routers is None else routers
    _require_routers(found, partition, plan.config.hidden_size)
    model = _empty(plan, loaded)
    places = model.state_dict()
    filled = set(_fill(places, _backbone(loaded.model, plan.config)))
    for layer in partition.owners:
        # One layer after the other, so that its copies are gone before the next is made.
        part = _mixture(loaded.model, partition, plan, layer)
        flat = flat_router(found[layer], hearing(loaded.model, layer))
        part[f"{_BLOCK}.mlp.gate.weight".format(layer=layer)] = flat
        filled.update(_fill(places, part))
    unfilled = {name for name in places if not name.endswith(_ZERO)} - filled
    assert not unfilled, f"{plan.target.model_type} has {sorted(unfilled)[:5]} besides"
    model.tie_weights()
    if loaded.model.can_generate():
        model.generation_config = copy.deepcopy(loaded.model.generation_config)
    made: PreTrainedModel = model.eval()
    return made


def _empty(plan: MoePlan, loaded: LoadedModel) -> PreTrainedModel:
    """A model of the plan's configuration without weights, where the dense one is."""
    kind = plan.target.model_type
    with torch.device(loaded.device), no_init_weights(), transformers_at(f"build a {kind} model"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(plan.config, dtype=loaded.dtype)
    for name, buffer in model.named_buffers():
        if name.endswith(_ZERO):
            buffer.zero_()
    return model


@torch.no_grad()
def _fill(places: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Copy tensors to where they belong; their names."""
    for name, tensor in state.items():
        assert places[name].shape == tensor.shape, f"{name}: {list(tensor.shape)}"
        places[name].copy_(tensor)
    return list(state)


def _require_routers(routers: Mapping[int, Tensor], partition: Partition, hidden: int) -> None:
    problems = []
    for layer in partition.owners:
        wanted = [partition.groups(layer), hidden]
        shape = list(routers[layer].shape) if layer in routers else None
        if shape is None:
            problems.append(f"layer {layer}: has none")
        elif shape != wanted:
            problems.append(f"layer {layer}: {shape}, not {wanted}")
        elif not bool(torch.isfinite(routers[layer]).all()):
            problems.append(f"layer {layer}: holds NaN or infinite values")
    if problems:
        raise ConfigurationError(
            "the routers do not fit the partition; give a matrix (groups, hidden size) for every "
            f"layer:{listed(problems)}"
        )


def _backbone(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, Tensor]:
    """Everything but the FFNs, by the names that all targets have."""
    state: dict[str, Tensor] = {}
    for role, place in (("embed", "model.embed_tokens"), ("final_norm", "model.norm")):
        state[f"{place}.weight"] = model.get_parameter(f"{role_path(model, role, None)}.weight")
    state["lm_head.weight"] = model.get_parameter(f"{role_path(model, 'unembed', None)}.weight")
    for layer in range(layers_of(model)):
        block = _BLOCK.format(layer=layer)
        for role, place in _PLACES.items():
            if role in _LINEAR:
                state |= _linear(model, role, layer, f"{block}.{place}", config)
            elif path := role_path(model, role, layer):
                state[f"{block}.{place}.weight"] = model.get_parameter(f"{path}.weight")
    return state


def _linear(
    model: PreTrainedModel, role: str, layer: int, place: str, config: PreTrainedConfig
) -> dict[str, Tensor]:
    """One map of attention, out of a fused one if need be; a missing bias is zero."""
    part = find_part(model, role, layer)
    assert part is not None, f"dense families have {role}"
    rows = slice(part.outputs[0], part.outputs[-1] + 1)
    weight = model.get_parameter(part.weight)[rows]
    found = {f"{place}.weight": weight}
    if part.bias:
        found[f"{place}.bias"] = model.get_parameter(part.bias)[rows]
    elif role != "attn.o" and getattr(config, "qkv_bias", False):
        found[f"{place}.bias"] = weight.new_zeros(len(weight))
    return found


@torch.no_grad()
def _mixture(
    model: PreTrainedModel, partition: Partition, plan: MoePlan, layer: int
) -> dict[str, Tensor]:
    """Experts and shared expert of a layer."""
    ffn, sizes, target = gated_ffn(model, layer), plan.sizes, plan.target
    assert ffn.gate is not None
    mlp, device = f"{_BLOCK}.mlp".format(layer=layer), ffn.down.device
    groups = [group.to(device) for group in partition.members(layer)]
    scale = target.scale(sizes)
    state = {
        f"{mlp}.experts.gate_up_proj": torch.stack(
            [torch.cat([ffn.gate[group], ffn.up[group]]) for group in groups]
        ),
        f"{mlp}.experts.down_proj": torch.stack([ffn.down[:, group] * scale for group in groups]),
    }
    width = target.shared_width(sizes)
    if width:
        kept = partition.shared(layer).to(device)
        name = f"{mlp}.{target.shared_name}"
        padded = width - len(kept)
        state[f"{name}.gate_proj.weight"] = _padded(ffn.gate[kept], padded)
        state[f"{name}.up_proj.weight"] = _padded(ffn.up[kept], padded)
        down = ffn.down[:, kept] * target.shared_scale
        state[f"{name}.down_proj.weight"] = _padded(down.T, padded).T
        if target.shared_gate:
            state[f"{name}_gate.weight"] = ffn.down.new_zeros(1, len(ffn.down))
    return state


def _padded(rows: Float[Tensor, "neurons hidden"], more: int) -> Float[Tensor, "wider hidden"]:
    return torch.cat([rows, rows.new_zeros(more, rows.shape[1])])
