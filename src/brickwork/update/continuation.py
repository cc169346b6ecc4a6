"""Passes over the ends of sequences, for values that are learned at one token of each.

What stands before that token, and the blocks below the one that is edited, are computed once.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from brickwork.measure.perplexity import only_logits_of
from brickwork.model.parts import CausalModel, role_path


class Continuation:
    """The ends of sequences, run again and again from one block on.

    Args:
        model: it is left as it is; bricks that act on it act here, too.
        sequences: token ids, each longer than its start.
        starts: for each sequence the first token of its end.
        first: the first block that is run again; those below are computed once.

    Attributes:
        states: what the first block reads, of the ends, padded on the right; where it is block 0,
            what it would read cannot be changed and this is empty.
        mask: which of the ends' positions are tokens.
    """

    states: Float[Tensor, "rows tokens hidden"]
    mask: Bool[Tensor, "rows tokens"]

    @torch.no_grad()
    def __init__(
        self,
        model: CausalModel,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        first: int,
    ) -> None:
        self._model = model
        self._below = [
            model.get_submodule(role_path(model, "block", layer) or "") for layer in range(first)
        ]
        ends = [ids[start:] for ids, start in zip(sequences, starts, strict=True)]
        self._ids, self.mask = (part.to(model.device) for part in _padded(ends, left=False))
        heads = [ids[:start] for ids, start in zip(sequences, starts, strict=True)]
        before, known = (part.to(model.device) for part in _padded(heads, left=True))
        self._seen = torch.cat([known, torch.ones_like(self.mask)], dim=1).long()
        length = known.sum(1, keepdim=True)
        steps = torch.arange(self._ids.shape[1], device=model.device)
        # Padding may stand behind the last position that the model has learned.
        self._positions = length + steps.minimum(self.mask.sum(1, keepdim=True) - 1)
        self._cache: Any = None
        if known.shape[1]:
            positions = (known.cumsum(1) - 1).clamp_min(0)
            inputs = {"input_ids": before, "attention_mask": known.long()}
            at_end = (torch.arange(len(heads)), torch.full((len(heads),), known.shape[1] - 1))
            with only_logits_of(model, *(index.to(model.device) for index in at_end)):
                output = model(**inputs, position_ids=positions, use_cache=True)
            self._cache = output.past_key_values
        self.states = torch.zeros(*self._ids.shape, 0, device=model.device)
        if first:
            self.states = self._read_states()

    def logits(
        self,
        states: Float[Tensor, "rows tokens hidden"],
        row: Int[Tensor, " chosen"],
        position: Int[Tensor, " chosen"],
    ) -> Float[Tensor, "chosen vocabulary"]:
        """The logits at some positions of the ends, in float32.

        Args:
            states: what the first block reads instead of its own; see the attribute.
            row: of each position that is wanted.
            position: counted from the start of the end.
        """
        with _answering(self._below, states), only_logits_of(self._model, row, position):
            found: Tensor = self._run().logits[0].float()
        return found

    def _run(self) -> Any:
        # A pass adds to the cache that it is given.
        return self._model(
            input_ids=self._ids,
            attention_mask=self._seen,
            position_ids=self._positions,
            past_key_values=copy.deepcopy(self._cache),
            use_cache=self._cache is not None,
        )

    def _read_states(self) -> Tensor:
        seen: list[Tensor] = []
        hook = self._below[-1].register_forward_hook(lambda _module, _args, out: seen.append(out))
        one = torch.zeros(1, dtype=torch.long, device=self._ids.device)
        try:
            with only_logits_of(self._model, one, one):
                self._run()
        finally:
            hook.remove()
        return seen[0]


@contextmanager
def _answering(blocks: Sequence[nn.Module], states: Tensor) -> Iterator[None]:
    """Let the last of the blocks answer with the states, and nothing be computed in the others."""

    def passing(x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return x

    def ending(*_args: Any, **_kwargs: Any) -> Tensor:
        return states

    missing = object()
    kept = [vars(block).get("forward", missing) for block in blocks]
    forwards: list[Callable[..., Tensor]] = [*[passing] * (len(blocks) - 1), ending]
    try:
        for block, forward in zip(blocks, forwards[: len(blocks)], strict=False):
            block.forward = forward
        yield
    finally:
        for block, forward in zip(blocks, kept, strict=True):
            if forward is missing:
                del block.forward
            else:
                block.forward = forward


def _padded(sequences: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids as one tensor, and which of its entries are none of the padding."""
    width = max(len(ids) for ids in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        where = slice(width - len(sequence), None) if left else slice(len(sequence))
        ids[row, where] = torch.tensor(sequence, dtype=torch.long)
        mask[row, where] = True
    return ids, mask
