"""Which brick did what: an answer scored with all bricks, without each of them, and without any.

The variants of a row run as one mixed batch. A brick's share is what the answer loses when that
brick alone is left out; where it acts is how far the hidden states of the answer's tokens move.
Both are measured on the model's own computation, so they hold for every form.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brickwork.brick.configuration import Configuration
from brickwork.errors import ConfigurationError
from brickwork.runtime.configured import ConfiguredModel


@dataclass(frozen=True)
class BrickTrace:
    """What one brick did.

    Attributes:
        name: as in the configuration.
        weight: as in the configuration.
        gain: nats per token of the answer that are lost when this brick alone is left out.
        moved: for each layer, the length of the change that it makes in the hidden states from
            which the answer is told, relative to the states without it. Empty if the layers of
            the base's family are not known.
    """

    name: str
    weight: float
    gain: float
    moved: tuple[float, ...]


@dataclass(frozen=True)
class Trace:
    """The loss of an answer (nats per token) configured and bare, and every brick's part."""

    loss: float
    base_loss: float
    bricks: tuple[BrickTrace, ...]

    def as_document(self) -> dict[str, Any]:
        """The trace as JSON."""
        return asdict(self)


@torch.inference_mode()
def trace(
    model: ConfiguredModel,
    prompt: Sequence[int],
    answer: Sequence[int],
    configuration: Configuration,
) -> Trace:
    """What each brick of ``configuration`` contributes to ``answer``.

    Args:
        model: the base with its bricks.
        prompt: token ids of the instruction, in the form that the model is prompted with.
        answer: token ids whose loss is taken: a reference, or what the model said.
        configuration: the bricks to trace.

    Raises:
        ConfigurationError: if the prompt or the answer has no tokens.
    """
    if not (prompt and answer):
        raise ConfigurationError(
            f"a trace needs a prompt and an answer of at least one token each, not of "
            f"{len(prompt)} and {len(answer)}."
        )
    uses = configuration.bricks
    without = [uses[:number] + uses[number + 1 :] for number in range(len(uses))]
    variants = [uses, (), *without]
    rows = [configuration.model_copy(update={"bricks": bricks}) for bricks in variants]
    losses, states = _losses_and_states(model, [*prompt, *answer], len(answer), rows)
    found = [
        BrickTrace(use.name, use.weight, losses[i] - losses[0], _moved(states, i))
        for i, use in enumerate(uses, start=2)
    ]
    return Trace(losses[0], losses[1], tuple(found))


def _losses_and_states(
    model: ConfiguredModel, tokens: Sequence[int], answer: int, rows: Sequence[Configuration]
) -> tuple[list[float], list[Float[Tensor, "rows answer hidden"]]]:
    """The loss of each row, and for each layer the states that the answer is told from."""
    base, blocks = model.loaded.model, model.loaded.base.of_kind("block")
    with (
        model.serving(
            [tokens] * len(rows), model.plan(rows), told=[answer + 1] * len(rows)
        ) as layout,
        _watched([base.get_submodule(block.path) for block in blocks]) as states,
    ):
        output = base(
            **layout.inputs,
            attention_mask=layout.mask_or_none,
            position_ids=layout.positions,
            logits_to_keep=answer + 1,
        )
    targets = torch.tensor(tokens[-answer:], device=output.logits.device)
    chances = output.logits[:, :-1].float().log_softmax(-1)  # rows answer vocabulary
    losses = -chances[:, torch.arange(answer), targets].mean(1)
    return losses.tolist(), [h[:, -answer - 1 : -1].float() for h in states]


@contextmanager
def _watched(blocks: Sequence[nn.Module]) -> Iterator[list[Float[Tensor, "rows tokens hidden"]]]:
    """What the blocks hand on, in their order; the model itself shows its last state normed."""
    states: list[Tensor] = []

    def keep(_module: nn.Module, _given: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states.append(output if isinstance(output, Tensor) else output[0])

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _moved(states: Sequence[Float[Tensor, "rows answer hidden"]], row: int) -> tuple[float, ...]:
    """How far the first row, which has all bricks, is from another, by layer."""
    return tuple(((h[0] - h[row]).norm() / h[row].norm()).item() for h in states)
