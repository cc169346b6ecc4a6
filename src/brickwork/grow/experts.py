"""A mixture of experts from a dense model, and more experts in a mixture."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from brickwork.errors import GrowthError
from brickwork.grow.growth import Growth, Old
from brickwork.grow.options import CopiesOptions, UpcycleOptions
from brickwork.grow.spread import added, generator_for, repeated, spread_axis, wide
from brickwork.model.mixture_targets import MixtureSizes, choose_target
from brickwork.model.parameters import Axis, Segment
from brickwork.model.parts import experts_row_of, ffn_row_of, layers_of, part_of, row_of
from brickwork.model.weights import Weights

_ROUTER = 0.02  # standard deviation; zeros would send every token to the same experts


def upcycle(weights: Weights, options: UpcycleOptions) -> Growth:
    """A mixture whose experts are copies of the dense FFN, with a router drawn at random.

    What the chosen experts say is weighed by numbers that sum to 1, so that copies say together
    what the FFN says, whatever the router picks. Where neurons are drawn anew they do not.

    Raises:
        GrowthError: if more experts are chosen than there are, or it is a mixture already.
        MergeError: if no family of mixtures has the model's block.

    Source: Komatsuzaki et al. 2023 (arXiv:2212.05055); redrawn neurons: Drop-Upcycling,
        Nakamura et al. 2025 (arXiv:2502.19261), with the moments of each matrix.
    """
    model = weights.outline
    if options.top_k > options.experts:
        raise GrowthError(
            f"{options.top_k} of {options.experts} experts were to be chosen for each token; "
            "choose at most as many as there are."
        )
    if any(ffn_row_of(model, n).form == "moe_gated" for n in range(layers_of(model))):
        raise GrowthError(
            f"this {row_of(model).model_type} model is a mixture of experts already; add experts "
            "to it with `copies`."
        )
    width = len(part_of(model, "mlp.up", 0).outputs)
    sizes = MixtureSizes(options.experts, options.top_k, 0, width)
    target = choose_target(model.config, sizes)
    if target.shared:
        raise GrowthError(
            f"a {model.config.model_type} model becomes a mixture of the family "
            f"{target.model_type}, which has a shared expert besides; write it with `brickwork "
            "combine` and a recipe for a mixture."
        )
    return Growth(
        "none" if options.redrawn else "equal",
        replaced=target.config(model.config, sizes),
        made={
            ("mlp.router", "weight"): partial(_router, options=options),
            ("mlp.experts", "gate_up_proj"): partial(_gate_up, options=options),
            ("mlp.experts", "down_proj"): partial(_down, options=options),
        },
    )


def _router(old: Old, layer: int | None, seed: int, options: UpcycleOptions) -> Tensor:
    hears = old("mlp.up", layer, "weight")
    shape = (options.experts, hears.shape[1])
    noise = torch.randn(shape, generator=generator_for(seed, "router")) * _ROUTER
    return noise.to(hears.dtype)


def _gate_up(old: Old, layer: int | None, seed: int, options: UpcycleOptions) -> Tensor:
    both = [old(role, layer, "weight") for role in ("mlp.gate", "mlp.up")]
    neurons, hidden = both[0].shape
    dtype = torch.promote_types(both[0].dtype, both[1].dtype)
    whole = torch.empty(options.experts, 2 * neurons, hidden, dtype=dtype)
    for expert, matrix in enumerate(whole):
        chosen = _chosen(layer, expert, neurons, options)
        for part, source in zip(matrix.chunk(2), both, strict=True):
            part.copy_(source)
            _redraw(part, chosen, source, generator_for(seed, f"expert {expert}"))
    return whole


def _down(old: Old, layer: int | None, seed: int, options: UpcycleOptions) -> Tensor:
    source = old("mlp.down", layer, "weight")
    whole = source.new_empty(options.experts, *source.shape)
    for expert, matrix in enumerate(whole):
        matrix.copy_(source)
        chosen = _chosen(layer, expert, source.shape[1], options)
        _redraw(matrix.T, chosen, source.T, generator_for(seed, f"expert {expert}"))
    return whole


def _chosen(layer: int | None, expert: int, neurons: int, options: UpcycleOptions) -> Tensor:
    """The neurons of an expert that are drawn anew, the same in all of its matrices."""
    order = torch.randperm(neurons, generator=generator_for(0, f"{layer} {expert}"))
    return order[: round(options.redrawn * neurons)]


def _redraw(part: Tensor, chosen: Tensor, source: Tensor, generator: torch.Generator) -> None:
    """Give some rows new numbers with the mean and the deviation that theirs had, in place."""
    if not len(chosen):
        return
    rows = wide(source[chosen])
    noise = torch.randn(rows.shape, generator=generator)
    part[chosen] = (noise * rows.std() + rows.mean()).to(part.dtype)


def add_copies(weights: Weights, options: CopiesOptions) -> Growth:
    """Every expert as often, and as many more for each token, so that all copies are chosen.

    With as many for each token as before a single new expert would change what is said: if two or
    more are chosen and the router's rows are independent, some input chooses it in place of an
    old one, and if one is, a new one that is never chosen (its row the mean of the others) never
    learns. Copies are chosen together, and each weighs its part; uneven shares let them learn
    apart.

    Raises:
        GrowthError: if the model is no mixture of experts.

    Source: expert upcycling (arXiv:2604.19835), with the number for each token multiplied too.
    """
    model = weights.outline
    layers = [n for n in range(layers_of(model)) if ffn_row_of(model, n).form == "moe_gated"]
    if not layers:
        raise GrowthError(
            f"more experts were asked for of a {row_of(model).model_type} model, which has none; "
            "make a mixture of it first, with `upcycle`."
        )
    config = model.config.get_text_config()
    row = experts_row_of(model, layers[0])
    old = len(model.get_parameter(row.down))
    new = old * options.times
    spread = added(old, new, source=repeated(old, new), shares=options.shares)
    entries: Mapping[str, int] = {
        "num_experts": new,
        row.top_k: getattr(config, row.top_k) * options.times,
    }
    name = row.down.rpartition(".")[2]

    def down(source: Old, layer: int | None, seed: int) -> Tensor:
        # Each copy is weighed by its part of the router's weight, so it says as much more.
        owners = Axis((Segment("experts", old),), "reads")
        whole = spread_axis(
            source("mlp.experts", layer, name), 0, owners, {"experts": spread},
            generator=generator_for(seed, "shares"),
        )  # fmt: skip
        return whole.mul_(options.times)

    return Growth("equal", entries, {"experts": spread}, made={("mlp.experts", name): down})
