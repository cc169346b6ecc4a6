"""Model stock: the average of fine-tuned models, drawn to the base as far as they disagree."""

from itertools import combinations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from brickwork.combine.gram import gram, row_products
from brickwork.combine.operands import Combine, Operands, Piece


def model_stock(operands: Operands, *, filter_wise: bool) -> Combine:
    """``s * average + (1 - s) * base`` with ``s = n c / (1 + (n - 1) c)``.

    ``c`` is the mean cosine between the changes of each two of the ``n`` operands.

    Args:
        operands: at least two, and a base.
        filter_wise: whether each row has an ``s`` of its own, instead of the whole tensor.

    Source:
        Jang et al. 2024, arXiv:2403.19522. As in mergekit, lengths whose product is below 1e-6
        count as that, and where the formula has no finite value the base stays. In float64.
    """
    count = len(operands.sources)
    whole = None if filter_wise else _share(gram(operands, lambda p: p.deltas), count)

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        assert piece.base is not None, "the table says that a base is required"
        share = whole if whole is not None else _share(_row_grams(piece), count).unsqueeze(-1)
        result = piece.base * (1 - share).to(piece.base.dtype)
        each = (share / count).to(piece.base.dtype)
        for tensor in piece.tensors:
            result.addcmul_(tensor, each)
        return result

    return combine


def _share(
    products: Float64[Tensor, "operands operands *rows"], count: int
) -> Float64[Tensor, "*rows"]:
    lengths = [products[n, n].sqrt() for n in range(count)]
    cosines = [
        (products[a, b] / (lengths[a] * lengths[b]).clamp(min=1e-6)).clamp(-1, 1)
        for a, b in combinations(range(count), 2)
    ]
    cosine = torch.stack(cosines).mean(0)
    below = 1 + (count - 1) * cosine
    return torch.where(below.abs() < 1e-6, 0.0, count * cosine / below)


def _row_grams(piece: Piece) -> Float64[Tensor, "operands operands rows"]:
    return torch.stack(
        [
            torch.stack([row_products(left, right) for right in piece.deltas])
            for left in piece.deltas
        ]
    )
