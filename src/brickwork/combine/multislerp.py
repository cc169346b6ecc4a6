"""The mean direction of several tensors times their mean length."""

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.combine.gram import gram
from brickwork.combine.linear import require_sum, weighted_sum
from brickwork.combine.operands import Combine, Operands, Piece
from brickwork.errors import MergeError

# Unit vectors of float32 numbers that are opposite sum to this length by their rounding alone.
_OPPOSITE = 1e-7


def multislerp(
    operands: Operands, *, weight: tuple[float, ...], normalize_weights: bool, eps: float
) -> Combine:
    """The direction of the weighted sum of the unit vectors, at the weighted mean of the lengths.

    Two opposite tensors have no mean direction: they are averaged. So are tensors that are all 0.

    Args:
        operands: at least one; with a base, its changes are meant. One alone stays as it is.
        weight: one factor for each operand.
        normalize_weights: whether to divide by the sum of the weights.
        eps: added to lengths; the least length of the mean direction.

    Raises:
        MergeError: if three or more tensors cancel out, or weights sum to 0.

    Source:
        Goddard 2025, goddard.blog/posts/multislerp-wow-what-a-cool-idea. Its step through the
        tangent space at the mean is left out: weighted by the same weights, tangent vectors sum
        to 0, so it returns the mean (mergekit adds its rounding). Computed in float64.
    """
    require_sum(weight, operands.name, wanted=normalize_weights)
    if len(weight) == 1:
        return lambda piece: piece.tensors[0]
    weights = torch.tensor(weight, dtype=torch.float64)
    weights = weights / weights.sum() if normalize_weights else weights
    products = gram(operands, lambda piece: piece.deltas)
    lengths = products.diagonal().sqrt()
    directed = weights / (lengths + eps)
    length = (directed @ products @ directed).clamp(min=0).sqrt()
    factors = directed / length * (weights @ lengths)
    if length < max(eps, _OPPOSITE):
        if len(weight) > 2 and lengths.any():
            raise MergeError(
                f"the operands at {operands.name!r} cancel out under the weights {list(weight)}, "
                "so they have no mean direction; use other weights."
            )
        factors = weights

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        result = weighted_sum(piece.deltas, factors.tolist())
        return result if piece.base is None else result.add_(piece.base)

    return combine
