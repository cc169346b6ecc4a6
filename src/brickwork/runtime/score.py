"""The loss of given answers under given configurations."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.brick.configuration import Configuration
from brickwork.errors import ConfigurationError
from brickwork.runtime.configured import ConfiguredModel

Pair = tuple[Sequence[int], Sequence[int]]


@torch.inference_mode()
def answer_losses(
    model: ConfiguredModel, pairs: Sequence[Pair], configurations: Sequence[Configuration]
) -> list[Float[Tensor, " answer"]]:
    """Nats for every token of every answer.

    Args:
        model: the base with its bricks.
        pairs: prompt and answer of each row as token ids, neither of them empty.
        configurations: one for each row.

    Raises:
        ConfigurationError: if a prompt or an answer has no tokens.
    """
    for row, (prompt, answer) in enumerate(pairs):
        if not (prompt and answer):
            raise ConfigurationError(
                f"pair {row} has {len(prompt)} tokens of prompt and {len(answer)} of answer; a "
                "loss needs at least one of each."
            )
    rows = [[*prompt, *answer] for prompt, answer in pairs]
    told = [len(answer) + 1 for _, answer in pairs]
    logits = model.logits(rows, configurations, told=told)
    return [
        torch.nn.functional.cross_entropy(
            row[-len(answer) - 1 : -1].float(),
            torch.tensor(list(answer), device=row.device),
            reduction="none",
        )
        for row, (_, answer) in zip(logits, pairs, strict=True)
    ]


def mean_loss(
    model: ConfiguredModel, pairs: Sequence[Pair], configuration: Configuration, rows: int = 20
) -> float:
    """Nats per token over the answers of many pairs under one configuration.

    Args:
        model: the base with its bricks.
        pairs: prompt and answer of each row as token ids, at least one pair.
        configuration: the same for all.
        rows: how many run at once.

    Raises:
        ConfigurationError: if there is no pair, or one has no tokens.
    """
    if not pairs:
        raise ConfigurationError("a mean loss needs at least one pair of prompt and answer.")
    total, tokens = 0.0, 0
    for start in range(0, len(pairs), rows):
        some = pairs[start : start + rows]
        for losses in answer_losses(model, some, [configuration] * len(some)):
            total, tokens = total + losses.sum().item(), tokens + len(losses)
    return total / tokens
