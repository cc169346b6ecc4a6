"""Residual states at the tokens that tell answers, and at the ends of other prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.measure.attribution import gradient_budget
from brickwork.model.parts import CausalModel
from brickwork.model.taps import tapped
from brickwork.model.train import Encoded, groups_by_length
from brickwork.update.words import EncodedFact


@dataclass(frozen=True, eq=False)
class Told:
    """Where answers are told: a spot is a token after which one of an answer shall follow.

    The spots of a row are its prompt's last token and every token of its answer but the last.

    Attributes:
        sequences: prompts, each with its answer but for the last token, which nothing reads.
        starts: for every row its first spot.
        row: for every spot its row.
        position: its place in the row, counted from the row's first spot.
        token: the token that shall follow.
    """

    sequences: list[tuple[int, ...]]
    starts: list[int]
    row: Int[Tensor, " spots"]
    position: Int[Tensor, " spots"]
    token: Int[Tensor, " spots"]

    def every(self, holds: Bool[Tensor, " spots"]) -> Bool[Tensor, " rows"]:
        """For each row whether something holds at all its spots."""
        broken = torch.zeros(len(self.starts), dtype=torch.long, device=holds.device)
        return broken.index_add(0, self.row, (~holds).long()) == 0


def told(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device
) -> Told:
    """Prompts with answers of at least one token, spot after spot in their order."""
    spots = [
        (row, number, token)
        for row, answer in enumerate(answers)
        for number, token in enumerate(answer)
    ]
    row, position, token = torch.tensor(spots, device=device).unbind(1)
    pairs = zip(prompts, answers, strict=True)
    sequences = [(*prompt, *answer[:-1]) for prompt, answer in pairs]
    return Told(sequences, [len(prompt) - 1 for prompt in prompts], row, position, token)


def told_facts(facts: Sequence[EncodedFact], device: torch.device) -> Told:
    """The prompts of the facts with their new answers."""
    return told([fact.prompt.ids for fact in facts], [fact.target for fact in facts], device)


def fact_groups(model: CausalModel, facts: Sequence[EncodedFact]) -> list[list[int]]:
    """The numbers of all facts once, as many together as a backward pass has room for."""
    lengths = [len(fact.prompt.ids) + len(fact.target) for fact in facts]
    return groups_by_length(lengths, gradient_budget(model))


def fact_states(
    model: CausalModel, layer: int, facts: Sequence[EncodedFact], *, after: bool = False
) -> list[Float[Tensor, "spots hidden"]]:
    """What a block reads, or hands on, at the spots of each fact, in float32."""
    sequences = [(*fact.prompt.ids, *fact.target[:-1]) for fact in facts]
    return end_states(model, layer, sequences, [len(fact.target) for fact in facts], after=after)


def last_states(
    model: CausalModel, layer: int, prompts: Sequence[Sequence[int]], *, after: bool = False
) -> Float[Tensor, "prompts hidden"]:
    """What a block reads, or hands on, at the last token of each prompt, in float32."""
    return torch.cat(end_states(model, layer, prompts, [1] * len(prompts), after=after))


@torch.no_grad()
def end_states(
    model: CausalModel,
    layer: int,
    sequences: Sequence[Sequence[int]],
    counts: Sequence[int],
    *,
    after: bool = False,
) -> list[Float[Tensor, "tokens hidden"]]:
    """What a block reads, or hands on, at so many last tokens of each sequence, in float32."""
    found = [torch.empty(0)] * len(sequences)
    lengths = [len(ids) for ids in sequences]
    for group in groups_by_length(lengths, gradient_budget(model)):
        ids = torch.zeros(len(group), max(lengths[i] for i in group), dtype=torch.long)
        for row, i in enumerate(group):
            ids[row, : lengths[i]] = torch.tensor(sequences[i])
        states = _block_states(model, layer, ids)[after]
        for row, i in enumerate(group):
            found[i] = states[row, lengths[i] - counts[i] : lengths[i]].float()
    return found


def _block_states(
    model: CausalModel, layer: int, ids: Int[Tensor, "rows tokens"]
) -> tuple[Float[Tensor, "rows tokens hidden"], Float[Tensor, "rows tokens hidden"]]:
    seen: list[tuple[Tensor, Tensor]] = []
    with tapped(model, blocks={layer: lambda before, after: seen.append((before, after))}):
        model.base_model(input_ids=ids.to(model.device), use_cache=False)
    return seen[0]


def corpus_prompts(
    corpus: Sequence[Encoded], *, texts: int = 256, tokens: int = 128
) -> list[list[int]]:
    """Some of the texts, up to where a response starts or whole; of a long one its last tokens."""
    starts = [text.ids[: text.response_start] or text.ids for text in corpus]
    kept = [ids[-tokens:] for ids in starts if ids]
    return kept[:: max(1, len(kept) // texts)][:texts]


def leads(
    logits: Float[Tensor, "spots vocabulary"], token: Int[Tensor, " spots"]
) -> Float[Tensor, " spots"]:
    """How far the logit of the token lies above the best other one; negative: below."""
    own = logits.gather(1, token[:, None]).squeeze(1)
    others = logits.scatter(1, token[:, None], -torch.inf)
    return own - others.amax(1)
