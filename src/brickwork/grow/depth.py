"""More layers: blocks that say nothing at first; or, as others do, copies that do."""

from collections.abc import Sequence

from brickwork.errors import GrowthError
from brickwork.grow.growth import Growth, Placed
from brickwork.grow.options import BlockOptions, PlaceOptions, StackOptions
from brickwork.model.parts import layers_of
from brickwork.model.weights import Weights


def insert_identity(weights: Weights, options: PlaceOptions) -> Growth:
    """Copies of layers that say nothing at first: their outputs are zero.

    Where norms stand behind attention and FFN, the weights of these norms are zero instead, for
    the gradient of a norm at zero is all but infinite.

    Source: LLaMA-Pro (Wu et al. 2024, arXiv:2401.02415).
    """
    return Growth("equal", layers=_placed(weights, options.after, silent=True))


def expand_blocks(weights: Weights, options: BlockOptions) -> Growth:
    """New silent blocks behind every group of old ones, all groups equally large.

    Raises:
        GrowthError: if the layers do not divide into so many groups.

    Source: LLaMA-Pro (Wu et al. 2024, arXiv:2401.02415).
    """
    layers = layers_of(weights.outline)
    if layers % options.blocks:
        raise GrowthError(
            f"{options.blocks} new blocks were to stand behind equal groups of {layers} layers; "
            f"choose a divisor of {layers}, or name their places (`identity`)."
        )
    size = layers // options.blocks
    after = range(size - 1, layers, size)
    return Growth("equal", layers=_placed(weights, list(after), silent=True))


def copy_layers(weights: Weights, options: PlaceOptions) -> Growth:
    """Copies of layers that speak at once, which changes what the model says.

    Source: StackBERT (Gong et al. 2019, ICML) and its followers.
    """
    return Growth("none", layers=_placed(weights, options.after, silent=False))


def stack_layers(weights: Weights, options: StackOptions) -> Growth:
    """The model on top of itself, without some layers at the seam; it has to be trained on.

    Source: depth up-scaling of SOLAR (Kim et al. 2023, arXiv:2312.15166).
    """
    layers = layers_of(weights.outline)
    if options.overlap >= layers:
        raise GrowthError(
            f"{options.overlap} layers were to be left out of each copy, and there are {layers}; "
            "leave out fewer."
        )
    stays = layers - options.overlap
    first = tuple(Placed(n) for n in range(stays))
    second = tuple(Placed(n, fresh=True) for n in range(options.overlap, layers))
    return Growth("none", layers=first + second)


def _placed(weights: Weights, after: Sequence[int], *, silent: bool) -> tuple[Placed, ...]:
    layers, config = layers_of(weights.outline), weights.outline.config
    if silent and not getattr(config, "do_layer_norm_before", True):
        raise GrowthError(
            f"layers that say nothing at first were asked for of an {config.model_type} model "
            "whose layers norm what comes out of them (do_layer_norm_before is false), so that "
            "every layer changes it; grow neurons instead."
        )
    outside = sorted({n for n in after if n >= layers})
    if outside:
        raise GrowthError(
            f"new layers were to stand behind {outside}, and the model has the layers 0 to "
            f"{layers - 1}; name some of these."
        )
    found: list[Placed] = []
    for layer in range(layers):
        found.append(Placed(layer))
        found += [Placed(layer, fresh=True, silent=silent)] * list(after).count(layer)
    return tuple(found)
