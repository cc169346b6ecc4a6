"""Spherical interpolation of two tensors (Shoemake 1985, Animating rotation)."""

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.combine.gram import gram
from brickwork.combine.linear import weighted_sum
from brickwork.combine.operands import Combine, Operands, Piece

# Tensors nearer to one line than this cosine are interpolated along it: the arc is no better.
_STRAIGHT = 0.9995
_LEAST_LENGTH = 1e-8


def slerp(operands: Operands, *, t: float) -> Combine:
    """The point at ``t`` on the arc from the base to the other tensor, each seen as one vector.

    Args:
        operands: one, and a base.
        t: 0: the base; 1: the other; beyond them the arc goes on.

    Source:
        Shoemake 1985, Animating rotation with quaternion curves, on weights as in mergekit.
        The angle is computed in float64, in one pass. On small tensors results in float32 are
        within 2e-8 of mergekit's; of long ones its float32 norm is off by more than that.
    """
    products = gram(operands, lambda piece: (_base(piece), *piece.tensors))
    lengths = products.diagonal().sqrt()
    lengths = torch.where(lengths > _LEAST_LENGTH, lengths, 1.0)
    cosine = (products / lengths.outer(lengths))[0, -1].clamp(-1, 1)
    weights = arc_weights(t, cosine, straight=_STRAIGHT).tolist()

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        return weighted_sum((_base(piece), *piece.tensors), weights)

    return combine


def arc_weights(
    t: float, cosine: Float[Tensor, "*vectors"], *, straight: float
) -> Float[Tensor, "ends *vectors"]:
    """The factors of the two ends of an arc for the point at ``t`` on it.

    Args:
        t: 0: the first end; 1: the second.
        cosine: of the angle between the ends.
        straight: the size of the cosine above which the arc is taken for a line.
    """
    line = cosine.abs() > straight
    angle = torch.acos(torch.where(line, 0.0, cosine))
    first = torch.where(line, 1 - t, torch.sin((1 - t) * angle) / torch.sin(angle))
    second = torch.where(line, t, torch.sin(t * angle) / torch.sin(angle))
    return torch.stack((first, second))


def _base(piece: Piece) -> Float[Tensor, "rows columns"]:
    assert piece.base is not None, "the table says that a base is required"
    return piece.base
