"""Low-rank updates of one map become one: always the products are merged, never the factors.

``B_1 A_1 + B_2 A_2`` is no product of sums of factors: a sum of factors would add ``B_1 A_2`` and
``B_2 A_1``, which belong to neither brick, and equal updates with other factors would merge to
something else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from brickwork.combine.coefficients import coefficients, is_weighted_sum, merge_updates
from brickwork.measure.lowrank import Product, best_product, share_bases, shorten
from brickwork.measure.updates import site_seed


@dataclass(frozen=True)
class Recipe:
    """How updates are merged.

    Attributes:
        method: a row of METHODS.
        parameters: of the method at a site; one value, or one for each brick.
        keys: the bricks' names, which random numbers depend on.
        rank: the highest rank of the result at a site; None: what the bricks need together.
        seed: of every random choice.
    """

    method: str
    parameters: Callable[[str], Mapping[str, Any]]
    keys: Sequence[str]
    rank: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Merged:
    """The update of one site and how far it is from what the method wants, relative to that."""

    product: Product
    error: float


def merge_products(products: Sequence[Product], recipe: Recipe, site: str) -> Merged:
    """One low-rank update of several of the same map.

    A weighted sum is exact: the factors stand side by side, or, if their ranks together are more
    than allowed, the nearest update of that rank is found from small matrices alone. Any other
    method looks at single values, so the products are formed, and the merged one is cut to the
    rank.

    Args:
        products: of one map, one for each brick; rank 0 where a brick does not act.
        recipe: of the whole merge.
        site: where.
    """
    parameters = recipe.parameters(site)
    if not is_weighted_sum(recipe.method, parameters):
        return _merge_values(products, recipe, site)
    shared = share_bases(products)
    factors = coefficients(recipe.method, shared.gram, keys=recipe.keys, parameters=parameters)
    total = sum(p.rank for p in products)
    if total <= min(recipe.rank or total, *products[0].shape):
        return Merged(side_by_side(products, factors.tolist()), 0.0)
    core = torch.stack([c * f for c, f in zip(shared.cores, factors, strict=True)]).sum(0)
    return Merged(*shorten(core, shared, recipe.rank))


def side_by_side(products: Sequence[Product], factors: Sequence[float]) -> Product:
    """The weighted sum of updates, exactly: the rank is the sum of the ranks.

    >>> two = Product(torch.eye(2), torch.eye(2)), Product(torch.ones(1, 2), torch.ones(2, 1), 3.0)
    >>> side_by_side(two, [2.0, 1.0]).rows()
    tensor([[5., 3.],
            [3., 5.]], dtype=torch.float64)
    """
    pairs = list(zip(products, factors, strict=True))
    return Product(
        torch.cat([p.A.double() for p, _ in pairs]),
        torch.cat([p.B.double() * (p.scaling * factor) for p, factor in pairs], dim=1),
    )


def _merge_values(products: Sequence[Product], recipe: Recipe, site: str) -> Merged:
    updates, seed = [p.rows() for p in products], site_seed(recipe.seed, site)
    merged = merge_updates(
        recipe.method, updates, keys=recipe.keys, seed=seed, parameters=recipe.parameters(site)
    )
    del updates
    rank = recipe.rank or sum(p.rank for p in products)
    return Merged(*best_product(merged, rank, torch.Generator().manual_seed(seed)))
