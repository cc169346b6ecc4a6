"""Where a brick can sit in a model: its sites, for any family.

A site's address is in the words of ``architecture.ROLES`` (``layers.3.attn.q``, ``layers.3`` for
the block); a linear map or norm without a role has its module path instead. Without a row for the
family, the blocks and attentions stay unknown, and everything else is found.
"""

import re

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from brickwork.brick.base import Site
from brickwork.model.architecture import architectures
from brickwork.model.heads import heads_of
from brickwork.model.parts import layers_of, path_of
from brickwork.model.units import unit_counts


def sites_of(model: PreTrainedModel) -> dict[str, Site]:
    """The sites by module path, in the model's order; two addresses are never the same."""
    words = roles_of(model)
    embedding = model.get_input_embeddings()
    sites = {}
    for path, module in model.named_modules():
        role, layer = words.get(path, ("", _layer_around(path, words)))
        address = _address(path, role, layer)
        if module is embedding and isinstance(module, nn.Embedding):
            sizes = {"hidden": module.embedding_dim, "vocabulary": module.num_embeddings}
            sites[path] = Site(path, "embed", "embedding", sizes)
        elif sizes := _linear_sizes(module):
            sites[path] = Site(path, address, "linear", sizes, layer)
        elif sizes := _norm_sizes(module):
            sites[path] = Site(path, address, "norm", sizes, layer)
        elif role == "attn" and layer is not None:
            heads = heads_of(model.config, layer)
            sizes = {"kv_heads": heads.kv_heads, "head_dim": heads.head_dim}
            sites[path] = Site(path, address, "attention", sizes, layer)
        elif role == "mlp.experts" and layer is not None:
            sizes = {"in": unit_counts(model, layer)["mlp.neurons"]}
            sites[path] = Site(path, address, "experts", sizes, layer)
        elif role == "block":
            sizes = {"hidden": model.config.get_text_config().hidden_size}
            sites[path] = Site(path, address, "block", sizes, layer)
    return sites


def roles_of(model: PreTrainedModel) -> dict[str, tuple[str, int | None]]:
    """Role and layer of every module that has a role, by path."""
    row = architectures().get(model.config.model_type)
    roles: dict[str, tuple[str, int | None]] = {}
    for role, template in row.roles.items() if row else ():
        numbers = range(layers_of(model)) if "{layer}" in template else (None,)
        roles |= {template.replace("{layer}", str(n)): (role, n) for n in numbers}
    for role, module in (
        ("embed", model.get_input_embeddings()),
        ("unembed", model.get_output_embeddings()),
    ):
        path = path_of(model, module)
        if path is not None:
            roles[path] = (role, None)
    return roles


def _layer_around(path: str, words: dict[str, tuple[str, int | None]]) -> int | None:
    """The number of the block that a module without a role is in."""
    above = [path[: dot.start()] for dot in re.finditer(r"\.", path)]
    return next((words[p][1] for p in above if words.get(p, ("",))[0] == "block"), None)


def _address(path: str, role: str, layer: int | None) -> str:
    if not role:
        return path
    inside = [] if role == "block" else [role]
    return ".".join([*([] if layer is None else [f"layers.{layer}"]), *inside])


def _linear_sizes(module: nn.Module) -> dict[str, int]:
    if isinstance(module, nn.Linear):
        return {"in": module.in_features, "out": module.out_features}
    if isinstance(module, Conv1D):
        return {"in": module.nx, "out": module.nf}
    return {}


def _norm_sizes(module: nn.Module) -> dict[str, int]:
    """The width of a norm; a norm is known by its name, since the families share no class."""
    weight = getattr(module, "weight", None)
    if "Norm" not in type(module).__name__ or (weight is not None and weight.dim() != 1):
        return {}
    width = getattr(module, "normalized_shape", None) or (() if weight is None else weight.shape)
    return {"out": width[-1]} if width else {}
