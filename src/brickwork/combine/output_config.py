"""The ``config.json`` of a merge: its donor's, with the layers and the dtype that it has."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from brickwork.combine.checkpoints import Checkpoint
from brickwork.combine.layout import Span
from brickwork.combine.names import layer_count

# Settings that name layers by their numbers.
_LAYER_NUMBERS = ("mlp_only_layers", "cross_attention_layers", "full_attention_layers")
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
    for name, value in list(part.items()):
        # Layers may come from models whose settings differ; each keeps its own.
        per_layer = [(_part(c, above).get(name), layer) for c, layer in chosen]
        if name in _LAYER_NUMBERS and isinstance(value, list):
            part[name] = [n for n, (own, layer) in enumerate(per_layer) if layer in (own or ())]
        elif _is_per_layer(name, value, before) and all(
            isinstance(own, list) and layer < len(own) for own, layer in per_layer
        ):
            part[name] = [own[layer] for own, layer in per_layer if isinstance(own, list)]
        elif name == "per_layer_config" and isinstance(value, dict):
            part[name] = _renumbered(per_layer)
    return [
        f"{name} counts layers from the first, and the slices move layers; check that each is "
        "still of its kind"
        for name in _COUNTED
        if part.get(name) not in (None, 0, 1)
    ]


def _renumbered(per_layer: Sequence[tuple[Any, int]]) -> dict[str, Any]:
    found = {}
    for number, (own, layer) in enumerate(per_layer):
        settings = (own or {}).get(str(layer), (own or {}).get(layer))
        if settings is not None:
            found[str(number)] = copy.deepcopy(settings)
    return found


def _is_per_layer(name: str, value: Any, layers: int) -> bool:
    return isinstance(value, list) and len(value) == layers and ("layer" in name or "block" in name)


def _part(checkpoint: Checkpoint, above: Sequence[str]) -> Mapping[str, Any]:
    part = checkpoint.config.get(above[0], {}) if above else checkpoint.config
    return part if isinstance(part, Mapping) else {}
