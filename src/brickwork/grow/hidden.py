"""A larger hidden size: wider states between the layers.

By zero-extension the new part of the stream starts as zero and nothing writes to it, while norms
are corrected for the larger mean. By duplication every number of the stream is there as often.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from brickwork.errors import GrowthError
from brickwork.grow.growth import Growth
from brickwork.grow.options import DuplicateOptions, HiddenOptions
from brickwork.grow.spread import Spread, added, repeated
from brickwork.grow.width import wanted
from brickwork.model.heads import heads_of
from brickwork.model.parameters import NORMS, Kind
from brickwork.model.parts import (
    CausalModel,
    ffn_row_of,
    find_module,
    layers_of,
    part_of,
    role_path,
    row_of,
)
from brickwork.model.sizes import WIDTH_KEY, WIDTH_KEYS
from brickwork.model.weights import Weights

_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
_BOUND = ("gpt2", "opt", "gpt_neox")  # whose hidden size is heads times their width


def zero_extend(weights: Weights, options: HiddenOptions) -> Growth:
    """New numbers of the stream start as zero; what reads them is drawn, and learns first.

    An RMSNorm divides by the root of a mean over more numbers, so its weight shrinks by
    sqrt(d/d') and its epsilon by d/d'. Norms of queries and keys share the epsilon, so that what
    they read shrinks by sqrt(d/d'), too, which they take out again.

    Raises:
        GrowthError: for LayerNorm, which also subtracts the mean: zeros move it for every token.
    """
    model = weights.outline
    old = model.config.get_text_config().hidden_size
    new = wanted(old, options.size, options.times, "hidden numbers")
    _require_rms(model)
    spread = added(old, new, written="zero", read="draw")
    factors = _times(dict.fromkeys(NORMS, (old / new) ** 0.5), _scaled(model, old, new))
    config = model.config.get_text_config()
    entries: dict[str, Any] = {"hidden_size": new, "head_dim": heads_of(config, 0).head_dim}
    for key in _EPS:
        if getattr(config, key, None):
            entries[key] = getattr(config, key) * old / new
    if "norms.q" in row_of(model).roles:
        # These norms share the epsilon, though what they read is as long as before.
        factors |= dict.fromkeys(("attn.q", "attn.k"), (old / new) ** 0.5)
    return Growth("equal", entries, {"hidden": spread}, factors=factors)


def duplicate_hidden(weights: Weights, options: DuplicateOptions) -> Growth:
    """Every number of the stream as often; readers divide what they read among the copies.

    Norms stay as they are, for means over equal numbers of copies do not change. Where the hidden
    size is the heads times their width, heads are duplicated with it.

    Raises:
        GrowthError: if the new size is no multiple of the old one; see ``duplicate_some``.

    Source: Net2Net (Chen et al. 2016, arXiv:1511.05641); bert2BERT (arXiv:2110.07143).
    """
    model = weights.outline
    old = model.config.get_text_config().hidden_size
    new = wanted(old, options.size, options.times, "hidden numbers")
    if new % old:
        raise GrowthError(
            f"a hidden size of {new} was asked for by duplication of {old}, but only equal numbers "
            "of copies leave the means that norms divide by as they were; ask for a multiple, "
            "choose `zero-extend`, or `duplicate-some`, which changes what the model says."
        )
    return _duplicated(weights, old, new, options.shares)


def duplicate_some(weights: Weights, options: DuplicateOptions) -> Growth:
    """Some numbers of the stream twice: popular, but it changes what norms divide by.

    Source: bert2BERT (Chen et al. 2022, arXiv:2110.07143), which accepts the error.
    """
    model = weights.outline
    old = model.config.get_text_config().hidden_size
    new = wanted(old, options.size, options.times, "hidden numbers")
    if model.config.model_type in _BOUND and new % old:
        raise GrowthError(
            f"a hidden size of {new} was asked for of a {model.config.model_type} model, where it "
            f"is the heads times their width; ask for a multiple of {old}."
        )
    return _duplicated(weights, old, new, options.shares)


def _duplicated(weights: Weights, old: int, new: int, shares: Literal["even", "uneven"]) -> Growth:
    model = weights.outline
    config = model.config.get_text_config()
    source = repeated(old, new)
    spreads: dict[Kind, Spread] = {"hidden": added(old, new, source=source, shares=shares)}
    factors: dict[str, float] = {}
    entries: dict[str, Any] = {"hidden_size": new}
    if model.config.model_type in _BOUND:
        heads, times = heads_of(config, 0), new // old
        copies = repeated(heads.heads, heads.heads * times)
        bound = added(heads.heads, heads.heads * times, source=copies, shares=shares)
        spreads |= {"heads": bound, "kv_heads": bound}
        entries["num_attention_heads"] = heads.heads * times
        entries |= _own_width(model)
        if model.config.model_type == "opt":
            entries["word_embed_proj_dim"] = new
    else:
        entries["head_dim"] = heads_of(config, 0).head_dim
    if _is_tied(model):
        # The unembedding is the embedding, whose copies are whole: it reads too much by the factor.
        _require_final_norm(model)
        factors["final_norm"] = old / new
    factors = _times(factors, _scaled(model, old, new))
    promise: Literal["equal", "none"] = "equal" if new % old == 0 else "none"
    return Growth(promise, entries, spreads, factors=factors)


def _times(some: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    return {role: some.get(role, 1.0) * others.get(role, 1.0) for role in {**some, **others}}


def _scaled(model: CausalModel, old: int, new: int) -> dict[str, float]:
    """What makes up for embeddings that are multiplied by the root of the hidden size."""
    if not row_of(model).embed_scaled:
        return {}
    factor = (old / new) ** 0.5
    if not _is_tied(model):
        return {"embed": factor}
    return {"embed": factor, "final_norm": 1 / factor}


def _is_tied(model: CausalModel) -> bool:
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    return bool(head.weight is words.weight)


def _own_width(model: CausalModel) -> dict[str, int]:
    """The FFN's width, which some families derive from the hidden size."""
    width = len(part_of(model, "mlp.up", 0).outputs)
    assert ffn_row_of(model, 0).form == "vanilla", "of these families"
    return {WIDTH_KEYS.get(model.config.model_type, WIDTH_KEY): width}


def _require_rms(model: CausalModel) -> None:
    kinds = {
        type(find_module(model, role_path(model, role, layer)))
        for role in NORMS
        for layer in (range(layers_of(model)) if role != "final_norm" else [None])
    } - {type(None)}
    if any(issubclass(kind, nn.LayerNorm) for kind in kinds):
        raise GrowthError(
            f"a larger hidden size by zeros was asked for of a {model.config.model_type} model, "
            "whose LayerNorm subtracts the mean of all numbers: zeros would move it for every "
            "token. Choose `duplicate` with a multiple of the size."
        )


def _require_final_norm(model: CausalModel) -> None:
    norm = find_module(model, role_path(model, "final_norm", None))
    if norm is None or getattr(norm, "weight", None) is None:
        raise GrowthError(
            f"a larger hidden size was asked for of a {model.config.model_type} model whose "
            "unembedding is its embedding, and the copies there have to be divided by a last norm, "
            "which it does not have (or without a weight); grow neurons or heads."
        )
