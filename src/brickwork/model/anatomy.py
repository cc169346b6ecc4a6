"""What a model is made of, as one document: layers, heads, neurons, and what can be plugged in."""

import re
from typing import Any

from transformers import PreTrainedConfig

from brickwork.brick.base import Site, SiteKind
from brickwork.brick.forms import forms
from brickwork.model.heads import heads_of, layer_config
from brickwork.model.load import LoadedModel
from brickwork.model.parts import experts_row_of, ffn_row_of, layers_of
from brickwork.model.sockets import roles_of, sites_of
from brickwork.model.units import unit_counts

# Where a parameter counts, by the first word of the role that it belongs to.
_PARTS = ("embed", "positions", "unembed", "attn", "mlp", "norms")


def anatomy(loaded: LoadedModel, *, fingerprint: bool = True) -> dict[str, Any]:
    """The document; only what JSON can say.

    Args:
        loaded: a model, or its outline.
        fingerprint: whether to read all weights for the fingerprint, which an outline cannot.

    Returns:
        ``layers`` lists the layers; it is None for a family that no row describes, whose
        sites are listed all the same. Bytes count the weights at the given dtype.
    """
    model, config = loaded.model, loaded.model.config.get_text_config()
    sites = sites_of(model)
    known = loaded.architecture is not None
    return {
        "name": loaded.name,
        "family": model.config.model_type,
        "known": known,
        "hidden": getattr(config, "hidden_size", None),
        "vocabulary": getattr(config, "vocab_size", None),
        "positions": _positions(loaded, config),
        "layers": [_layer(loaded, layer) for layer in range(layers_of(model))] if known else None,
        "parameters": _parameters(loaded),
        "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "tied_embeddings": _tied(loaded),
        "sites": _sites(sites),
        "fingerprint": loaded.base.fingerprint.model_dump() if fingerprint else None,
    }


def _layer(loaded: LoadedModel, layer: int) -> dict[str, Any]:
    model = loaded.model
    own = layer_config(model.config, layer)
    heads, ffn = heads_of(model.config, layer), ffn_row_of(model, layer)
    units = unit_counts(model, layer)
    experts = units.get("mlp.experts")
    return {
        "layer": layer,
        "heads": heads.heads,
        "kv_heads": heads.kv_heads,
        "head_dim": heads.head_dim,
        "window": _window(own, layer),
        "ffn": ffn.form,
        "neurons": units["mlp.neurons"],
        "experts": experts,
        "experts_per_token": getattr(own, experts_row_of(model, layer).top_k) if experts else None,
    }


def _window(own: PreTrainedConfig, layer: int) -> int | None:
    """How many tokens back a layer sees, None if all."""
    types = getattr(own, "layer_types", None)
    if types and "sliding" not in types[layer]:
        return None
    window: int | None = getattr(own, "sliding_window", None)
    return window


def _positions(loaded: LoadedModel, config: PreTrainedConfig) -> dict[str, Any]:
    learned = loaded.architecture is not None and "positions" in loaded.architecture.roles
    rotary = bool(getattr(config, "rope_parameters", None))
    kind = "learned" if learned else "rotary" if rotary else "unknown"
    return {"kind": kind, "longest": getattr(config, "max_position_embeddings", None)}


def _parameters(loaded: LoadedModel) -> dict[str, int]:
    """Parameters by part of the model, tied ones once."""
    counts = dict.fromkeys(("total", *_PARTS, "other"), 0)
    roles = roles_of(loaded.model)
    for name, parameter in loaded.model.named_parameters():
        around = [name[: dot.start()] for dot in re.finditer(r"\.", name)][::-1]
        role = next((roles[path][0] for path in around if path in roles), "other")
        part = "norms" if role == "final_norm" else role.partition(".")[0]
        counts[part if part in counts else "other"] += parameter.numel()
        counts["total"] += parameter.numel()
    return counts


def _tied(loaded: LoadedModel) -> bool:
    output = loaded.model.get_output_embeddings()
    return output is not None and output.weight is loaded.model.get_input_embeddings().weight


def _sites(sites: dict[str, Site]) -> dict[str, Any]:
    """For each kind of site: how many there are, the forms that fit, and their addresses."""
    kinds: list[SiteKind] = ["embedding", "block", "attention", "linear", "norm"]
    return {
        kind: {
            "forms": [
                form.name
                for form in forms().values()
                if kind in form.sites and form.effect != "none"
            ],
            "addresses": [site.address for site in sites.values() if site.kind == kind],
        }
        for kind in kinds
    }
