"""A smaller model of the same family: the kept units of a model, everything else gone.

The result is plain: ``AutoModelForCausalLM.from_pretrained`` loads it, and it computes what the
full model computes with the other units silent. A plain checkpoint has one FFN width and one
number of heads for all of its layers (``per_layer_config`` of transformers 5.23 is not honoured
by the families known here). Where layers keep different numbers, the narrower ones are padded
with zeros up to the widest: units that say nothing, but are stored and computed. The width of
experts is padded to a multiple of 8, too, for the grouped products of torch want rows of whole 16
bytes.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from brickwork.errors import ModelError
from brickwork.model.config import transformers_at
from brickwork.model.heads import heads_of
from brickwork.model.load import LoadedModel
from brickwork.model.parts import (
    Slice,
    ffn_row_of,
    find_module,
    layers_of,
    role_path,
    row_of,
)
from brickwork.model.sizes import (
    EXPERT_WIDTH_KEYS,
    WIDTH_KEY,
    WIDTH_KEYS,
    config_with,
    layer_entries,
)
from brickwork.model.units import UNITS, unit_counts

NEURONS, EXPERTS, KV_HEADS = "mlp.neurons", "mlp.experts", "attn.kv_heads"
_EXPERT_COUNT = "num_experts"
_EXPERT_STEP = 8  # neurons, of 2 bytes at least


@dataclass(frozen=True, eq=False)
class Kept:
    """What stays of a model, in the numbers of the full one, ascending.

    Attributes:
        neurons: for each layer; a layer that is not named stays whole. In an MoE layer neuron i
            of expert e counts as ``e * width + i``, and those of experts that go do not count.
        kv_heads: key and value heads, each with the query heads that read it.
        experts: of MoE layers.
        layers: None for all.
    """

    neurons: Mapping[int, Int[Tensor, " kept"]] = field(default_factory=dict)
    kv_heads: Mapping[int, Int[Tensor, " kept"]] = field(default_factory=dict)
    experts: Mapping[int, Int[Tensor, " kept"]] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None

    def of(self, word: str) -> Mapping[int, Int[Tensor, " kept"]]:
        """The kept units of a word of ``units.UNITS``."""
        return {NEURONS: self.neurons, EXPERTS: self.experts, KV_HEADS: self.kv_heads}[word]


@dataclass(frozen=True)
class _Cut:
    """What becomes of the units of a layer that are not kept."""

    dropped: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """The layers that stay, what is cut in each, and the entries of the configuration."""

    layers: tuple[int, ...]
    cuts: Mapping[int, Mapping[str, _Cut]]
    config: Mapping[str, object]


def carve_model(loaded: LoadedModel, kept: Kept) -> PreTrainedModel:
    """The smaller model, ready to evaluate; its weights are copies.

    Raises:
        ModelError: if the family's configuration cannot say what is to be kept, or the result
            would not compute what the full model does; says why.
        UnknownNameError: if no row describes the family.
    """
    model = loaded.model
    plan = _plan(model, kept)
    carved_outline(loaded, kept)  # refuses before anything is copied
    with torch.random.fork_rng(devices=[]), no_init_weights():
        smaller: Any = _empty(model, plan)
    smaller.load_state_dict(_state(model, plan), strict=True, assign=True)
    smaller.tie_weights()
    smaller.to(loaded.device)  # what follows from the configuration is there, not in the state
    smaller.generation_config = copy.deepcopy(model.generation_config)
    carved: PreTrainedModel = smaller.eval()
    return carved


def carved_outline(loaded: LoadedModel, kept: Kept) -> PreTrainedModel:
    """The modules and shapes of the smaller model without weights; an outline is enough for it.

    Raises:
        ModelError: as ``carve_model``.
    """
    model = loaded.model
    plan = _plan(model, kept)
    with torch.device("meta"):
        outline = _empty(model, plan)
    _require_shapes(outline, _state(model, plan, outline=True), model.config.model_type)
    return outline


def possible_kv_heads(loaded: LoadedModel) -> list[int]:
    """How many key and value heads a smaller model can have; all of them at least.

    Some families' configurations cannot say how wide a head is, or refuse most numbers of heads.
    """
    model = loaded.model
    count = min(heads_of(model.config, n).kv_heads for n in range(layers_of(model)))
    possible = []
    for number in range(1, count):
        same = {n: torch.arange(number) for n in range(layers_of(model))}
        try:
            carved_outline(loaded, Kept(kv_heads=same))
        except ModelError:
            continue
        possible.append(number)
    return [*possible, count]


def places_of(loaded: LoadedModel, kept: Kept) -> dict[int, Int[Tensor, " places"]]:
    """For each layer that stays, the full model's neuron at every place of the smaller FFN.

    Those that are not kept, though they have a place, are the zeros that pad it.
    """
    model = loaded.model
    plan = _plan(model, kept)
    places = {}
    for layer in plan.layers:
        everything = torch.arange(unit_counts(model, layer)[NEURONS])
        cuts = plan.cuts[layer]
        gone = torch.tensor(cuts[NEURONS].dropped if NEURONS in cuts else (), dtype=torch.int64)
        places[layer] = everything[~torch.isin(everything, gone)]
    return places


def _plan(model: PreTrainedModel, kept: Kept) -> _Plan:
    stays = tuple(range(layers_of(model))) if kept.layers is None else tuple(sorted(kept.layers))
    if not stays or stays[0] < 0 or stays[-1] >= layers_of(model):
        raise ModelError(
            f"the layers {list(stays)} were to be kept of a model with {layers_of(model)}; keep at "
            f"least one of 0 to {layers_of(model) - 1}."
        )
    cuts: dict[int, dict[str, _Cut]] = {layer: {} for layer in stays}
    config: dict[str, object] = {}
    moe = [n for n in stays if ffn_row_of(model, n).form == "moe_gated"]
    for key, word, layers in _alike(model, stays, moe):
        touched = [layer for layer in layers if layer in kept.of(word)]
        if not touched:
            continue
        rest = {n: _units(model, n, word, kept) for n in layers}
        whole = {n: _candidates(model, n, word, kept) for n in layers}
        size = max(_fullest(model, n, word, rest[n]) for n in layers)
        if word == NEURONS and layers[0] in moe:
            size = min(-(-size // _EXPERT_STEP) * _EXPERT_STEP, _per_expert(model, layers[0], word))
        for n in layers:
            cuts[n][word] = _cut(model, n, word, whole[n], rest[n], size)
        config |= {key: size} if word != KV_HEADS else _head_entries(model, layers, size)
    if stays != tuple(range(layers_of(model))):
        config |= layer_entries(model, stays)
    if EXPERTS in {word for own in cuts.values() for word in own}:
        _require_enough_experts(model, config)
    return _Plan(stays, cuts, config)


def _alike(
    model: PreTrainedModel, layers: Sequence[int], moe: list[int]
) -> Iterable[tuple[str, str, list[int]]]:
    """For each entry of the configuration: the units that it counts, and the layers it is for."""
    family = model.config.model_type
    dense = [n for n in layers if n not in moe]
    yield _EXPERT_COUNT, EXPERTS, moe
    yield EXPERT_WIDTH_KEYS.get(family, WIDTH_KEY), NEURONS, moe
    yield WIDTH_KEYS.get(family, WIDTH_KEY), NEURONS, dense
    yield "", KV_HEADS, list(layers)


def _candidates(model: PreTrainedModel, layer: int, word: str, kept: Kept) -> Tensor:
    """The units of a layer that there are to keep: neurons of experts that go are none."""
    count = unit_counts(model, layer)[word]
    everything = torch.arange(count)
    if word == NEURONS and layer in kept.experts:
        width = count // unit_counts(model, layer)[EXPERTS]
        everything = everything[torch.isin(everything // width, kept.experts[layer].cpu())]
    return everything


def _units(model: PreTrainedModel, layer: int, word: str, kept: Kept) -> Tensor:
    there = _candidates(model, layer, word, kept)
    if layer not in kept.of(word):
        return there
    wanted = kept.of(word)[layer].cpu().unique()
    count = unit_counts(model, layer)[word]
    if not len(wanted) or int(wanted[0]) < 0 or int(wanted[-1]) >= count:
        raise ModelError(
            f"layers.{layer} was to keep {len(wanted)} {word}, of which it has 0 to {count - 1}; "
            "keep at least one of these."
        )
    stays: Tensor = wanted[torch.isin(wanted, there)]
    return stays


def _per_expert(model: PreTrainedModel, layer: int, word: str) -> int:
    """The width that neurons are counted within: of one expert, or of the whole layer."""
    counts = unit_counts(model, layer)
    return counts[word] // (counts.get(EXPERTS, 1) if word == NEURONS else 1)


def _fullest(model: PreTrainedModel, layer: int, word: str, units: Tensor) -> int:
    """How many units are kept, of the expert that keeps most."""
    owners = units // _per_expert(model, layer, word)
    return int(torch.bincount(owners).max()) if len(units) else 0


def _cut(
    model: PreTrainedModel, layer: int, word: str, whole: Tensor, kept: Tensor, size: int
) -> _Cut:
    """Which of the others go, and which stay as zeros so that there are ``size`` everywhere."""
    width = _per_expert(model, layer, word)
    dropped: list[int] = []
    silent: list[int] = []
    for owner in (whole // width).unique().tolist():
        own, stay = whole[whole // width == owner], kept[kept // width == owner]
        gone = own[~torch.isin(own, stay)].tolist()
        padding = size - len(stay)
        silent += gone[:padding]
        dropped += gone[padding:]
    return _Cut(tuple(dropped), tuple(silent))


def _head_entries(model: PreTrainedModel, layers: Sequence[int], size: int) -> dict[str, object]:
    heads = heads_of(model.config, layers[0])
    for layer in layers:
        _require_own_norms(model, layer)
    return {
        "num_attention_heads": size * heads.group,
        "num_key_value_heads": size,
        "head_dim": heads.head_dim,
    }


def _require_own_norms(model: PreTrainedModel, layer: int) -> None:
    """Refuse a norm over all heads (OLMo 2): without some heads it scales the others anew."""
    heads = heads_of(model.config, layer)
    path = role_path(model, "norms.q", layer)
    weight = getattr(find_module(model, path), "weight", None)
    if weight is not None and len(weight) == heads.heads * heads.head_dim > heads.head_dim:
        raise ModelError(
            f"heads were to be carved out of a {model.config.model_type} model, but {path} is one "
            "norm over all heads, so that the others would change; carve neurons or layers, or "
            "run the heads masked."
        )


def _require_enough_experts(model: PreTrainedModel, config: Mapping[str, object]) -> None:
    row = row_of(model).experts
    assert row is not None, "experts are cut in models that have some"
    picked, count = getattr(model.config.get_text_config(), row.top_k), config[_EXPERT_COUNT]
    assert isinstance(count, int)
    if count < picked:
        raise ModelError(
            f"{count} experts were to be kept, but the router picks {picked} for each token; keep "
            "at least as many."
        )


def _empty(model: PreTrainedModel, plan: _Plan) -> PreTrainedModel:
    """A model of the smaller configuration, its weights still to be set."""
    config = config_with(model.config, plan.config)
    with transformers_at(f"make a smaller {model.config.model_type} of {dict(plan.config)}"):
        smaller: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            dtype=next(model.parameters()).dtype,
            attn_implementation=None,  # the defaults of transformers, as when a model is loaded
            experts_implementation=None,
        )
    return smaller


def _state(model: PreTrainedModel, plan: _Plan, *, outline: bool = False) -> dict[str, Tensor]:
    """The smaller model's weights by name, as copies; or their shapes alone."""
    blocks = row_of(model).blocks
    silent, dropped = _slices(model, plan, "silent"), _slices(model, plan, "dropped")
    numbers = {f"{blocks}.{old}.": f"{blocks}.{new}." for new, old in enumerate(plan.layers)}
    state = {}
    for name, tensor in model.state_dict().items():
        found = re.match(rf"{re.escape(blocks)}\.\d+\.", name)
        block = found.group() if found else ""
        if block and block not in numbers:
            continue
        whole = tensor.detach().to("meta") if outline else tensor.detach().clone()
        for part in silent.get(name, ()):
            _silence(whole, part)
        after = numbers.get(block, "") + name.removeprefix(block)
        state[after] = _without(whole, dropped.get(name, [])).contiguous()
    return state


def _slices(model: PreTrainedModel, plan: _Plan, what: str) -> dict[str, list[Slice]]:
    found: dict[str, list[Slice]] = defaultdict(list)
    for layer, cuts in plan.cuts.items():
        for word, cut in cuts.items():
            units = getattr(cut, what)
            for part in UNITS[word](model, layer, units) if units else ():
                found[part.parameter].append(part)
    return found


def _silence(parameter: Tensor, part: Slice) -> None:
    assert part.indices is not None, "units are some entries of a parameter"
    matrix = parameter if part.expert is None else parameter[part.expert]
    at = torch.tensor(part.indices, device=parameter.device)
    matrix.index_fill_(part.axis - (part.expert is not None), at, 0.0)


def _without(parameter: Tensor, parts: Sequence[Slice]) -> Tensor:
    """The parameter without some entries; inside every expert first, then along whole axes."""
    inner = [part for part in parts if part.expert is not None]
    outer = [part for part in parts if part.expert is None]
    if inner:
        gone = {i for part in outer for i in part.indices or () if part.axis == 0}
        matrices = [
            _drop(parameter[e], [(p.axis - 1, p.indices or ()) for p in inner if p.expert == e])
            for e in range(len(parameter))
            if e not in gone
        ]
        parameter = torch.stack(matrices)
        outer = [part for part in outer if part.axis != 0]
    return _drop(parameter, [(part.axis, part.indices or ()) for part in outer])


def _drop(tensor: Tensor, entries: Iterable[tuple[int, Sequence[int]]]) -> Tensor:
    by_axis: dict[int, set[int]] = defaultdict(set)
    for axis, indices in entries:
        by_axis[axis] |= set(indices)
    for axis, gone in by_axis.items():
        stay = [i for i in range(tensor.shape[axis]) if i not in gone]
        tensor = tensor.index_select(axis, torch.tensor(stay, device=tensor.device))
    return tensor


def _require_shapes(smaller: PreTrainedModel, state: Mapping[str, Tensor], family: str) -> None:
    """Refuse a configuration that asks for other shapes than the kept units have."""
    wanted = {name: tuple(tensor.shape) for name, tensor in smaller.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"the configuration of the family {family!r} cannot say what is to be kept: it asks "
            f"for {wanted.get(name)} in {name}, and {found.get(name)} stay; carve other units, or "
            "run them masked."
        )
