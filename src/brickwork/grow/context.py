"""Longer texts: more positions, and what is done about the rotation that was never seen."""

from typing import Any, Literal

from brickwork.errors import GrowthError
from brickwork.grow.growth import Growth, Promise
from brickwork.grow.options import ContextOptions
from brickwork.grow.spread import added, repeated
from brickwork.model.heads import heads_of
from brickwork.model.parts import find_module, role_path, row_of
from brickwork.model.weights import Weights

_FULL = "full_attention"


def extend_context(weights: Weights, options: ContextOptions) -> Growth:
    """More positions and nothing else: learned ones begin again from the first.

    Rotary positions go on as they are; how well a model reads farther than it was trained is
    another question, so measure it.

    Source: repeated positions: Beltagy et al. 2020, Longformer (arXiv:2004.05150).
    """
    model = weights.outline
    old, new = _lengths(weights, options)
    path = role_path(model, "positions", None)
    table = find_module(model, path)
    entries: dict[str, Any] = {"max_position_embeddings": new}
    if table is None:
        rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
        original = rope.get("original_max_position_embeddings")
        if original and rope.get("factor") is None:
            # LongRoPE scales attention by it, and takes it from the positions if it is not there.
            entries["rope_parameters"] = {**rope, "factor": old / original}
        return Growth("equal", entries, length=new)
    rows = int(table.get_parameter("weight").shape[0])
    offset = rows - old  # OPT keeps two rows before the first position
    source = [offset + place for place in repeated(old, new)]
    spread = added(rows, rows + new - old, source=source)
    return Growth("old lengths", entries, {"positions": spread}, length=new)


def scale_dynamically(weights: Weights, options: ContextOptions) -> Growth:
    """The base of the rotation grows with the text, once it is longer than before.

    The configuration keeps the old number of positions: that is where the growth begins.

    Source: dynamic NTK-aware scaling, as in transformers (Peng et al. 2023, arXiv:2309.00071, B.3).
    """
    return _scaled(weights, options, "dynamic", "old lengths")


def scale_linearly(weights: Weights, options: ContextOptions) -> Growth:
    """Positions are squeezed into the old range: needs some training.

    Source: position interpolation (Chen et al. 2023, arXiv:2306.15595).
    """
    return _scaled(weights, options, "linear", "none")


def scale_yarn(weights: Weights, options: ContextOptions) -> Growth:
    """Slow rotations are squeezed and fast ones are not: needs little training.

    Source: YaRN (Peng et al. 2023, arXiv:2309.00071).
    """
    return _scaled(weights, options, "yarn", "none")


def _scaled(
    weights: Weights,
    options: ContextOptions,
    kind: Literal["dynamic", "linear", "yarn"],
    promise: Promise,
) -> Growth:
    model = weights.outline
    old, new = _lengths(weights, options)
    config = model.config.get_text_config()
    before = getattr(config, "rope_parameters", None)
    if not before:
        raise GrowthError(
            f"longer texts by {kind} scaling were asked for of a {row_of(model).model_type} model, "
            "which has no rotary positions; choose `extend`."
        )
    scaling: dict[str, Any] = {"rope_type": kind, "factor": new / old}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = old
    nested = _FULL in before
    inner = before[_FULL] if nested else before
    if inner.get("rope_type", "default") != "default":
        raise GrowthError(
            f"longer texts by {kind} scaling were asked for, but the rotation is scaled already "
            f"({inner['rope_type']}); edit rope_parameters of its configuration instead."
        )
    # Layers that see a window only never rotate farther than it.
    after = {**before, _FULL: inner | scaling} if nested else {**before, **scaling}
    entries: dict[str, Any] = {"rope_parameters": after}
    if hasattr(config, "head_dim"):
        # Scaled rotations read it, and fail where it is left to be derived.
        entries["head_dim"] = heads_of(config, 0).head_dim
    if kind != "dynamic":
        entries["max_position_embeddings"] = new
    return Growth(promise, entries, length=new)


def _lengths(weights: Weights, options: ContextOptions) -> tuple[int, int]:
    old = int(weights.outline.config.get_text_config().max_position_embeddings)
    if options.tokens <= old:
        raise GrowthError(
            f"texts of {options.tokens} tokens were asked for, and the model reads {old} already; "
            "ask for more than that."
        )
    return old, options.tokens
