"""The next token of each row, by the row's own options and its own stream of chance.

Sampling adds Gumbel noise and takes the maximum (Gumbel 1954), so a row's choice depends on its
own seed and logits alone, not on which rows share its batch.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from brickwork.brick.configuration import Options


class Sampler:
    """Chooses tokens for a batch; one stream of random numbers per row."""

    def __init__(self, options: Sequence[Options]) -> None:
        self._options = list(options)
        self._streams = [torch.Generator().manual_seed(o.seed) for o in options]

    def __call__(self, logits: Float[Tensor, "rows vocabulary"]) -> Int[Tensor, " rows"]:
        """The chosen token of each row."""
        if all(o.temperature == 0 for o in self._options):
            return logits.argmax(-1)
        rows = zip(logits.float().cpu(), self._options, self._streams, strict=True)
        return torch.stack([_choose(*row) for row in rows]).to(logits.device)


def _choose(
    logits: Float[Tensor, " vocabulary"], options: Options, stream: torch.Generator
) -> Int[Tensor, ""]:
    if options.temperature == 0:
        return logits.argmax()
    scaled = logits / options.temperature
    if options.top_p < 1:
        scaled = scaled.masked_fill(~nucleus(scaled, options.top_p), -torch.inf)
    exponential = torch.empty_like(scaled).exponential_(generator=stream)
    exponential.clamp_min_(torch.finfo(scaled.dtype).tiny)  # at 0 it would choose what is masked
    return (scaled - exponential.log()).argmax()


def nucleus(logits: Float[Tensor, " vocabulary"], top_p: float) -> Tensor:
    """Whether each token is among the likeliest ones that together have probability ``top_p``.

    Source: Holtzman et al. 2019, arXiv:1904.09751.

    >>> nucleus(torch.tensor([0.5, 0.3, 0.2]).log(), 0.6)
    tensor([ True,  True, False])
    """
    ordered, order = logits.softmax(-1).sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < top_p)
