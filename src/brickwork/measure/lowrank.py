"""Low-rank updates ``scaling * B A``: compared, added and cut short without ever being formed.

Several of them share a pair of orthonormal bases, in which each is a small matrix, its *core*. The
bases keep lengths and angles, so whatever is said about cores holds for the updates themselves.
Arithmetic is in float64: the matrices are small, and squares of small numbers must not vanish.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# Up to this length of the shorter side, every direction is computed and the best are kept.
_DENSE = 512
_SPARE, _ROUNDS = 16, 6  # more directions than asked for, and passes, of the randomised search


@dataclass(frozen=True)
class Product:
    """The update ``scaling * B A`` of one linear map; rank 0 is no update."""

    A: Float[Tensor, "rank in"]
    B: Float[Tensor, "out rank"]
    scaling: float = 1.0

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the map."""
        return self.B.shape[0], self.A.shape[1]

    def rows(self, chosen: Int64[Tensor, " rows"] | None = None) -> Float[Tensor, "rows in"]:
        """Some rows of the update, or all, in float32 (float64 if the factors are)."""
        B = self.B if chosen is None else self.B[chosen]
        wide = torch.promote_types(torch.promote_types(self.A.dtype, B.dtype), torch.float32)
        return (B.to(wide) * self.scaling) @ self.A.to(wide)


@dataclass(frozen=True)
class Cores:
    """Several updates of one map in shared bases: update i is ``left @ cores[i] @ right.T``."""

    left: Float[Tensor, "out inner_out"]
    right: Float[Tensor, "in inner_in"]
    cores: tuple[Float[Tensor, "inner_out inner_in"], ...]

    @property
    def gram(self) -> Float[Tensor, "bricks bricks"]:
        """Inner products of the updates with each other."""
        flat = torch.stack([core.flatten() for core in self.cores])
        return flat @ flat.T


def share_bases(products: Sequence[Product]) -> Cores:
    """The updates as cores, in float64.

    Args:
        products: of one map, at least one.
    """
    left, outer = torch.linalg.qr(torch.cat([p.B.double() for p in products], dim=1))
    right, inner = torch.linalg.qr(torch.cat([p.A.double() for p in products]).T)
    ranks = [p.rank for p in products]
    parts = zip(products, outer.split(ranks, dim=1), inner.split(ranks, dim=1), strict=True)
    return Cores(left, right, tuple(p.scaling * (b @ a.T) for p, b, a in parts))


def shorten(
    core: Float[Tensor, "inner_out inner_in"], shared: Cores, rank: int | None
) -> tuple[Product, float]:
    """The update with this core, or the nearest one of a lower rank, as factors of equal size.

    Args:
        core: in the shared bases.
        shared: the bases.
        rank: the highest that is allowed; None: as high as the update needs.

    Returns:
        The factors in float64, and the relative error: the length of what was cut off over the
        length of the whole. No update of that rank is nearer (Eckart and Young 1936).
    """
    U, sizes, V = torch.linalg.svd(core, full_matrices=False)
    floor = sizes[0] * max(core.shape) * torch.finfo(core.dtype).eps
    needed = max(1, int((sizes > floor).sum()))
    kept = needed if rank is None else min(rank, needed)
    roots = sizes[:kept].sqrt()
    product = Product(roots[:, None] * V[:kept] @ shared.right.T, shared.left @ U[:, :kept] * roots)
    return product, relative(sizes[kept:needed].norm(), sizes.norm())


def best_product(
    matrix: Float[Tensor, "out in"], rank: int, chance: torch.Generator
) -> tuple[Product, float]:
    """The nearest update of a rank to a whole matrix, and its relative error.

    Args:
        matrix: finite.
        rank: at least 1.
        chance: see ``principal``.
    """
    U, sizes, V = principal(matrix, rank, chance)
    roots = sizes.sqrt()
    whole, kept = matrix.norm().double() ** 2, sizes.double().square().sum()
    cut = (whole - kept).clamp(min=0).sqrt()
    if whole - kept < 1e-4 * whole:  # the difference of two large numbers says little
        cut = (matrix - (U * sizes) @ V).norm().double()
    return Product(roots[:, None] * V, U * roots), relative(cut, whole.sqrt())


def principal(
    matrix: Float[Tensor, "out in"], rank: int, chance: torch.Generator
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, " rank"], Float[Tensor, "rank in"]]:
    """The largest singular values of a matrix with their directions, largest first.

    Exact where the shorter side has at most 512 numbers. Beyond that the directions are found by
    subspace iteration (Halko et al. 2011, arXiv:0909.4061), which loses a little of the last ones
    where the values hardly fall.

    Args:
        matrix: finite.
        rank: how many, at least 1; fewer if a side is shorter.
        chance: where the search begins.
    """
    rank = min(rank, *matrix.shape)
    wanted = rank + _SPARE
    if min(matrix.shape) <= max(_DENSE, 2 * wanted):
        U, sizes, V = torch.linalg.svd(matrix, full_matrices=False)
        return U[:, :rank], sizes[:rank], V[:rank]
    start = torch.randn(matrix.shape[1], wanted, generator=chance, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    U, sizes, V = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ U[:, :rank], sizes[:rank], V[:rank]


def relative(part: Tensor, whole: Tensor) -> float:
    """A length as a share of another; 0 where there is nothing.

    >>> relative(torch.tensor(1.0), torch.tensor(4.0)), relative(torch.zeros(()), torch.zeros(()))
    (0.25, 0.0)
    """
    return (part / whole).item() if whole > 0 else 0.0
