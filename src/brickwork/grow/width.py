"""Wider FFNs: more neurons in every layer, and the model says what it said."""

from brickwork.errors import GrowthError
from brickwork.grow.growth import Growth
from brickwork.grow.options import SplitOptions, WidthOptions
from brickwork.grow.spread import Spread, added, repeated
from brickwork.model.parameters import Kind, describe_parameters
from brickwork.model.parts import ffn_row_of, layers_of, row_of
from brickwork.model.sizes import EXPERT_WIDTH_KEYS, WIDTH_KEY, WIDTH_KEYS
from brickwork.model.weights import Weights


def split_width(weights: Weights, options: SplitOptions) -> Growth:
    """New neurons are copies of old ones, and what reads them is divided among the copies.

    Source: Net2WiderNet (Chen et al. 2016, arXiv:1511.05641). The shares are uneven by default,
        in place of its noise, so that copies get different gradients and nothing is lost.
    """
    kind, old, new = _sizes(weights, options)
    return _widened(
        weights, kind, added(old, new, source=repeated(old, new), shares=options.shares)
    )


def zero_width(weights: Weights, options: WidthOptions) -> Growth:
    """New neurons read at random and say nothing at first: their outgoing weights are zero.

    Source: as the zero-initialised residual of Chen et al. 2022, bert2BERT (arXiv:2110.07143),
        section on function preservation; only the outgoing weights have a gradient at first.
    """
    kind, old, new = _sizes(weights, options)
    return _widened(weights, kind, added(old, new))


def _widened(weights: Weights, kind: Kind, spread: Spread) -> Growth:
    family = weights.outline.config.model_type
    key = WIDTH_KEYS.get(family, WIDTH_KEY)
    if kind == "expert_neurons":
        key = EXPERT_WIDTH_KEYS.get(family, WIDTH_KEY)
    return Growth("equal", {key: len(spread.source)}, {kind: spread})


def _sizes(weights: Weights, options: WidthOptions) -> tuple[Kind, int, int]:
    model = weights.outline
    forms = {ffn_row_of(model, n).form for n in range(layers_of(model))}
    dense = forms - {"moe_gated"}
    part = options.part or ("dense" if dense else "experts")
    if (part == "experts" and "moe_gated" not in forms) or (part == "dense" and not dense):
        raise GrowthError(
            f"wider {part} were asked for, and this {row_of(model).model_type} model has none; "
            "leave out which part is meant."
        )
    kind: Kind = "expert_neurons" if part == "experts" else "neurons"
    counts = {
        segment.count
        for described in describe_parameters(model).values()
        for axis in described.axes
        for segment in axis.segments
        if segment.kind == kind
    }
    if len(counts) != 1:
        raise GrowthError(
            f"the FFNs have {sorted(counts)} neurons, and one width for all was asked for; grow "
            "a model whose layers are equally wide."
        )
    (old,) = counts
    return kind, old, wanted(old, options.neurons, options.times, "neurons")


def wanted(old: int, number: int | None, times: float | None, what: str) -> int:
    """How many there are to be, from a number or a multiple.

    Raises:
        GrowthError: if neither or both are given, or it is no growth.
    """
    if (number is None) == (times is None):
        raise GrowthError(
            f"the {what} of the grown model were given {'twice' if number else 'not at all'}; "
            "say how many there are to be, or by how much to multiply them."
        )
    new = number if number is not None else round(old * (times or 1))
    if new <= old:
        raise GrowthError(
            f"{new} {what} were asked for, and there are {old} already; ask for more than that."
        )
    return new
