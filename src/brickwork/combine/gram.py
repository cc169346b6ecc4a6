"""The geometry of whole tensors from their Gram matrix, gathered in one pass in float64.

Angles and lengths of any combination of tensors follow from the products of each two of them, so
methods on a sphere compute with coefficients and never hold a tensor.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from brickwork.combine.operands import Operands, Piece

Vectors = Callable[[Piece], Sequence[Float[Tensor, "rows columns"]]]


def gram(operands: Operands, vectors: Vectors) -> Float64[Tensor, "operands operands"]:
    """The scalar products of each two vectors over the whole tensor.

    Args:
        operands: what is read.
        vectors: of a piece.
    """
    count = len(operands.sources)
    total, block = torch.zeros(count, count, dtype=torch.float64), torch.empty(0, 0)
    for piece in operands.pieces():
        parts = vectors(piece)
        shape = (len(parts), parts[0].numel())
        if block.shape != shape:  # new memory for every piece would be most of the work
            block = torch.empty(shape, dtype=torch.float64)
        for row, part in zip(block, parts, strict=True):
            row.view_as(part).copy_(part)
        products = block @ block.T
        total = products if piece.start == 0 else total.add_(products)
    return total


def row_products(
    left: Float[Tensor, "rows columns"], right: Float[Tensor, "rows columns"]
) -> Float64[Tensor, " rows"]:
    """The scalar product of each row of one with that row of the other."""
    products: Tensor = torch.linalg.vecdot(left.double(), right.double())
    return products
