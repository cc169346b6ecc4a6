"""Generation for a laid-out batch: one token of every row at each step."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from brickwork.brick.configuration import Options
from brickwork.runtime.layout import Layout
from brickwork.runtime.sample import Sampler


def decode(
    model: PreTrainedModel, layout: Layout, options: Sequence[Options], stops: set[int]
) -> Iterator[tuple[int, int, bool]]:
    """Row, token, and whether it is the row's last, until every row has stopped or is full.

    A row's stop token is yielded, too. A row is full with its ``max_new_tokens``, or when the
    model has learned no further position. Rows that are done are still computed, not yielded.
    """
    limits = [o.max_new_tokens for o in options]
    if layout.room is not None:
        free = (layout.room - layout.mask.sum(1) + 1).tolist()  # nothing is read after the last
        limits = [min(pair) for pair in zip(limits, free, strict=True)]
    running = dict.fromkeys(range(len(options)))
    for step, tokens in enumerate(_steps(model, layout, Sampler(options), max(limits)), start=1):
        for row in list(running):
            last = tokens[row] in stops or step == limits[row]
            if last:
                del running[row]
            yield row, tokens[row], last
        if not running:
            return


def _steps(
    model: PreTrainedModel, layout: Layout, sampler: Sampler, longest: int
) -> Iterator[list[int]]:
    """The token of every row, finished ones included; nothing is computed ahead."""
    padded = layout.mask_or_none is not None
    rows, seen = layout.mask.shape
    grown = torch.cat([layout.mask, layout.mask.new_ones(rows, longest if padded else 0)], dim=1)
    position = layout.positions[:, -1:]
    inputs: dict[str, Any] = {**layout.inputs, "position_ids": layout.positions}
    while True:
        mask = grown[:, :seen] if padded else None
        output = model(**inputs, attention_mask=mask, use_cache=True, logits_to_keep=1)
        tokens = sampler(output.logits[:, -1])
        yield tokens.tolist()
        seen, position = seen + 1, position + 1
        if layout.room is not None:
            position = position.clamp_max(layout.room - 1)  # of a row that is full
        inputs = {
            "input_ids": tokens[:, None],
            "position_ids": position,
            "past_key_values": output.past_key_values,
        }


class Spoken:
    """The tokens of one row so far, and how much of their text has been handed out."""

    def __init__(self, text_of: Callable[[Sequence[int]], str]) -> None:
        self._text_of, self._handed_out = text_of, 0
        self.tokens: list[int] = []

    def add(self, token: int, *, last: bool = False) -> str:
        """The text that this token completes; bytes of an unfinished character wait.

        With the last token they wait no longer.
        """
        self.tokens.append(token)
        return self._fresh(last=last)

    def end(self) -> str:
        """What still waits, if the row ends with a token that is not part of its text."""
        return self._fresh(last=True)

    def _fresh(self, *, last: bool) -> str:
        text = self._text_of(self.tokens)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and not last:
            return ""
        fresh, self._handed_out = text[self._handed_out :], len(text)
        return fresh
