"""How likely answers are after their prompts, and whether the model would say them; in batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.measure.perplexity import TOKENS_PER_BATCH, only_logits_of
from brickwork.model.parts import CausalModel
from brickwork.model.train import groups_by_length

_LOGITS_PER_BATCH = 1 << 26

# Token ids of a prompt and of an answer to it; neither is empty.
Told = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """What a model thinks of answers.

    Attributes:
        nats: minus the log probability of each whole answer, in float64.
        tokens: of each answer.
        right: how many of them are the likeliest at their place, given those before.
    """

    nats: Float[Tensor, " answers"]
    tokens: Int[Tensor, " answers"]
    right: Int[Tensor, " answers"]

    @property
    def nats_per_token(self) -> Float[Tensor, " answers"]:
        """What answers of different length are compared by."""
        return self.nats / self.tokens

    @property
    def said(self) -> Bool[Tensor, " answers"]:
        """Whether every token is the likeliest."""
        return self.right == self.tokens


@torch.inference_mode()
def answer_scores(model: CausalModel, told: Sequence[Told]) -> AnswerScores:
    """The scores of answers to prompts, as the model runs now.

    A prompt with several answers runs once, as far as the answers share their beginning.

    Args:
        model: it is left as it is.
        told: prompts with answers.
    """
    budget = min(TOKENS_PER_BATCH, _LOGITS_PER_BATCH // model.config.get_text_config().vocab_size)
    runs, own = _shared([(*prompt, *answer[:-1]) for prompt, answer in told])
    nats = torch.zeros(len(told), dtype=torch.float64)
    right = torch.zeros(len(told), dtype=torch.long)
    for group in groups_by_length([len(run) for run in runs], budget):
        spots = [
            (row, len(told[i][0]) - 1 + number, token, i)
            for row, run in enumerate(group)
            for i in own[run]
            for number, token in enumerate(told[i][1])
        ]
        row, position, token, answer = torch.tensor(spots).unbind(1)
        cells, cell = torch.stack([row, position]).unique(dim=1, return_inverse=True)
        logits = _logits(model, [runs[i] for i in group], *cells.to(model.device))
        lost = logits.logsumexp(-1)[cell] - logits[cell, token.to(logits.device)]
        nats.index_add_(0, answer, lost.cpu().double())
        right.index_add_(0, answer, (logits.argmax(-1).cpu()[cell] == token).long())
    return AnswerScores(nats, torch.tensor([len(a) for _, a in told], dtype=torch.long), right)


def _logits(
    model: CausalModel,
    sequences: Sequence[Sequence[int]],
    row: Int[Tensor, " chosen"],
    position: Int[Tensor, " chosen"],
) -> Float[Tensor, "chosen vocabulary"]:
    # Padding stands behind everything else, so a causal model needs no mask for it.
    width = max(map(len, sequences))
    ids = torch.tensor([[*run, *[0] * (width - len(run))] for run in sequences])
    with only_logits_of(model, row, position):
        logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    return logits[0].float()


def _shared(sequences: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """The sequences that begin no other one, and for each the numbers of those that it holds."""
    numbers: dict[tuple[int, ...], list[int]] = {}
    for i, sequence in enumerate(sequences):
        numbers.setdefault(sequence, []).append(i)
    runs: list[tuple[int, ...]] = []
    own: list[list[int]] = []
    # In this order a sequence that begins others stands right before them.
    for sequence in sorted(numbers, reverse=True):
        if not runs or runs[-1][: len(sequence)] != sequence:
            runs.append(sequence)
            own.append([])
        own[-1] += numbers[sequence]
    return runs, own
