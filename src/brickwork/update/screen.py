"""Before an edit: which facts can be taught, which the model says already, and what it believes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from brickwork.errors import EditError
from brickwork.measure.perplexity import TOKENS_PER_BATCH, only_logits_of
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel
from brickwork.model.train import groups_by_length
from brickwork.update.edit import FailedFact
from brickwork.update.facts import Fact
from brickwork.update.words import EncodedFact, encode_fact

_LOGITS_PER_BATCH = 1 << 26


@dataclass(frozen=True)
class Screening:
    """What was found of facts before they are taught.

    Attributes:
        kept: those to teach, in their order.
        skipped: those that the model says already.
        failures: those that cannot be taught, such as one whose subject is not in its prompt.
        notes: what is worth knowing of those to teach, by their ids.
    """

    kept: tuple[EncodedFact, ...]
    skipped: tuple[FailedFact, ...]
    failures: tuple[FailedFact, ...]
    notes: Mapping[str, str]


def screen_facts(loaded: LoadedModel, facts: Sequence[Fact], *, raw: bool = False) -> Screening:
    """Sort facts by what the model says of them as it runs now.

    What it says is its likeliest token at every place of the answer, given those before it. A
    model that does not know the old answer can be edited all the same; a note says so.

    Args:
        loaded: the model, under the edits that act already.
        facts: with ids that differ.
        raw: give prompts to the model as they are, without the chat template.
    """
    encoded: list[EncodedFact] = []
    failures = []
    for fact in facts:
        try:
            encoded.append(encode_fact(loaded, fact, raw=raw))
        except EditError as error:
            failures.append(FailedFact(id=fact.id, reason=str(error)))
    known = [one for one in encoded if one.true]
    told = [(one.prompt.ids, one.target) for one in encoded]
    told += [(one.prompt.ids, one.true) for one in known]
    said = says(loaded.model, told).tolist()
    ids = [one.fact.id for one in known]
    believed = dict(zip(ids, said[len(encoded) :], strict=True))
    kept = [one for one, already in zip(encoded, said, strict=False) if not already]
    skipped = [
        FailedFact(id=one.fact.id, reason=f"the model says {one.fact.target!r} already.")
        for one, already in zip(encoded, said, strict=False)
        if already
    ]
    notes = {
        one.fact.id: f"the model did not say {one.fact.target_true!r} before"
        for one in kept
        if not believed.get(one.fact.id, True)
    }
    return Screening(tuple(kept), tuple(skipped), tuple(failures), notes)


@torch.inference_mode()
def says(
    model: CausalModel, told: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Bool[Tensor, " answers"]:
    """For each prompt and answer whether every token of the answer is the likeliest.

    Args:
        model: as it runs now.
        told: token ids of the prompts and the answers; neither is empty.
    """
    vocabulary = model.config.get_text_config().vocab_size
    budget = min(TOKENS_PER_BATCH, _LOGITS_PER_BATCH // vocabulary)
    sequences = [[*prompt, *answer[:-1]] for prompt, answer in told]
    found = torch.zeros(len(told), dtype=torch.bool)
    for group in groups_by_length(list(map(len, sequences)), budget):
        spots = [
            (row, len(told[i][0]) - 1 + number, token)
            for row, i in enumerate(group)
            for number, token in enumerate(told[i][1])
        ]
        row, position, token = torch.tensor(spots, device=model.device).unbind(1)
        # Padding stands behind everything else, so a causal model needs no mask for it.
        width = max(len(sequences[i]) for i in group)
        ids = [sequences[i] + [0] * (width - len(sequences[i])) for i in group]
        with only_logits_of(model, row, position):
            output = model(input_ids=torch.tensor(ids, device=model.device), use_cache=False)
        wrong = row[output.logits[0].argmax(-1) != token].cpu()
        own = torch.ones(len(group), dtype=torch.bool)
        own[wrong] = False
        found[torch.tensor(group)] = own
    return found
