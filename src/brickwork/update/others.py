"""Prompts that say nothing of a fact: its own words about other subjects, and other relations."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.update.method import EditContext
from brickwork.update.states import end_states
from brickwork.update.words import EncodedFact

_Item = TypeVar("_Item")


def other_subjects(
    context: EditContext, facts: Sequence[EncodedFact], fact: EncodedFact, count: int
) -> list[tuple[int, ...]]:
    """The fact's prompt with other words where its subject stands, as token ids.

    These are the subjects of the other facts and of the training facts, and, where they are too
    few, pieces of the corpus. A fact's neighbours are for the evaluation, and never used.

    Args:
        context: what the edit is made with; equal seeds give equal prompts.
        facts: all that are edited.
        fact: one of them.
        count: at most so many.
    """
    start, stop = fact.prompt.start, fact.prompt.stop
    generator = torch.Generator().manual_seed(context.seed)
    known = dict.fromkeys(_subject(one) for one in [*facts, *context.training])
    known.pop(_subject(fact), None)
    subjects = _some(list(known), count, generator)
    texts = [text.ids for text in context.corpus if len(text.ids) > stop - start]
    for ids in _some(texts, count - len(subjects), generator):
        first = int(torch.randint(len(ids) - (stop - start), (), generator=generator))
        subjects.append(tuple(ids[first : first + stop - start]))
    return [_about(fact, subject) for subject in subjects]


def other_relations(
    context: EditContext, facts: Sequence[EncodedFact], fact: EncodedFact, count: int
) -> list[tuple[int, ...]]:
    """What other facts' prompts ask, asked of the fact's subject; only of relations with names.

    Where relations have no names, another prompt could be the fact's own in other words.
    """
    generator = torch.Generator().manual_seed(context.seed)
    relations = {
        one.fact.relation: one
        for one in [*context.training, *facts]
        if one.fact.relation and fact.fact.relation not in ("", one.fact.relation)
    }
    chosen = _some(list(relations.values()), count, generator)
    return [_about(one, _subject(fact)) for one in chosen]


def states_of_others(
    context: EditContext,
    prompts: Sequence[Sequence[Sequence[int]]],
    facts: Sequence[EncodedFact],
    *,
    after: bool,
) -> list[Float[Tensor, "others spots hidden"]]:
    """What the block reads, or hands on, where other prompts would tell the facts' answers.

    Args:
        context: what the edit is made with.
        prompts: for each fact some others.
        facts: whose answers are put after them.
        after: whether what it hands on is wanted.
    """
    sequences = [
        (*ids, *fact.target[:-1]) for own, fact in zip(prompts, facts, strict=True) for ids in own
    ]
    counts = [len(fact.target) for own, fact in zip(prompts, facts, strict=True) for _ in own]
    model, layer = context.loaded.model, context.site.layers[-1]
    states = iter(end_states(model, layer, sequences, counts, after=after))
    hidden = model.config.get_text_config().hidden_size
    found = []
    for own, fact in zip(prompts, facts, strict=True):
        rows = [next(states) for _ in own]
        none = torch.zeros(0, len(fact.target), hidden, device=context.loaded.device)
        found.append(torch.stack(rows) if rows else none)
    return found


def _subject(fact: EncodedFact) -> tuple[int, ...]:
    return fact.prompt.ids[fact.prompt.start : fact.prompt.stop]


def _about(fact: EncodedFact, subject: Sequence[int]) -> tuple[int, ...]:
    return (*fact.prompt.ids[: fact.prompt.start], *subject, *fact.prompt.ids[fact.prompt.stop :])


def _some(items: Sequence[_Item], count: int, generator: torch.Generator) -> list[_Item]:
    order = torch.randperm(len(items), generator=generator)[: max(count, 0)]
    return [items[i] for i in order.tolist()]
