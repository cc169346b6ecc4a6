"""The Karcher mean: the direction whose arcs to all operands are shortest in the square."""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from brickwork.combine.gram import gram
from brickwork.combine.linear import weighted_sum
from brickwork.combine.operands import Combine, Operands

# In radians: vectors that are this near to opposite show no way from one to the other but rounding.
_OPPOSITE = 1e-6


def karcher(operands: Operands, *, max_iter: int, tol: float) -> Combine:
    """The Karcher mean of the operands' directions times the mean of their lengths.

    Every iterate is a combination of the operands, so it is found on the Gram matrix alone.

    Args:
        operands: at least one, all of equal weight; those no longer than ``tol`` have no
            direction. One alone stays as it is.
        max_iter: most steps; 0: the normalised mean of the unit vectors.
        tol: the length of a step, in radians, that ends the search.

    Source:
        Karcher 1977, Riemannian center of mass; arXiv:2603.04972. Computed in float64.
    """
    if len(operands.sources) == 1:
        return lambda piece: piece.tensors[0]
    products = gram(operands, lambda piece: piece.tensors)
    lengths = products.diagonal().sqrt()
    units = torch.where(lengths > tol, 1 / lengths, 0.0)
    factors = torch.zeros_like(units)
    if units.any():
        mean = _mean(units.outer(units) * products, units > 0, max_iter, tol)
        factors = mean * units * lengths.mean()
    weights = factors.tolist()
    return lambda piece: weighted_sum(piece.tensors, weights)


def _mean(
    cosines: Float64[Tensor, "operands operands"],
    valid: Bool[Tensor, " operands"],
    steps: int,
    tol: float,
) -> Float64[Tensor, " operands"]:
    """Factors of the unit vectors, whose products are ``cosines``, for a vector of length 1."""

    def length(factors: Float64[Tensor, " operands"]) -> Float64[Tensor, ""]:
        return (factors @ cosines @ factors).clamp(min=0).sqrt()

    share = valid.double() / valid.sum()
    mean = share.clone()
    if length(mean) < max(tol, _OPPOSITE):  # opposite directions: begin at the first
        mean = torch.zeros_like(share)
        mean[valid.nonzero()[0]] = 1.0
    mean /= length(mean)
    for _ in range(steps):
        dots = (cosines @ mean).clamp(-1, 1)
        angles = torch.acos(dots)
        sines = torch.sin(angles)
        still = (angles < tol) | (sines < _OPPOSITE)
        pull = torch.where(still, 0.0, share * angles / sines)
        step = pull - (pull @ dots) * mean
        size = length(step)
        if size <= tol:
            break
        mean = torch.cos(size) * mean + torch.sin(size) / size * step
        mean /= length(mean)
    return mean
