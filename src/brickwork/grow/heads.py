"""More attention heads: whole groups with keys and values of their own, or queries in a group."""

from typing import Annotated, Any, Literal

from pydantic import Field

from brickwork.errors import GrowthError
from brickwork.grow.growth import Growth
from brickwork.grow.options import Options
from brickwork.grow.spread import NONE, Spread, added, repeated
from brickwork.grow.width import wanted
from brickwork.model.heads import Heads, heads_of
from brickwork.model.parts import find_module, layers_of, role_path, row_of
from brickwork.model.weights import Weights

Count = Annotated[int, Field(ge=1)]


class GroupOptions(Options):
    """Groups of heads afterwards.

    Attributes:
        kv_heads: key and value heads, each with as many query heads as before.
        by: new groups are copies whose outputs are divided, or say nothing at first.
        shares: of copies; uneven ones let them learn apart.
    """

    kv_heads: Count
    by: Literal["split", "zero"] = "split"
    shares: Literal["even", "uneven"] = "uneven"


class QueryOptions(Options):
    """Query heads afterwards, of all groups together; otherwise as GroupOptions."""

    heads: Count
    by: Literal["split", "zero"] = "split"
    shares: Literal["even", "uneven"] = "uneven"


def add_groups(weights: Weights, options: GroupOptions) -> Growth:
    """Whole groups more: a key and value head with its query heads.

    Raises:
        GrowthError: if the family cannot have another number of heads, or one that is no growth.

    Source: Net2Net (Chen et al. 2016, arXiv:1511.05641), on grouped heads.
    """
    heads = _require_free_heads(weights)
    new = wanted(heads.kv_heads, options.kv_heads, None, "groups of heads")
    sources = repeated(heads.kv_heads, new) if options.by == "split" else None
    groups = _added(heads.kv_heads, new, sources, options.shares)
    own = [
        NONE if group == NONE else group * heads.group + place
        for group in groups.source[heads.kv_heads :]
        for place in range(heads.group)
    ]
    queries = _added(heads.heads, new * heads.group, own, options.shares)
    entries = {
        "num_attention_heads": new * heads.group,
        "num_key_value_heads": new,
        "head_dim": heads.head_dim,
    }
    return Growth("equal", entries, {"heads": queries, "kv_heads": groups})


def add_queries(weights: Weights, options: QueryOptions) -> Growth:
    """More query heads in every group, which read the keys and values that there are.

    Raises:
        GrowthError: as ``add_groups``; also if the groups cannot get equally many.
    """
    heads = _require_free_heads(weights)
    new = wanted(heads.heads, options.heads, None, "query heads")
    if new % heads.kv_heads:
        raise GrowthError(
            f"{new} query heads were asked for, and each of {heads.kv_heads} key heads is read by "
            f"equally many; ask for a multiple of {heads.kv_heads}."
        )
    size = new // heads.kv_heads
    source: list[int] = []
    for group in range(heads.kv_heads):  # heads of a group stand together
        own = range(group * heads.group, (group + 1) * heads.group)
        copies = [own[place % heads.group] for place in range(size - heads.group)]
        source += [*own, *(copies if options.by == "split" else [NONE] * len(copies))]
    fresh = tuple(place % size >= heads.group for place in range(new))
    shares = options.shares if options.by == "split" else None
    entries = {"num_attention_heads": new, "head_dim": heads.head_dim}
    entries["num_key_value_heads"] = heads.kv_heads
    return Growth("equal", entries, {"heads": Spread(tuple(source), fresh, shares=shares)})


def _added(old: int, new: int, source: Any, shares: Literal["even", "uneven"]) -> Spread:
    copies = source is not None and NONE not in source
    return added(old, new, source=source, shares=shares if copies else None)


def _require_free_heads(weights: Weights) -> Heads:
    """The heads of a model whose configuration can say their width by itself."""
    model = weights.outline
    row, config = row_of(model), model.config.get_text_config()
    if row.fused.get("attn.qkv") == "interleaved" or not hasattr(config, "num_key_value_heads"):
        raise GrowthError(
            f"more heads were asked for of a {row.model_type} model, where the hidden size is "
            "always the number of heads times their width, and a head's width cannot change "
            "without changing what it says; grow the hidden size by `duplicate`, which duplicates "
            "heads with it."
        )
    every = {heads_of(model.config, n) for n in range(layers_of(model))}
    if len(every) > 1:
        raise GrowthError(
            f"the layers have different heads ({len(every)} kinds), and one number for all was "
            "asked for; grow a model whose layers are alike."
        )
    heads = every.pop()
    path = role_path(model, "norms.q", 0)
    norm = getattr(find_module(model, path), "weight", None)
    if norm is not None and len(norm) != heads.head_dim:
        raise GrowthError(
            f"more heads were asked for of a {row.model_type} model, but {path} is one norm over "
            "all heads, so that new ones would change the old; grow neurons or layers."
        )
    return heads
