"""Spherical interpolation of two models or of their changes, as wholes, by rows or by columns."""

from math import prod

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from brickwork.combine.gram import gram, row_products
from brickwork.combine.operands import Combine, Operands, Piece
from brickwork.combine.slerp import arc_weights

_LEAST_LENGTH = 1e-7
# mergekit asks in float32 whether the cosine is 1 or -1; this is what float32 can tell apart.
_STRAIGHT = 1 - 2.0**-24


def nuslerp(
    operands: Operands,
    *,
    weight: tuple[float, ...],
    nuslerp_flatten: bool,
    nuslerp_row_wise: bool,
) -> Combine:
    """The point on the arc between two tensors; with a base, between what they changed of it.

    Args:
        operands: two; a base is what changes are taken from.
        weight: the second's share of their sum is the place on the arc; the middle, if the
            weights sum to 0.
        nuslerp_flatten: one arc for the whole tensor.
        nuslerp_row_wise: without ``nuslerp_flatten``: an arc for each column (vectors along the
            first axis) instead of each row (along the last). The name is mergekit's.

    Source:
        mergekit 0.1.5; Shoemake 1985. Angles are computed in float64. Tensors that point in
        opposite directions to within float32's resolution are interpolated along the line.
    """
    total = sum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    if nuslerp_flatten or (len(operands.shape) < 2 and nuslerp_row_wise):
        whole = _weights(t, gram(operands, lambda piece: piece.deltas)[..., None])
    elif nuslerp_row_wise:
        whole = _weights(t, _column_products(operands))
    else:
        whole = None

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        first, second = piece.deltas
        if whole is None:
            found = _weights(t, _row_grams(first, second)).unsqueeze(-1)  # ends rows 1
        elif whole.shape[-1] == 1:
            found = whole.unsqueeze(-1)
        else:
            groups = whole.shape[1] // first.shape[1]
            rows = torch.arange(piece.start, piece.stop) % groups
            found = whole.reshape(2, groups, -1)[:, rows]
        weights = found.to(first.dtype)
        result = (first * weights[0]).add_(second * weights[1])
        return result if piece.base is None else result.add_(piece.base)

    return combine


def _weights(t: float, products: Float64[Tensor, "2 2 vectors"]) -> Float64[Tensor, "ends vectors"]:
    lengths = products.diagonal().sqrt().clamp(min=_LEAST_LENGTH)  # vectors ends
    cosine = products[0, 1] / lengths.prod(dim=1)
    return arc_weights(t, cosine.clamp(-1, 1), straight=_STRAIGHT)


def _row_grams(
    first: Float[Tensor, "rows columns"], second: Float[Tensor, "rows columns"]
) -> Float64[Tensor, "2 2 rows"]:
    one, both, two = (
        row_products(a, b) for a, b in ((first, first), (first, second), (second, second))
    )
    return torch.stack((one, both, both, two)).reshape(2, 2, -1)


def _column_products(operands: Operands) -> Float64[Tensor, "2 2 vectors"]:
    """Products along the first axis, for each place on the axes between and on the last."""
    groups, columns = prod(operands.shape[1:-1]), operands.shape[-1]
    total = torch.zeros(4, groups, columns, dtype=torch.float64)
    for piece in operands.pieces():
        first, second = (delta.double() for delta in piece.deltas)
        rows = torch.arange(piece.start, piece.stop) % groups
        for at, (left, right) in ((0, (first, first)), (1, (first, second)), (3, (second, second))):
            total[at].index_add_(0, rows, left * right)
    total[2] = total[1]
    return total.reshape(2, 2, -1)
