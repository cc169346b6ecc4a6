"""RegMean: the linear map nearest to all models' outputs on their own inputs."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from brickwork.combine.fisher import require_shares
from brickwork.combine.linear import linear
from brickwork.combine.operands import Combine, Operands, Piece
from brickwork.errors import MergeError

# Added to every Gram matrix, as a share of the mean of their diagonals: inputs that no model has
# ever seen then have their plain mean, where the equations alone leave them open.
_RIDGE = 1e-8


def regmean(operands: Operands, *, weight: tuple[float, ...], alpha: float) -> Combine:
    """The solution W of ``W sum(w G) = sum(w W_i G)``, which is a least squares fit.

    It minimises the sum over the models of ``w |X W^T - X W_i^T|^2`` with ``G = X^T X``. Without
    statistics (a tensor that is no linear map) it is the average by the weights. The Gram
    matrices are held whole, in float64: 8 bytes x operands x inputs^2.

    Args:
        operands: at least one, out x in; its statistics are the Gram matrix of the map's inputs,
            in x in, symmetric; or there are none at all. A map that is kept as in x out must come
            transposed.
        weight: one factor for each operand, at least 0.
        alpha: factor of the Gram matrices off their diagonal, 0 to 1.

    Raises:
        MergeError: if the statistics are of another shape or no Gram matrix, a weight is below
            0, or all weights are 0.

    Source:
        Jin et al. 2022, arXiv:2212.09849. A ridge of 1e-8 of the mean diagonal, towards the plain
        mean, keeps the system solvable.
    """
    require_shares(weight, operands.name)
    plain = linear(operands, weight=weight, normalize=True)
    if not operands.statistics or not operands.values:
        return plain
    grams = [_gram(operands, number, alpha).mul_(w) for number, w in enumerate(weight)]
    total = torch.stack([g.diagonal().mean() for g in grams]).mean()
    ridge = _RIDGE * (total if total > 0 else torch.ones_like(total))
    for g, w in zip(grams, weight, strict=True):
        g.diagonal().add_(ridge * w)
    factor = _cholesky(operands, sum(grams[1:], grams[0].clone()))

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        mean = plain(piece)
        # Differences to the mean: equal maps then stay equal to the bit.
        right = torch.zeros(mean.shape, dtype=torch.float64)
        for tensor, g in zip(piece.tensors, grams, strict=True):
            right.addmm_((tensor - mean).double(), g)
        return torch.cholesky_solve(right.T, factor).T.to(mean.dtype).add_(mean)

    return combine


def _gram(operands: Operands, number: int, alpha: float) -> Float64[Tensor, "columns columns"]:
    columns = operands.shape[-1]
    shape = operands.statistics[number].shape
    if shape != (columns, columns) or len(operands.shape) != 2:
        raise MergeError(
            f"the Gram matrix of {operands.keys[number]!r} for {operands.name!r} has the shape "
            f"{shape}, but a map of the shape {operands.shape} needs {(columns, columns)}; "
            "measure it on that model."
        )
    matrix = operands.statistic(number, 0, columns).double()
    diagonal = matrix.diagonal()
    if (diagonal < 0).any() or not torch.allclose(matrix, matrix.T, rtol=1e-3):
        raise MergeError(
            f"the statistics of {operands.keys[number]!r} for {operands.name!r} are no Gram "
            "matrix: they are not symmetric, or below 0 on the diagonal; measure them again."
        )
    return matrix * alpha + torch.diag(diagonal * (1 - alpha))


def _cholesky(
    operands: Operands, total: Float64[Tensor, "columns columns"]
) -> Float64[Tensor, "columns columns"]:
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(total)
    if info:
        raise MergeError(
            f"the Gram matrices at {operands.name!r} sum to a matrix that is not positive, so "
            "there is no nearest map; measure them again, or choose a smaller alpha."
        )
    return factor
