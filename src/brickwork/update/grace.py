"""GRACE: a codebook on one block; states near a key are replaced by the key's value.

Source: Hartvigsen et al. 2023, Aging with GRACE (arXiv:2211.11031).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from brickwork.model.parts import role_path
from brickwork.update.entries import Lesson, train_entries
from brickwork.update.method import Draft, EditContext
from brickwork.update.others import other_subjects, states_of_others
from brickwork.update.states import fact_groups, fact_states, told_facts
from brickwork.update.words import EncodedFact

# Two passes over one prompt, batched in two ways, differ by this share of a state at most: by
# one unit in the last place of bfloat16 and by six of float32, as measured on the reference model.
_NOISE = 1e-5
_OTHERS = 8  # prompts about other subjects for each fact: enough for a median
_HALF = 0.5 * (1 - 1e-5)  # two radii that meet halfway must not overlap


class GraceOptions(BaseModel):
    """What GRACE can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    epsilon: float = Field(default=0.5, gt=0)
    """Radius of a new key, as a share of the distance to the same prompt about others."""
    steps: int = Field(default=100, ge=1)
    """Steps of Adam for the values, at most."""
    rate: float = Field(default=0.1, gt=0)
    """Learning rate, as a share of the size of the states."""
    lead: float = Field(default=2.0, ge=0)
    """A fact is done when the logit of every token of the answer leads all others by so much."""


def draft_grace(context: EditContext, facts: Sequence[EncodedFact], options: GraceOptions) -> Draft:
    """A codebook with an entry for every token of the facts' answers.

    A key is what the block reads where the token is told: at the prompt's last token, and at
    every token of the answer but the last. A fact fails if the block reads there what it reads for
    other subjects or for a fact with another answer, or if no value makes the model tell the
    answer. Codebooks that act already are left as they are; the nearest key of all codebooks
    decides.

    Source:
        Hartvigsen et al. 2023, arXiv:2211.11031; values start from the block's own output, and
        those of one fact are trained together. Departures: epsilon is a share of a distance that
        is measured for every key; answers are compared as token sequences; a split never widens a
        radius; and a state near a key of the same answer gets a key of its own, where the paper
        widens the other's radius, so that every fact can be taken out alone.
    """
    noise = max(_NOISE, 2 * torch.finfo(context.loaded.dtype).eps)
    layer = context.site.layers[-1]
    keys = fact_states(context.loaded.model, layer, facts)
    far = reaches(context, facts, keys)
    reach = [options.epsilon * own for own in far]
    radius, taken = spaced(keys, [fact.target for fact in facts], reach, noise=noise)
    values, failures = train_facts(
        context, facts, Lesson(**options.model_dump(exclude={"epsilon"}))
    )
    for number, other in taken.items():
        failures[number] = (
            f"block {layer} reads the same at the end of its prompt as for "
            f"{facts[other].fact.id!r}, which has another answer; name a later layer, or leave "
            "one of them out."
        )
    for number, (key, own) in enumerate(zip(keys, far, strict=True)):
        if own[0] <= noise * key[0].norm():
            failures[number] = (
                f"block {layer} reads the same at the end of its prompt whoever the subject is; "
                "name a later layer."
            )
    kept = [number for number in range(len(facts)) if number not in failures]
    slots = {"key": keys, "value": values, "radius": radius}
    site = role_path(context.loaded.model, "block", layer)
    return Draft(
        form="codebook",
        tensors={f"{site}/{slot}": joined(parts, kept) for slot, parts in slots.items()},
        owners=tuple(row for row, number in enumerate(kept) for _ in keys[number]),
        failures=failures,
    )


def joined(parts: Sequence[Tensor], kept: Sequence[int]) -> Tensor:
    """The rows of the facts that are kept, on the CPU; nothing if none is."""
    return torch.cat([parts[number] for number in kept]).cpu() if kept else torch.empty(0)


def spaced(
    keys: Sequence[Float[Tensor, "spots hidden"]],
    answers: Sequence[Sequence[int]],
    reach: Sequence[Float[Tensor, " spots"]],
    *,
    noise: float,
) -> tuple[list[Float[Tensor, " spots"]], dict[int, int]]:
    """The radii of keys that come one after another: where two would meet, they share the way.

    Args:
        keys: of each fact, one for each token of its answer.
        answers: the tokens; a key stands for those from its own on.
        reach: the radius of each key if it is alone.
        noise: share of a key's length by which a state varies without a reason.

    Returns:
        The radii of each fact's keys, and the facts whose keys are those of an earlier fact with
        another answer, by number, with the number of that fact.
    """
    every = torch.cat(list(keys)).double()
    apart = torch.cdist(every, every, compute_mode="donot_use_mm_for_euclid_dist")
    rests = [tuple(answer[start:]) for answer in answers for start in range(len(answer))]
    first: dict[tuple[int, ...], int] = {}
    kinds = torch.tensor([first.setdefault(r, n) for n, r in enumerate(rests)], device=every.device)
    owner = [number for number, answer in enumerate(answers) for _ in answer]
    least = noise * every.norm(dim=1)
    radius = torch.cat(list(reach)).double().maximum(least)
    placed = torch.zeros_like(kinds, dtype=torch.bool)
    failures: dict[int, int] = {}
    for spot, number in enumerate(owner):
        rivals = placed & (kinds != kinds[spot])
        if number in failures or not rivals.any():
            placed[spot] = number not in failures
            continue
        distance, nearest = apart[spot].masked_fill(~rivals, torch.inf).min(0)
        half = distance * _HALF
        if half < least[spot]:
            failures[number] = owner[int(nearest)]
            placed[[other == number for other in owner]] = False
            continue
        if distance <= radius[nearest] + radius[spot]:
            radius[nearest] = torch.minimum(radius[nearest], half)
            radius[spot] = torch.minimum(radius[spot], half)
        placed[spot] = True
    return list(radius.float().split([len(answer) for answer in answers])), failures


def reaches(
    context: EditContext,
    facts: Sequence[EncodedFact],
    keys: Sequence[Float[Tensor, "spots hidden"]],
) -> list[Float[Tensor, " spots"]]:
    """How far the state for another subject lies from each key, in the middle of some.

    Facts about one subject and without a corpus have no others; then the tokens inside a fact's own
    prompt count, and where it has none the reach is 0.
    """
    prompts = [
        other_subjects(context, facts, fact, _OTHERS) or _beginnings(fact.prompt.ids)
        for fact in facts
    ]
    others = states_of_others(context, prompts, facts, after=False)
    return [
        (other - key).norm(dim=-1).median(0).values if len(other) else key.new_zeros(len(key))
        for other, key in zip(others, keys, strict=True)
    ]


def _beginnings(ids: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(ids[:end]) for end in range(1, len(ids))]


def train_facts(
    context: EditContext, facts: Sequence[EncodedFact], lesson: Lesson, *, added: bool = False
) -> tuple[list[Float[Tensor, "spots hidden"]], dict[int, str]]:
    """What the block shall hand on at the spots of each fact, and why a fact has no such values.

    Args:
        context: what the edit is made with.
        facts: to be told.
        lesson: how to train.
        added: whether values are added to what the block hands on, or take its place.
    """
    model, layer = context.loaded.model, context.site.layers[-1]
    values = [torch.empty(0)] * len(facts)
    failures = {}
    for group in fact_groups(model, facts):
        batch = told_facts([facts[number] for number in group], context.loaded.device)
        trained = train_entries(model, layer, batch, lesson)
        counts = [len(facts[number].target) for number in group]
        whole = trained.value if added else trained.handed + trained.value
        parts = whole.split(counts)
        for number, part, reached in zip(group, parts, trained.reached.tolist(), strict=True):
            values[number] = part
            if not reached:
                failures[number] = (
                    f"no value at layer {layer} made the model answer "
                    f"{facts[number].fact.target!r} within {lesson.steps} steps."
                )
        context.advance(len(group))
    return values, failures
