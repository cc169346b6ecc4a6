"""The ``config.json`` of a merge: its donor's, with the layers and the dtype that it has."""

import copy
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from brickwork.combine.checkpoints import Checkpoint
from brickwork.combine.layout import Span
from brickwork.combine.names import layer_count
from brickwork.errors import ModelError

# Settings that name layers by their numbers.
_LAYER_NUMBERS = ("mlp_only_layers", "cross_attention_layers", "full_attention_layers")
_KINDS = "layer_types"
_PATTERNS = ("sliding_window_pattern", "full_attention_interval")  # say what layer_types says
# It needs transformers, which takes longer to load than many a merge takes.
_READER = "brickwork.model.config:read_config"
# Settings that count layers, so that a layer in another place becomes another kind of layer.
_COUNTED = (
    "decoder_sparse_step", "first_k_dense_replace", "sliding_window_pattern", "moe_layer_freq",
    "full_attention_interval", "attn_layer_period", "attn_layer_offset", "expert_layer_period",
    "expert_layer_offset", "no_rope_layer_interval", "interleave_moe_layer_step",
    "cross_attention_freq",
)  # fmt: skip


def output_config(
    donor: Checkpoint, spans: Sequence[Span], dtypes: Iterable[torch.dtype], *, head: str
) -> tuple[dict[str, Any], list[str]]:
    """The configuration, and notes on what it cannot say.

    Args:
        donor: whose configuration is taken over.
        spans: the output's layers.
        dtypes: of the tensors that are written.
        head: the output's head; empty: it is tied or there is none.
    """
    config = copy.deepcopy(dict(donor.config))
    notes = _set_layers(config, donor, spans)
    floats = {dtype for dtype in dtypes if dtype.is_floating_point}
    if len(floats) == 1:
        _set_dtype(config, str(floats.pop()).removeprefix("torch."))
    if head and config.get("tie_word_embeddings", True):
        for part in (config, config.get("text_config")):
            if isinstance(part, dict) and (part is config or "tie_word_embeddings" in part):
                part["tie_word_embeddings"] = False
    return config, notes


def _set_dtype(config: dict[str, Any], name: str) -> None:
    """Of the whole and of its parts, under the name that the donor's transformers gave it."""
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    config[key] = name
    for part in config.values():
        for key in ("dtype", "torch_dtype"):
            if isinstance(part, dict) and isinstance(part.get(key), str):
                part[key] = name


def _set_layers(config: dict[str, Any], donor: Checkpoint, spans: Sequence[Span]) -> list[str]:
    chosen = [
        (span.inputs[0].checkpoint, span.inputs[0].start + offset)
        for span in spans
        for offset in range(span.layers)
    ]
    counted = layer_count(config)
    if [layer for _, layer in chosen] == list(range(donor.stack.layers if donor.stack else 0)):
        return []
    if counted is None:
        return ["the configuration does not say how many layers there are; check it by hand"]
    (*above, key), before = counted
    part = config[above[0]] if above else config
    part[key] = len(chosen)
    notes = _set_kinds(part, above, chosen)
    for name, value in list(part.items()):
        # Layers may come from models whose settings differ; each keeps its own.
        per_layer = [(_part(c, above).get(name), layer) for c, layer in chosen]
        if name == _KINDS:
            continue
        if name in _LAYER_NUMBERS and isinstance(value, list):
            part[name] = [
                n
                for n, (own, layer) in enumerate(per_layer)
                if isinstance(own, list) and layer in own
            ]
        elif _is_per_layer(name, value, before) and all(
            isinstance(own, list) and layer < len(own) for own, layer in per_layer
        ):
            part[name] = [own[layer] for own, layer in per_layer if isinstance(own, list)]
        elif name == "per_layer_config" and isinstance(value, dict):
            part[name] = _renumbered(per_layer)
    return notes + [
        f"{name} counts layers from the first, and the slices move layers; check that each is "
        "still of its kind"
        for name in _COUNTED
        if part.get(name) not in (None, 0, 1) and not (name in _PATTERNS and _KINDS in part)
    ]


def _set_kinds(
    part: dict[str, Any], above: Sequence[str], chosen: Sequence[tuple[Checkpoint, int]]
) -> list[str]:
    """Of which kind each layer's attention is. Older configurations leave it to the place."""
    if not part.get(_KINDS) and not part.get("sliding_window"):
        return []
    models = {checkpoint.ref: checkpoint for checkpoint, _ in chosen}
    try:
        kinds = {ref: _kinds(checkpoint, above) for ref, checkpoint in models.items()}
    except ModelError as error:
        part.pop(_KINDS, None)
        return [f"which layers see a window only cannot be told ({error}); check {_KINDS} by hand"]
    part.pop(_KINDS, None)
    if all(layer < len(kinds[c.ref]) for c, layer in chosen):
        part[_KINDS] = [kinds[c.ref][layer] for c, layer in chosen]
    return []


def _kinds(checkpoint: Checkpoint, above: Sequence[str]) -> Sequence[str]:
    """Those that the configuration states, or else those that transformers takes; or none."""
    stated = _part(checkpoint, above).get(_KINDS)
    if stated and isinstance(stated, list):
        return stated
    config = pkgutil.resolve_name(_READER)(checkpoint.folder, str(checkpoint.ref))
    part = getattr(config, above[0]) if above else config
    return getattr(part, _KINDS, None) or ()


def _renumbered(per_layer: Sequence[tuple[Any, int]]) -> dict[str, Any]:
    found = {}
    for number, (own, layer) in enumerate(per_layer):
        settings = own.get(str(layer)) if isinstance(own, dict) else None
        if settings is not None:
            found[str(number)] = copy.deepcopy(settings)
    return found


def _is_per_layer(name: str, value: Any, layers: int) -> bool:
    return isinstance(value, list) and len(value) == layers and ("layer" in name or "block" in name)


def _part(checkpoint: Checkpoint, above: Sequence[str]) -> Mapping[str, Any]:
    part = checkpoint.config.get(above[0], {}) if above else checkpoint.config
    return part if isinstance(part, Mapping) else {}
