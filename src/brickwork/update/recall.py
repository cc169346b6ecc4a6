"""A recall: a prompt with the answer whose probability is measured, and what decides it.

The probability of an answer of several tokens is the product over its tokens, each given those
before it. (Meng et al. 2022, arXiv:2202.05262, look at the first token only.)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from brickwork.measure.perplexity import only_logits_of
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel, role_path
from brickwork.model.taps import BlockTap
from brickwork.model.words import decoded, stop_tokens
from brickwork.update.words import EncodedFact, Prompted

_LONGEST_OWN = 8  # tokens; a model that has not ended its answer by then writes on and on


@dataclass(frozen=True)
class Recall:
    """A prompt and an answer to it.

    Attributes:
        id: the fact's name.
        text: the prompt as it was given.
        subject: as it stands in the prompt.
        prompt: its tokens.
        answer: its tokens, at least one.
    """

    id: str
    text: str
    subject: str
    prompt: Prompted
    answer: tuple[int, ...]

    @property
    def ids(self) -> list[int]:
        """The prompt and the answer without its last token, which nothing is predicted from."""
        return [*self.prompt.ids, *self.answer[:-1]]

    @property
    def spots(self) -> range:
        """The positions that the answer's tokens are predicted at."""
        first = len(self.prompt.ids) - 1
        return range(first, first + len(self.answer))


def recall_fact(
    loaded: LoadedModel, fact: EncodedFact, which: Literal["target", "true", "own"]
) -> Recall:
    """The recall of a fact's new answer, of its old one, or of what the model says itself."""
    answer = own_answer(loaded, fact.prompt.ids) if which == "own" else getattr(fact, which)
    return Recall(fact.fact.id, fact.fact.prompt, fact.fact.subject, fact.prompt, answer)


@torch.inference_mode()
def own_answer(loaded: LoadedModel, prompt: Sequence[int]) -> tuple[int, ...]:
    """What the model says: the whole answer if it soon ends it, else its first token."""
    ids, stops = list(prompt), stop_tokens(loaded)
    for _ in range(_LONGEST_OWN + 1):
        row = torch.tensor([ids], device=loaded.device)
        with only_logits_of(loaded.model, *_cells(1, range(len(ids) - 1, len(ids)), row.device)):
            said = int(loaded.model(input_ids=row, use_cache=False).logits[0, 0].argmax())
        if said in stops and len(ids) > len(prompt):
            return tuple(ids[len(prompt) :])
        ids.append(said)
    return (ids[len(prompt)],)


def answer_text(loaded: LoadedModel, recall: Recall) -> str:
    """The answer in words."""
    return decoded(loaded, recall.answer).strip()


def answer_logs(
    model: CausalModel, recall: Recall, rows: int
) -> Float[Tensor, "rows answer_tokens vocabulary"]:
    """The log probabilities where the answer is predicted, in float32, for equal rows.

    Rows differ by what taps and hooks do to them.
    """
    ids = torch.tensor([recall.ids], device=model.device).expand(rows, -1)
    with only_logits_of(model, *_cells(rows, recall.spots, ids.device)):
        logits = model(input_ids=ids, use_cache=False).logits[0]
    logs: Tensor = logits.float().log_softmax(-1).unflatten(0, (rows, -1))
    return logs


def probabilities(
    logs: Float[Tensor, "rows answer_tokens vocabulary"], recall: Recall
) -> Float[Tensor, " rows"]:
    """The probability of the whole answer in each row."""
    wanted = torch.tensor(recall.answer, device=logs.device).expand(len(logs), -1)
    found: Tensor = logs.gather(2, wanted.unsqueeze(2)).squeeze(2).sum(1).exp()
    return found


@torch.inference_mode()
def knows(model: CausalModel, recall: Recall) -> bool:
    """Whether every token of the answer is the likeliest one there."""
    wanted = torch.tensor(recall.answer, device=model.device)
    return bool((answer_logs(model, recall, 1)[0].argmax(-1) == wanted).all())


def reading(into: dict[int, Tensor], layers: int) -> dict[int, BlockTap]:
    """Taps that keep what every block reads, by its number."""

    def keep(layer: int, before: Tensor, _after: Tensor) -> None:
        into[layer] = before

    return {layer: partial(keep, layer) for layer in range(layers)}


@contextmanager
def starting_at(
    model: CausalModel, layer: int, states: Float[Tensor, "rows tokens hidden"]
) -> Iterator[None]:
    """Let a block read these states, and compute nothing below it.

    Bricks that act on the block still do; what acts on those below it has no effect.
    """
    blocks = [model.get_submodule(role_path(model, "block", n) or "") for n in range(layer + 1)]
    kept = [vars(block).get("forward") for block in blocks[:-1]]

    def read(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    hook = blocks[-1].register_forward_pre_hook(read, with_kwargs=True)
    try:
        for block in blocks[:-1]:
            block.forward = _pass_on
        yield
    finally:
        hook.remove()
        for block, forward in zip(blocks[:-1], kept, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _pass_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


def _cells(
    rows: int, positions: range, device: torch.device
) -> tuple[Int[Tensor, " cells"], Int[Tensor, " cells"]]:
    """Row and position of some positions of every row."""
    row = torch.arange(rows, device=device).repeat_interleave(len(positions))
    return row, torch.tensor(list(positions), device=device).repeat(rows)
