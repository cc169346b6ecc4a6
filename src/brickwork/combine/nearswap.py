"""The other model's values where they are near to the base's."""

from jaxtyping import Float
from torch import Tensor

from brickwork.combine.operands import Combine, Operands, Piece


def nearswap(operands: Operands, *, t: float) -> Combine:
    """The base, moved to the other model by the share ``t / |difference|``, at most all the way.

    Args:
        operands: one, and a base.
        t: the difference up to which the other's value is taken, at least 0.

    Source:
        alchemonaut 2024, huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001.
    """
    del operands  # nothing to measure

    def combine(piece: Piece) -> Float[Tensor, "rows columns"]:
        assert piece.base is not None, "the table says that a base is required"
        (other,) = piece.tensors
        share = (piece.base - other).abs_().clamp_(min=1e-6).reciprocal_().mul_(t).clamp_(0, 1)
        return (share * other).add_(share.neg_().add_(1).mul_(piece.base))

    return combine
