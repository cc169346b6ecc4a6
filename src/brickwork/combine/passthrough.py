"""One model's tensor, which is how layers are stacked."""

from brickwork.combine.operands import Combine, Operands


def passthrough(operands: Operands, *, scale: tuple[float, ...]) -> Combine:
    """The tensor times a factor.

    Args:
        operands: one.
        scale: its factor; 1 leaves every bit.

    Source:
        mergekit 0.1.5.
    """
    del operands  # nothing to measure
    (factor,) = scale
    return lambda piece: piece.tensors[0] * factor
