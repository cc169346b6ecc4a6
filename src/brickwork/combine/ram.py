"""Reinforced agent merging (RAM, RAM+; arXiv:2601.13572): shared and unique changes apart."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardshrink

from brickwork.combine.operands import Combine, Operands, Piece


def ram(operands: Operands, *, epsilon: float) -> Combine:
    """The base plus, for each value, the mean change of the operands that changed it.

    Args:
        operands: with a base; none beside it: the base itself.
        epsilon: the size above which a change is one.

    Source:
        arXiv:2601.13572.
    """
    return _added(epsilon, [1.0] * len(operands.sources))


def ramplus_tl(operands: Operands, *, r: float, alpha: float, epsilon: float) -> Combine:
    """As ``ram``, but changes that an operand made alone are multiplied by ``1 + r * overlap``.

    Its overlap is the number of its shared changes over that of its unique ones, in this tensor.

    Args:
        operands: with a base; none beside it: the base itself.
        r: how much larger unique changes become.
        alpha: the most that an overlap counts.
        epsilon: the size above which a change is one.

    Source:
        arXiv:2601.13572, tensor-local as in mergekit.
    """
    shared, unique = [0.0] * len(operands.sources), [0.0] * len(operands.sources)
    for piece in operands.pieces() if operands.sources else ():
        _, touched, count = _touched(piece.deltas, epsilon)
        alone = torch.eq(count, 1, out=torch.empty_like(count))
        for number, mark in enumerate(touched):
            by_itself = (mark * alone).sum().item()
            unique[number] += by_itself
            shared[number] += mark.sum().item() - by_itself
    overlaps = [s / max(u, epsilon) for s, u in zip(shared, unique, strict=True)]
    return _added(epsilon, [1 + r * min(max(o, 0.0), alpha) for o in overlaps])


def _added(epsilon: float, stronger: Sequence[float]) -> Combine:
    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        assert piece.base is not None, "the table says that a base is required"
        if not stronger:
            return piece.base
        changes, _, count = _touched(piece.deltas, epsilon)
        mixed = torch.zeros_like(count)
        alone = torch.eq(count, 1, out=torch.empty_like(count))
        for change, factor in zip(changes, stronger, strict=True):
            mixed.add_(change)
            if factor != 1:
                mixed.add_(change.mul_(alone), alpha=factor - 1)
        return mixed.div_(count.clamp_(min=1)).add_(piece.base)

    return combine


def _touched(
    deltas: Sequence[Float[Tensor, "rows columns"]], epsilon: float
) -> tuple[list[Tensor], list[Tensor], Float[Tensor, "rows columns"]]:
    """Changes above ``epsilon``, 1 where they are, and how many operands have one there."""
    changes = [hardshrink(delta, epsilon) for delta in deltas]
    marks = [torch.ne(change, 0, out=torch.empty_like(change)) for change in changes]
    count = torch.zeros_like(marks[0])
    for mark in marks:
        count.add_(mark)
    return changes, marks, count
