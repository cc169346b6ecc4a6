"""What bricks, or fine-tuned models, add to their base at one site, ready to be compared."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.lora import LoraOptions
from brickwork.errors import MergeError
from brickwork.measure.lowrank import Product, principal, share_bases

NEUTRAL: Mapping[str, float] = {"ia3": 1.0, "bias": 0.0, "steering": 0.0}
"""Forms of one vector for each site, with the value that changes nothing."""
_DIRECTION = 1e-6  # of the largest: smaller ones are float32's rounding


@dataclass(frozen=True)
class SiteUpdates:
    """The updates of one matrix (or of one vector, seen as a row) side by side.

    Attributes:
        site: where.
        shape: rows and columns.
        gram: inner products of the updates, in float64.
        left: principal directions of each on the output side, in any common coordinates.
        right: the same on the input side.
        read: chosen rows of every update.
    """

    site: str
    shape: tuple[int, int]
    gram: Float[Tensor, "bricks bricks"]
    left: tuple[Float[Tensor, "coordinates directions"], ...]
    right: tuple[Float[Tensor, "coordinates directions"], ...]
    read: Callable[[Int64[Tensor, " rows"]], list[Float[Tensor, "rows columns"]]]

    @property
    def lengths(self) -> Float[Tensor, " bricks"]:
        """The Frobenius norm of each update."""
        return self.gram.diagonal().sqrt()


def sites_of(bricks: Sequence[Brick]) -> tuple[str, ...]:
    """Every site that a brick has, in the order of the first that has it.

    Sites that only later bricks have follow those of the earlier ones.
    """
    return tuple(dict.fromkeys(site for brick in bricks for site in brick.spec.sites))


def products_at(bricks: Sequence[Brick], site: str) -> list[Product]:
    """The LoRA updates at a site, of rank 0 for a brick that does not have it.

    Raises:
        MergeError: if the sizes differ.
    """
    found = [_product(brick, site) for brick in bricks]
    shapes = {product.shape for product in found if product}
    if len(shapes) != 1:
        raise MergeError(
            f"at {site!r} the bricks have the shapes {sorted(shapes)}; they are for different "
            "models, so leave one out."
        )
    ((rows, columns),) = shapes
    none = Product(torch.zeros(0, columns), torch.zeros(rows, 0))
    return [product or none for product in found]


def brick_updates(bricks: Sequence[Brick], site: str) -> SiteUpdates:
    """What bricks of one form, a LoRA or vectors, do at a site.

    Raises:
        MergeError: if they cannot be compared.
    """
    if bricks[0].spec.form == "lora":
        return low_rank_updates(site, products_at(bricks, site))
    neutral = NEUTRAL[bricks[0].spec.form]
    held = [next(iter(brick.by_site.get(site, {}).items()), None) for brick in bricks]
    given = [pair for pair in held if pair]
    if len({(slot, tuple(vector.shape)) for slot, vector in given}) != 1:
        raise MergeError(
            f"at {site!r} the bricks hold different things: "
            f"{', '.join(f'{slot} of {len(vector)}' for slot, vector in given)}; check them apart."
        )
    still = torch.full_like(given[0][1], neutral)
    vectors = [(pair[1] if pair else still) - neutral for pair in held]
    return whole_updates(site, [v[None] for v in vectors], 1, torch.Generator())


def values_of(bricks: Sequence[Brick]) -> int:
    """How many values of the base the bricks change, all sites together."""
    sizes: dict[str, int] = {}
    for brick in bricks:
        for site, slots in brick.by_site.items():
            sizes[site] = prod(
                (slots["B"].shape[0], slots["A"].shape[1]) if "A" in slots
                else next(iter(slots.values())).shape
            )  # fmt: skip
    return sum(sizes.values())


def low_rank_updates(site: str, products: Sequence[Product]) -> SiteUpdates:
    """Updates that are kept as factors; no product is formed but for the rows that are read."""
    shared = share_bases(products)
    sides = []
    for core in shared.cores:
        U, sizes, V = torch.linalg.svd(core, full_matrices=False)
        kept = sizes > sizes[0] * _DIRECTION
        sides.append((U[:, kept], V[kept].T))
    left, right = zip(*sides, strict=True)
    return SiteUpdates(
        site, products[0].shape, shared.gram, left, right,
        lambda chosen: [product.rows(chosen) for product in products],
    )  # fmt: skip


def whole_updates(
    site: str, updates: Sequence[Float[Tensor, "rows columns"]], rank: int, chance: torch.Generator
) -> SiteUpdates:
    """Updates that are whole matrices.

    Args:
        site: where.
        updates: of one shape.
        rank: how many principal directions of each are compared.
        chance: where the search for them begins.
    """
    gram = torch.tensor([[_inner(a, b) for b in updates] for a in updates], dtype=torch.float64)
    sides = []
    for update in updates:
        U, sizes, V = principal(update.float(), rank, chance)
        kept = sizes > sizes[:1] * _DIRECTION
        sides.append((U[:, kept], V[kept].T))
    left, right = zip(*sides, strict=True)
    shape = (updates[0].shape[0], updates[0].shape[1])
    return SiteUpdates(
        site, shape, gram, left, right, lambda chosen: [update[chosen] for update in updates]
    )


def site_seed(seed: int, site: str) -> int:
    """A seed for one site that depends on nothing but its name."""
    text = f"{seed}\0{site}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _inner(a: Tensor, b: Tensor) -> float:
    return float(torch.tensordot(a.double(), b.double(), dims=2))


def _product(brick: Brick, site: str) -> Product | None:
    slots = brick.by_site.get(site)
    if not slots:
        return None
    options = LoraOptions.model_validate(brick.spec.options)
    return Product(slots["A"], slots["B"], options.scaling(site, slots["A"].shape[0]))
