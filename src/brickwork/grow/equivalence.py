"""How far a grown model's logits are from the old one's, measured and not assumed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from brickwork.grow.spread import generator_for
from brickwork.model.load import LoadedModel

_SENTENCES, _TOKENS, _ANSWER = 4, 48, 24


@dataclass(frozen=True)
class Seen:
    """What a model says to some texts.

    Attributes:
        logits: for every token of every text.
        answers: how it goes on after each, greedily.
    """

    logits: Float[Tensor, "texts tokens vocabulary"]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Equivalence:
    """How the grown model differs from the old one.

    Attributes:
        difference: largest distance of two logits.
        largest: largest logit of the old model, by size.
        same_answers: share of the texts that both go on with in the same way.
        tokens: that were compared.
    """

    difference: float
    largest: float
    same_answers: float
    tokens: int


def look(loaded: LoadedModel, vocabulary: int, *, longest: int, seed: int = 0) -> Seen:
    """What a model says to random texts, the same for models of one ``vocabulary``.

    Args:
        loaded: the model.
        vocabulary: tokens that texts are drawn from, and whose logits are kept.
        longest: tokens that a text and its answer have together, at most.
        seed: of the texts.
    """
    length = min(_TOKENS, max(2, longest - _ANSWER))
    generator = generator_for(seed, "texts")
    ids = torch.randint(vocabulary, (_SENTENCES, length), generator=generator).to(loaded.device)
    with torch.no_grad():
        logits = loaded.model(input_ids=ids).logits[..., :vocabulary].float().cpu()
        answers = tuple(_answers(loaded, ids, vocabulary, min(_ANSWER, longest - length)))
    return Seen(logits, answers)


def _answers(
    loaded: LoadedModel, ids: Int[Tensor, "texts tokens"], vocabulary: int, steps: int
) -> Iterator[tuple[int, ...]]:
    """The likeliest old tokens, one after the other, with the model's own cache."""
    past, given = None, ids
    found: list[Sequence[int]] = []
    for _ in range(steps):
        said = loaded.model(input_ids=given, past_key_values=past, use_cache=True)
        given, past = said.logits[:, -1:, :vocabulary].argmax(-1), said.past_key_values
        found.append(given[:, 0].tolist())
    yield from zip(*found, strict=True)


def compare(old: Seen, new: Seen) -> Equivalence:
    """The differences between what two models said to the same texts."""
    same = sum(a == b for a, b in zip(old.answers, new.answers, strict=True))
    return Equivalence(
        difference=float((old.logits - new.logits).abs().max()),
        largest=float(old.logits.abs().max()),
        same_answers=same / max(1, len(old.answers)),
        tokens=old.logits.shape[0] * old.logits.shape[1],
    )
