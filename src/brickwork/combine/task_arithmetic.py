"""The base plus weighted changes: task arithmetic, TIES, DARE, Breadcrumbs and DELLA.

All eight methods are a choice of the changes that are kept (``sparsify``) and of how they are
added: plainly, or only those of the elected sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.combine.linear import weight_sum
from brickwork.combine.operands import Combine, Operands, Piece
from brickwork.combine.sparsify import Kept, at_random, by_rank, everything, largest, middle


@dataclass(frozen=True)
class _Adding:
    """How kept changes are added.

    Attributes:
        weight: one factor for each operand.
        normalize: whether to divide by the sum of the weights.
        rescale: whether kept changes are made larger, so that their sizes sum to what they did.
        factor: of all changes together.
        elect: whether only changes of the elected sign count.
    """

    weight: tuple[float, ...]
    normalize: bool
    rescale: bool
    factor: float
    elect: bool


def task_arithmetic(
    operands: Operands, *, weight: tuple[float, ...], normalize: bool, lambda_: float
) -> Combine:
    """The base plus the weighted sum of what each operand changed.

    Args:
        operands: with a base; none beside it: the base itself.
        weight: one factor for each operand; a negative one takes a skill away.
        normalize: whether to divide by the sum of the weights.
        lambda_: factor of all changes together.

    Source:
        Ilharco et al. 2022, arXiv:2212.04089. In float32 equal to mergekit's to the bit.
    """
    return _add(operands, everything, _Adding(weight, normalize, False, lambda_, elect=False))


def ties(
    operands: Operands,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Combine:
    """Trim, elect, merge: the largest changes of each operand, if they have the elected sign.

    The sign of a value is that of the sum of the weighted changes (0 counts as positive).

    Args:
        operands: with a base; none beside it: the base itself.
        weight: one factor for each operand.
        density: share of the changes of each operand that are kept, at least one change unless 0.
        normalize: whether to divide each value by the weights of those that agree.
        rescale: whether kept changes are made larger, so that their sizes sum to what they did.
        lambda_: factor of all changes together.

    Source:
        Yadav et al. 2023, arXiv:2306.01708, with weights as in mergekit: signs are elected by
        weighted changes. In float32 equal to mergekit's to the bit; but of changes of equal size
        at the threshold we keep those that come first, mergekit those that its sort happens to.
    """
    kept = largest(operands, density)
    return _add(operands, kept, _Adding(weight, normalize, rescale, lambda_, elect=True))


def dare_linear(
    operands: Operands,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Combine:
    """A random choice of the changes of each operand, made larger for those left out.

    Args:
        operands: with a base; none beside it: the base itself.
        weight: one factor for each operand.
        density: the chance of a change of each operand to be kept.
        normalize: whether to divide by the sum of the weights.
        rescale: whether kept changes are made larger, so that their sizes sum to what they did.
        lambda_: factor of all changes together.

    Source:
        Yu et al. 2023, arXiv:2311.03099. The paper divides by the density; as in mergekit, kept
        changes are multiplied by what keeps the sum of their sizes, which has that expectation.
        Unlike mergekit's, an operand's choice does not depend on which others take part.
    """
    kept = at_random(operands, density)
    return _add(operands, kept, _Adding(weight, normalize, rescale, lambda_, elect=False))


def dare_ties(
    operands: Operands,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Combine:
    """As ``dare_linear``, but only changes of the elected sign count (see ``ties``).

    Source:
        Yu et al. 2023, arXiv:2311.03099, and Yadav et al. 2023, arXiv:2306.01708.
    """
    kept = at_random(operands, density)
    return _add(operands, kept, _Adding(weight, normalize, rescale, lambda_, elect=True))


def breadcrumbs(
    operands: Operands,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    gamma: tuple[float, ...],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Combine:
    """The changes of each operand that are neither outliers nor negligible.

    Args:
        operands: with a base; none beside it: the base itself.
        weight: one factor for each operand.
        density: share of the changes that are kept.
        gamma: share of the largest changes that are left out.
        normalize: whether to divide by the sum of the weights.
        rescale: whether kept changes are made larger, so that their sizes sum to what they did.
        lambda_: factor of all changes together.

    Source:
        Davari and Belilovsky 2023, arXiv:2312.06795, over the whole tensor as in mergekit. Of
        changes of equal size we keep those that come first, mergekit as its sort leaves them.
    """
    kept = middle(operands, density, gamma)
    return _add(operands, kept, _Adding(weight, normalize, rescale, lambda_, elect=False))


def breadcrumbs_ties(
    operands: Operands,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    gamma: tuple[float, ...],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Combine:
    """As ``breadcrumbs``, but only changes of the elected sign count (see ``ties``).

    Source:
        Davari and Belilovsky 2023, arXiv:2312.06795, and Yadav et al. 2023, arXiv:2306.01708.
    """
    kept = middle(operands, density, gamma)
    return _add(operands, kept, _Adding(weight, normalize, rescale, lambda_, elect=True))


def della(
    operands: Operands,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    epsilon: tuple[float, ...],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Combine:
    """Random changes, larger ones with a better chance, if they have the elected sign.

    Args:
        operands: with a base; none beside it: the base itself.
        weight: one factor for each operand.
        density: the mean chance of a change of each operand to be kept.
        epsilon: how far the chance goes from ``density``, down for the smallest change of a row
            and up for the largest.
        normalize: whether to divide each value by the weights of those that agree.
        rescale: whether kept changes are made larger, so that their sizes sum to what they did.
        lambda_: factor of all changes together.

    Raises:
        MergeError: if ``density`` and ``epsilon`` give chances that are not between 0 and 1.

    Source:
        Deep et al. 2024, arXiv:2406.11617. Rows run along the last axis (mergekit's, of a tensor
        of more than two axes, along the second).
    """
    kept = by_rank(operands, density, epsilon)
    return _add(operands, kept, _Adding(weight, normalize, rescale, lambda_, elect=True))


def della_linear(
    operands: Operands,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    epsilon: tuple[float, ...],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Combine:
    """As ``della``, but changes of either sign count.

    Source:
        Deep et al. 2024, arXiv:2406.11617.
    """
    kept = by_rank(operands, density, epsilon)
    return _add(operands, kept, _Adding(weight, normalize, rescale, lambda_, elect=False))


def elect(
    changes: Sequence[Float[Tensor, "rows columns"]],
) -> tuple[Float[Tensor, "rows columns"], list[Float[Tensor, "rows columns"]]]:
    """The sign of the sum of the changes (1 for a sum of 0), and the changes' sizes along it.

    A change of the other sign has the size 0.
    """
    total = torch.zeros_like(changes[0])
    for change in changes:
        total.add_(change)
    sign = total.ge_(0).mul_(2).sub_(1)
    return sign, [(change * sign).relu_() for change in changes]


def _add(operands: Operands, kept: Kept, adding: _Adding) -> Combine:
    scales = _scales(operands, kept) if adding.rescale else [1.0] * len(adding.weight)
    factors = [weight * scale for weight, scale in zip(adding.weight, scales, strict=True)]

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        assert piece.base is not None, "the table says that a base is required"
        if not factors:
            return piece.base
        changes = [change * f for change, f in zip(kept(piece), factors, strict=True)]
        mixed = (_agreed if adding.elect else _summed)(changes, adding)
        if adding.factor != 1:
            mixed.mul_(adding.factor)
        return mixed.add_(piece.base)

    return combine


def _summed(
    changes: Sequence[Float[Tensor, "rows columns"]], adding: _Adding
) -> Float[Tensor, "rows columns"]:
    mixed = torch.zeros_like(changes[0])
    for change in changes:
        mixed.add_(change)
    if not adding.normalize:
        return mixed
    divisor = weight_sum(adding.weight, mixed.dtype)
    return mixed if divisor.abs() < 1e-8 else mixed.div_(divisor)


def _agreed(
    changes: Sequence[Float[Tensor, "rows columns"]], adding: _Adding
) -> Float[Tensor, "rows columns"]:
    sign, agreeing = elect(changes)
    mixed = torch.zeros_like(sign)
    for size in agreeing:
        mixed.add_(size)
    if adding.normalize:
        mixed.div_(agreed_weight(agreeing, adding.weight))
    return mixed.mul_(sign)


def agreed_weight(
    agreeing: Sequence[Float[Tensor, "rows columns"]], weight: Sequence[float]
) -> Float[Tensor, "rows columns"]:
    """For each value the sum of the weights of the operands that agree; 1 where it is 0.

    Args:
        agreeing: sizes of the changes along the elected sign; they are overwritten.
        weight: of the operands.
    """
    total = torch.zeros_like(agreeing[0])
    for size, factor in zip(agreeing, weight, strict=True):
        total.add_(size.sign_(), alpha=factor)
    return total.add_(torch.eq(total, 0, out=torch.empty_like(total)))


def _scales(operands: Operands, kept: Kept) -> list[float]:
    """By what kept changes are multiplied, so that their sizes sum to those of all changes."""
    count = len(operands.sources)
    before, after = [0.0] * count, [0.0] * count
    for piece in operands.pieces():
        for number, (delta, change) in enumerate(zip(piece.deltas, kept(piece), strict=True)):
            before[number] += delta.abs().sum().item()
            after[number] += change.abs().sum().item()
    # What is almost nothing is left as it is, as mergekit does.
    return [b / a if min(a, b) >= 1e-7 else 1.0 for b, a in zip(before, after, strict=True)]
