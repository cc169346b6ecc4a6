"""SCE: select where the models differ most, calculate weights, erase the minority's signs."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.combine.operands import Combine, Operands, Piece
from brickwork.combine.task_arithmetic import elect
from brickwork.combine.thresholds import ALL, NONE, Cut, cuts


def sce(operands: Operands, *, select_topk: float) -> Combine:
    """The base plus the weighted mean of the selected changes that have the elected sign.

    Selected are the values that vary most between operands; an operand's weight is its share of
    the squares of what is selected. Weights are equal if those are almost 0.

    Args:
        operands: with a base; none beside it: the base itself.
        select_topk: share of the values that vary at all which are selected.

    Source:
        Wan et al. 2024 (FuseChat), arXiv:2408.07990. As in mergekit, a mean square below 1e-6 in
        sum gives equal weights. Values that vary equally are taken in the order they stand in.
    """
    cut = _selection(operands, select_topk)
    weights = _weights(operands, cut)

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        assert piece.base is not None, "the table says that a base is required"
        if not weights:
            return piece.base
        sign, agreeing = elect(_selected(piece, cut))
        mixed, total = torch.zeros_like(sign), torch.zeros_like(sign)
        for size, weight in zip(agreeing, weights, strict=True):
            mixed.add_(size, alpha=weight)
            total.add_(size.sign_(), alpha=weight)
        return mixed.div_(total.clamp_(min=1e-6)).mul_(sign).add_(piece.base)

    return combine


def _selection(operands: Operands, share: float) -> Cut:
    if share >= 1 or share <= 0 or not operands.sources:
        return ALL if share >= 1 else NONE
    varying = sum(int(_variance(piece.deltas).count_nonzero()) for piece in operands.pieces())

    def stream() -> Iterator[tuple[int, Sequence[Tensor]]]:
        return ((piece.start, [_variance(piece.deltas)]) for piece in operands.pieces())

    ((cut,),) = cuts(stream, operands.values, [[int(varying * share)]])
    return cut


def _variance(
    deltas: Sequence[Float[Tensor, "rows columns"]],
) -> Float[Tensor, "rows columns"]:
    """The variance over operands; exactly 0 where all are equal."""
    shifted = [delta - deltas[0] for delta in deltas[1:]]
    mean, result = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for values in shifted:
        mean.add_(values)
    mean.div_(len(deltas))
    for values in shifted:
        result.add_(values.sub_(mean).square_())
    return result.add_(mean.square_()).div_(len(deltas))


def _selected(piece: Piece, cut: Cut) -> Sequence[Float[Tensor, "rows columns"]]:
    if cut is ALL:
        return piece.deltas
    mask = cut.mask(_variance(piece.deltas), piece.start)
    return [delta * mask for delta in piece.deltas]


def _weights(operands: Operands, cut: Cut) -> list[float]:
    squares = [0.0] * len(operands.sources)
    for piece in operands.pieces() if squares else ():
        for number, change in enumerate(_selected(piece, cut)):
            squares[number] += change.square().sum().item()
    total = sum(squares)
    if total < 1e-6 * operands.values or not total:
        return [1 / len(squares) for _ in squares]
    return [square / total for square in squares]
