"""Fisher merging: an average weighted by how much each value matters to its model."""

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.combine.linear import require_sum, weight_sum, weighted_sum
from brickwork.combine.operands import Combine, Operands, Piece
from brickwork.errors import MergeError


def fisher(operands: Operands, *, weight: tuple[float, ...]) -> Combine:
    """``sum(w F x) / sum(w F)``: where the models' quadratic losses around them sum to least.

    Where no model's Fisher information is above 0, and without statistics, the values are
    averaged by the weights alone.

    Args:
        operands: at least one; its statistics are the diagonal of the Fisher information, of
            the tensor's shape, at least 0; or there are none at all.
        weight: one factor for each operand, at least 0.

    Raises:
        MergeError: if the statistics are of another shape or below 0, a weight is below 0, or all
            weights are 0.

    Source:
        Matena and Raffel 2021, arXiv:2111.09832. Their floor of 1e-6 under the Fisher information
        is left out, as it would drown that of language models; so is the scaling of a model's
        information to length 1, which a weight can do.
    """
    require_shares(weight, operands.name)
    for number, source in enumerate(operands.statistics):
        if source.shape != operands.shape:
            raise MergeError(
                f"the Fisher information of {operands.keys[number]!r} for {operands.name!r} has "
                f"the shape {source.shape}, but the tensor has {operands.shape}; measure it on "
                "that model."
            )

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        plain = weighted_sum(piece.tensors, weight).div_(weight_sum(weight, piece.tensors[0].dtype))
        if not operands.statistics:
            return plain
        mixed, total = torch.zeros_like(plain), torch.zeros_like(plain)
        for number, (tensor, factor) in enumerate(zip(piece.tensors, weight, strict=True)):
            matter = _information(operands, number, piece) * factor
            total.add_(matter)
            # Differences to the plain mean: equal values then stay equal to the bit.
            mixed.add_(matter * (tensor - plain))
        return mixed.div_(total.add_(torch.eq(total, 0, out=torch.empty_like(total)))).add_(plain)

    return combine


def require_shares(weight: tuple[float, ...], name: str) -> None:
    """Refuse weights that are no shares: below 0, or all 0.

    Raises:
        MergeError: with the weights.
    """
    if min(weight) < 0:
        raise MergeError(
            f"the weights {list(weight)} at {name!r} must not be below 0: they say how much of "
            "the data is each model's; use task_arithmetic to take a skill away."
        )
    require_sum(weight, name)


def _information(operands: Operands, number: int, piece: Piece) -> Float[Tensor, "rows columns"]:
    values = operands.statistic(number, piece.start, piece.stop)
    if values.numel() and values.min() < 0:
        raise MergeError(
            f"the Fisher information of {operands.keys[number]!r} for {operands.name!r} is below "
            "0, which no mean of squares is; measure it again."
        )
    return values
