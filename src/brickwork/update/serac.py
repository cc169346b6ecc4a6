"""SERAC: a memory of facts behind a learned scope, in one brick.

Source: Mitchell et al. 2022, Memory-Based Model Editing at Scale (arXiv:2206.06520).
"""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field

from brickwork.errors import EditError
from brickwork.model.parts import role_path
from brickwork.model.words import encode
from brickwork.update.contexts import prompts_in_contexts, sample_contexts
from brickwork.update.entries import Lesson
from brickwork.update.grace import joined, spaced, train_facts
from brickwork.update.method import Draft, EditContext
from brickwork.update.others import other_relations, other_subjects, states_of_others
from brickwork.update.scope import Example, learn_scope, radius_of
from brickwork.update.states import corpus_prompts, fact_states, last_states
from brickwork.update.words import EncodedFact

_NOISE = 1e-3  # of a key's length in the projection: what rounding of the states does to it

_HELD_OUT = 4  # one in so many training facts says how far the scope reaches


class SeracOptions(BaseModel):
    """What SERAC can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    width: int = Field(default=64, ge=1)
    """Of the space in which the scope compares prompts."""
    scope_steps: int = Field(default=100, ge=0)
    """Steps of Adam for the scope."""
    contexts: int = Field(default=8, ge=0)
    """Texts before a fact's prompt that teach the scope what is still the fact."""
    alike: int = Field(default=16, ge=0)
    """Prompts like each fact's that teach what is not: of two kinds so many."""
    training: int = Field(default=512, ge=0)
    """Training facts whose paraphrases and neighbours teach the scope, at most."""
    steps: int = Field(default=100, ge=1)
    """Steps of Adam for the values, at most."""
    rate: float = Field(default=0.1, gt=0)
    """Learning rate of the values, as a share of the size of the states."""
    lead: float = Field(default=4.0, ge=0)
    """A fact is done when the logit of every token of the answer leads all others by so much."""


def draft_serac(context: EditContext, facts: Sequence[EncodedFact], options: SeracOptions) -> Draft:
    """A memory with an entry for every token of the facts' answers, and the scope that reads it.

    What a paraphrase is, the scope learns from the context's training facts, never from the
    paraphrases of the facts that are edited; a quarter of them decides how far the scope reaches.
    Without training facts it reaches half of the way to the same prompt about others, and finds
    what the states themselves have near, as a codebook does.

    Raises:
        EditError: if the block reads the same whoever the subject is.

    Source:
        Mitchell et al. 2022, arXiv:2206.06520. Departures: the scope is a linear projection with
        a radius, so that it can be a brick; and in the place of a second, counterfactual model,
        the base itself answers with a value added to what one block hands on.
    """
    model, layer = context.loaded.model, context.site.layers[-1]
    hidden = model.config.get_text_config().hidden_size
    elsewhere = last_states(model, layer, corpus_prompts(context.corpus))
    own, training = taught_by_contexts(context, facts, options), taught_by_facts(context, options)
    cut = len(training) - len(training) // _HELD_OUT
    projection = learn_scope(
        [*own, *training[:cut]],
        elsewhere,
        width=min(options.width, hidden),
        steps=options.scope_steps,
    )
    held = training[cut:]
    radius = radius_of(projection, held or own, held_out=bool(held))
    if not radius > 0:
        raise EditError(
            f"a scope was to be learned at block {layer}, which reads the same at the end of a "
            "prompt whoever the subject is; name a later layer."
        )
    projection /= radius
    keys = [read @ projection.T for read in fact_states(model, layer, facts)]
    radii, taken = spaced(
        keys,
        [fact.target for fact in facts],
        [torch.ones_like(key[:, 0]) for key in keys],
        noise=_NOISE,
    )
    lesson = Lesson(options.steps, options.rate, options.lead)
    values, failures = train_facts(context, facts, lesson, added=True)
    for number, other in taken.items():
        failures[number] = (
            f"the scope at block {layer} cannot tell its prompt from that of "
            f"{facts[other].fact.id!r}, which has another answer; leave one of them out."
        )
    kept = [number for number in range(len(facts)) if number not in failures]
    slots = {"key": keys, "value": values, "radius": radii}
    site = role_path(model, "block", layer)
    tensors = {f"{site}/{slot}": joined(parts, kept) for slot, parts in slots.items()}
    return Draft(
        form="memory",
        tensors={f"{site}/projection": projection.cpu(), **tensors},
        owners=tuple(row for row, number in enumerate(kept) for _ in keys[number]),
        failures=failures,
    )


def taught_by_contexts(
    context: EditContext, facts: Sequence[EncodedFact], options: SeracOptions
) -> list[Example]:
    """The facts that are edited: after other texts they are near, about others they are far."""
    starts = [fact.prompt.ids[fact.prompt.start : fact.prompt.stop] for fact in facts]
    texts = sample_contexts(
        context.loaded, options.contexts, starts=starts, raw=context.raw, seed=context.seed
    )
    near = [
        [
            one.ids
            for one in prompts_in_contexts(context.loaded, fact, texts, "last", raw=context.raw)[1:]
        ]
        for fact in facts
    ]
    far = [
        other_subjects(context, facts, fact, options.alike)
        + other_relations(context, facts, fact, options.alike)
        for fact in facts
    ]
    return _examples(context, facts, near, far)


def taught_by_facts(context: EditContext, options: SeracOptions) -> list[Example]:
    """The training facts: in other words they are near, and their neighbours are far."""
    facts = context.training[: options.training]
    near, far = [], []
    for one in facts:
        neighbours = [probe.prompt for probe in (*one.fact.neighbours, *one.fact.same_subject)]
        near.append(encode(context.loaded, one.fact.paraphrases, raw=context.raw))
        far.append(encode(context.loaded, neighbours, raw=context.raw))
    return _examples(context, facts, near, far)


def _examples(
    context: EditContext,
    facts: Sequence[EncodedFact],
    near: Sequence[Sequence[Sequence[int]]],
    far: Sequence[Sequence[Sequence[int]]],
) -> list[Example]:
    """One for every token of the facts' answers."""
    anchors = fact_states(context.loaded.model, context.site.layers[-1], facts)
    both = (states_of_others(context, part, facts, after=False) for part in (near, far))
    return [
        Example(anchor[spot], close[:, spot], other[:, spot])
        for anchor, close, other in zip(anchors, *both, strict=True)
        for spot in range(len(anchor))
    ]
