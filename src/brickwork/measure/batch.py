"""The batch that is running, for taps that must know which positions are tokens."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor


@dataclass(eq=False)
class RunningBatch:
    """Told of every batch before it runs, read by taps while it runs."""

    tokens: Bool[Tensor, "rows tokens"] = field(
        default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool)
    )

    @property
    def positions(self) -> Bool[Tensor, " positions"]:
        """True where a position is a token, not padding; rows one after the other."""
        return self.tokens.flatten()
