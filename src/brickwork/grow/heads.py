"""More attention heads: whole groups with keys and values of their own, or queries in a group."""

from typing import Any, Literal

from brickwork.errors import GrowthError
from brickwork.grow.growth import Growth
from brickwork.grow.options import GroupOptions, QueryOptions, WiderOptions
from brickwork.grow.spread import NONE, Spread, added, repeated
from brickwork.grow.width import wanted
from brickwork.model.heads import Heads, heads_of
from brickwork.model.parameters import Kind
from brickwork.model.parts import find_module, layers_of, role_path, row_of
from brickwork.model.weights import Weights

# Types of rotation where the turn of a pair depends on its frequency alone.
_WIDTH_FREE = ("default", "linear", "llama3")


def add_groups(weights: Weights, options: GroupOptions) -> Growth:
    """Whole groups more: a key and value head with its query heads.

    Raises:
        GrowthError: if the family cannot have another number of heads, or one that is no growth.

    Source: Net2Net (Chen et al. 2016, arXiv:1511.05641), on grouped heads.
    """
    heads = _require_free_heads(weights)
    new = wanted(heads.kv_heads, options.kv_heads, None, "groups of heads")
    sources = repeated(heads.kv_heads, new) if options.start == "split" else None
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
        source += [*own, *(copies if options.start == "split" else [NONE] * len(copies))]
    fresh = tuple(place % size >= heads.group for place in range(new))
    shares = options.shares if options.start == "split" else None
    entries = {"num_attention_heads": new, "head_dim": heads.head_dim}
    entries["num_key_value_heads"] = heads.kv_heads
    return Growth("equal", entries, {"heads": Spread(tuple(source), fresh, shares=shares)})


def widen_heads(weights: Weights, options: WiderOptions) -> Growth:
    """Heads several times as wide: exact, for the old rotations are among the new ones.

    Pair i of a head of d numbers turns by base^(-2i/d); in a head of k*d numbers pair k*i does.
    Queries are multiplied by the root of k where attention divides by the root of the width.

    Raises:
        GrowthError: if the heads cannot be wider and say the same: where their norms would see
            other numbers, the hidden size is heads times their width, or rotations are scaled by
            the width.

    Source: none known to us; rotations: Su et al. 2021, RoFormer (arXiv:2104.09864).
    """
    heads, model = _require_free_heads(weights), weights.outline
    config = model.config.get_text_config()
    if "norms.q" in row_of(model).roles:
        raise GrowthError(
            f"wider heads were asked for of a {config.model_type} model, which norms queries and "
            "keys over the width of a head: any new number would change the old ones, unless both "
            "are zero, and then neither ever learns. Add heads instead."
        )
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in _WIDTH_FREE:
        raise GrowthError(
            f"wider heads were asked for, but the rotation is of the type {kind!r}, which depends "
            f"on a head's width in another way than {', '.join(_WIDTH_FREE)}; add heads instead."
        )
    part = rope.get("partial_rotary_factor", 1.0)
    turned = int(heads.head_dim * part)
    if int(heads.head_dim * options.times * part) != turned * options.times:
        raise GrowthError(
            f"heads {options.times} times as wide were asked for, of which {part} is rotated: "
            f"{turned} of {heads.head_dim} numbers now, and then not {options.times} times as "
            "many; choose another multiple."
        )
    inner = wider_head(heads.head_dim, turned, options.times)
    old = (False,) * heads.heads
    spreads: dict[Kind, Spread] = {
        # Queries are zero where keys are new, so that their products are.
        "heads": Spread(tuple(range(heads.heads)), old, written="zero", inner=inner),
        "kv_heads": Spread(tuple(range(heads.kv_heads)), old[: heads.kv_heads], inner=inner),
    }
    by_width = not hasattr(config, "query_pre_attn_scalar")
    factors = {"attn.q": options.times**0.5} if by_width else {}
    entries = {"head_dim": heads.head_dim * options.times}
    return Growth("equal", entries, spreads, factors=factors)


def wider_head(width: int, turned: int, times: int) -> tuple[int, ...]:
    """For each number of a wider head the old one, or NONE.

    Args:
        width: of the old head.
        turned: how many of its first numbers are rotated, number i with ``i + turned / 2``.
        times: how much wider it becomes.

    >>> wider_head(4, 4, 2)
    (0, -1, 1, -1, 2, -1, 3, -1)
    """
    found = [NONE] * (width * times)
    for number in range(width):
        place = number * times if number < turned else turned * times + number - turned
        found[place] = number
    return tuple(found)


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
