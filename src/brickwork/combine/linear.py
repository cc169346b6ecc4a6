"""Weighted averages (model soups, Wortsman et al. 2022, arXiv:2203.05482)."""

from collections.abc import Sequence

import torch
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
        Wortsman et al. 2022, arXiv:2203.05482. Equal to mergekit's to the bit.
    """
    require_sum(weight, operands.name, wanted=normalize)

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        result = weighted_sum(piece.tensors, weight)
        return result.div_(weight_sum(weight, result.dtype)) if normalize else result

    return combine


def weighted_sum(
    vectors: Sequence[Float[Tensor, "rows columns"]], weight: Sequence[float]
) -> Float[Tensor, "rows columns"]:
    """The sum of the vectors, each times its factor, one after the other."""
    result = torch.zeros_like(vectors[0])
    for vector, factor in zip(vectors, weight, strict=True):
        result.add_(vector, alpha=factor)
    return result


def weight_sum(weight: Sequence[float], dtype: torch.dtype) -> Float[Tensor, ""]:
    """The sum of the weights, rounded as mergekit's is."""
    return torch.tensor(weight, dtype=dtype).sum()


def require_sum(weight: Sequence[float], name: str, *, wanted: bool = True) -> None:
    """Refuse weights that cannot be divided by their sum.

    Args:
        weight: of the operands.
        name: the tensor's, for the error.
        wanted: False: nothing is divided, so any weights will do.

    Raises:
        MergeError: if they sum to 0, within rounding.
    """
    if wanted and abs(sum(weight)) < 1e-8:
        raise MergeError(
            f"the weights {list(weight)} at {name!r} sum to 0, so they cannot be normalised; "
            "change them, or leave out the normalisation."
        )
