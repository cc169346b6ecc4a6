"""Weighted averages (model soups, Wortsman et al. 2022, arXiv:2203.05482)."""

from jaxtyping import Float
from torch import Tensor

from brickwork.combine.operands import Combine, Operands, Piece
from brickwork.errors import MergeError


def linear(operands: Operands, *, weight: tuple[float, ...], normalize: bool) -> Combine:
    """The weighted sum of the operands, divided by the sum of the weights if normalised.

    Args:
        operands: at least one; a base is an operand like the others.
        weight: one factor for each operand; any sign.
        normalize: whether to divide by the sum of the weights.

    Raises:
        MergeError: if the weights to divide by sum to 0.

    Source:
        Wortsman et al. 2022, arXiv:2203.05482.
    """
    total = sum(weight)
    if normalize and total == 0:
        raise MergeError(
            f"the weights {list(weight)} at {operands.name!r} sum to 0, so they cannot be "
            "normalised; change them, or set `normalize: false`."
        )

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        result = piece.tensors[0] * weight[0]
        for tensor, factor in zip(piece.tensors[1:], weight[1:], strict=True):
            result.add_(tensor, alpha=factor)
        return result.div_(total) if normalize else result

    return combine
