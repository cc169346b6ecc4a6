"""What keeping part of a base saves, in operations for each token."""

from torch import Tensor

from brickwork.brick.base import Site
from brickwork.brick.effects import Exit, Mask, Route, Skip
from brickwork.model.load import LoadedModel
from brickwork.model.parts import ffn_row_of
from brickwork.route.routers import Sizes, kind_of, relative_cost


def selection_flops(
    effect: Mask | Skip | Exit | Route, loaded: LoadedModel, weight: float = 1.0
) -> int:
    """What the effect adds to the operations of one token; below 0 is what it saves.

    Of a mask only what it keeps from an FFN counts, for the rest is computed and then silenced. An
    exit costs the output layer once more; what it saves depends on the token. A block that is
    skipped in part is computed whole.
    """
    site = loaded.base.sites[effect.site]
    match effect:
        case Mask(_, keep):
            if site.layer is None or not site.address.endswith(".mlp.down"):
                return 0
            sizes = _sizes(loaded, site.layer, effect.site)
            return -2 * sizes.maps * sizes.hidden * int((keep == 0).sum())
        case Skip(_, share):
            return -_block_flops(loaded, site) if weight * float(share) == 1 else 0
        case Exit():
            output = loaded.model.get_output_embeddings().weight
            assert isinstance(output, Tensor)
            return 2 * output.numel()
        case Route(path, tensors, density, level):
            assert site.layer is not None, "a router sits in a layer"
            groups = (
                len(tensors["weight" if "weight" in tensors else "second"])
                if "owner" in tensors
                else 0
            )
            width = len(tensors["first"]) if "first" in tensors else 0
            sizes = _sizes(loaded, site.layer, path, groups, width)
            cost = relative_cost(kind_of(tensors), sizes, density, level)
            return round(2 * sizes.dense * (cost - 1))


def _sizes(loaded: LoadedModel, layer: int, path: str, groups: int = 0, width: int = 0) -> Sizes:
    down = loaded.base.sites[path].sizes
    maps = 2 if ffn_row_of(loaded.model, layer).form == "vanilla" else 3
    return Sizes(down["out"], down["in"], maps, groups, width)


def visited_share(loaded: LoadedModel) -> float:
    """The share of the experts that a token visits; 1 where there are none."""
    config = loaded.model.config
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    return config.num_experts_per_tok / experts if experts else 1.0


def _block_flops(loaded: LoadedModel, block: Site) -> int:
    own = [site for site in loaded.base.of_kind("linear") if site.layer == block.layer]
    linear = sum(site.sizes["in"] * site.sizes["out"] for site in own)
    parameters = loaded.model.get_submodule(block.path).parameters()
    stacked = sum(p.numel() for p in parameters if p.dim() == 3)
    return round(2 * (linear + visited_share(loaded) * stacked))
