"""Least squares between many pairs of streams at once, from sums that grow no larger with data."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.errors import MergeError

Pair = tuple[int, int]


class StreamSums:
    """The sums that the maps of all pairs follow from, in float64 on the CPU.

    What is summed is the distance from the first batch's mean: a channel that is always large
    would otherwise cost the others their digits.

    Args:
        pairs: places of the front and of the back that a map is wanted between.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs
        self._tokens = 0
        self._shift: dict[tuple[str, int], Tensor] = {}
        self._sum: dict[tuple[str, int], Tensor] = {}
        self._gram: dict[int, Tensor] = {}
        self._cross: dict[Pair, Tensor] = {}

    def add(
        self,
        front: Mapping[int, Float[Tensor, "positions front_hidden"]],
        back: Mapping[int, Float[Tensor, "positions back_hidden"]],
    ) -> None:
        """Take in the streams of some tokens, the same in both."""
        first = {place: self._centred("front", place, states) for place, states in front.items()}
        last = {place: self._centred("back", place, states) for place, states in back.items()}
        for place, states in first.items():
            self._gram[place] = self._gram.get(place, 0) + states.T @ states
        for i, j in self._pairs:
            self._cross[i, j] = self._cross.get((i, j), 0) + first[i].T @ last[j]
        self._tokens += len(next(iter(first.values())))

    def _centred(self, side: str, place: int, states: Tensor) -> Float[Tensor, "positions hidden"]:
        values = states.detach().cpu().double()
        shift = self._shift.setdefault((side, place), values.mean(0))
        centred = values - shift
        self._sum[side, place] = self._sum.get((side, place), 0) + centred.sum(0)
        return centred

    def solve(
        self, pair: Pair, ridge: float
    ) -> tuple[Float[Tensor, "back_hidden front_hidden"], Float[Tensor, " back_hidden"]]:
        """Weight and bias of the least squared error between two places.

        Args:
            pair: the places.
            ridge: added to the variances, in units of their mean.

        Raises:
            MergeError: if there are no more tokens than channels, or a stream is not finite.
        """
        i, j = pair
        channels = len(self._gram[i])
        if self._tokens <= channels:
            raise MergeError(
                f"a map from {channels} channels was to be fitted on {self._tokens} tokens, which "
                "any map could meet exactly; give more data than that, better ten times as many."
            )
        first, last = (self._sum[s, p] / self._tokens for s, p in (("front", i), ("back", j)))
        gram = self._gram[i] / self._tokens - torch.outer(first, first)
        cross = self._cross[pair] / self._tokens - torch.outer(first, last)
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed or not cross.isfinite().all():
            raise MergeError(
                f"the map from place {i} to place {j} has no solution: a stream holds NaN or "
                f"infinity, or its channels depend on one another (ridge {ridge:g}); mend the "
                "model, or give a larger ridge."
            )
        weight = torch.cholesky_solve(cross, factor).T
        bias = (self._shift["back", j] + last) - weight @ (self._shift["front", i] + first)
        return weight.contiguous(), bias
