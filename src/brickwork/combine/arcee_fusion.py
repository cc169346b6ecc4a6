"""The other model's most important changes (Arcee Fusion)."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.combine.operands import Combine, Operands, Piece
from brickwork.combine.thresholds import cuts

_SMALL = 1e-8


def arcee_fusion(operands: Operands) -> Combine:
    """The other's values where a change's importance is at least median + 1.5 x quartile range.

    Importance is the size of a change times the divergence of its row's softmax from the base's.

    Args:
        operands: one, and a base.

    Source:
        Arcee AI 2024, in mergekit 0.1.5. Quartiles are those of all values (mergekit's, of more
        than a million, of a random sample of them), and a divergence below 0, which only rounding
        gives, counts as 0.
    """
    values = operands.values
    divergences = {piece.start: _divergence(piece) for piece in operands.pieces()}

    def importance_of(piece: Piece) -> Float[Tensor, "rows columns"]:
        return piece.deltas[0].abs().mul_(divergences[piece.start])

    def stream() -> Iterator[tuple[int, Sequence[Tensor]]]:
        return ((piece.start, [importance_of(piece)]) for piece in operands.pieces())

    # The q-th quartile is the value at (values - 1) * q / 4 in rising order.
    ranks = [values - (values - 1) * quarter // 4 for quarter in (3, 2, 1)]
    (quartiles,) = cuts(stream, values, [ranks])
    sizes = [cut.threshold for cut in quartiles]
    if values in ranks:  # of so few, the smallest of all is a quartile, and `cuts` finds none
        least = min(importance_of(piece).min().item() for piece in operands.pieces())
        sizes = [least if k == values else size for k, size in zip(ranks, sizes, strict=True)]
    dtype = next(iter(divergences.values()), torch.empty(0)).dtype
    high, middle, low = torch.tensor(sizes, dtype=dtype)
    threshold = (middle + 1.5 * (high - low)).item()

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        assert piece.base is not None, "the table says that a base is required"
        importance = importance_of(piece)
        chosen = torch.ge(importance, threshold, out=torch.empty_like(importance))
        return piece.base + chosen.mul_(piece.deltas[0])

    return combine


def _divergence(piece: Piece) -> Float[Tensor, "rows 1"]:
    assert piece.base is not None, "the table says that a base is required"
    new = piece.tensors[0].softmax(dim=-1).add_(_SMALL)
    old = piece.base.softmax(dim=-1).add_(_SMALL)
    return torch.div(new, old, out=old).log_().mul_(new).sum(dim=-1, keepdim=True).clamp_(min=0)
