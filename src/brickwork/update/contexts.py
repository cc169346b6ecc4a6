"""Contexts: short texts to put before a prompt, so that an edit holds after any text.

Source: Meng et al. 2022, arXiv:2202.05262, 3.1, and its supplement E.5. Departure: the texts
start with what the model has learned that a text starts with, and with a first word of the facts
where it has learned none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.measure.perplexity import only_logits_of
from brickwork.model.load import LoadedModel
from brickwork.model.words import decoded, encode, prompt_texts, stop_tokens, token_ids
from brickwork.update.words import EncodedFact, Place, Prompted, encode_prompts

_TOP_K = 50
_LENGTHS = (5, 10)


@dataclass(frozen=True)
class Placed:
    """A prompt and the number of one of its tokens."""

    ids: tuple[int, ...]
    position: int


def sample_contexts(
    loaded: LoadedModel, count: int, *, starts: Sequence[Sequence[int]], raw: bool, seed: int
) -> list[str]:
    """Texts of five and ten tokens that the model goes on with by itself.

    Args:
        loaded: the model; it is left as it is.
        count: how many at most; a text without a letter is left out, and so is a second of its
            kind.
        starts: where the model knows no start of a text: token ids to start with, in turn.
        raw: whether prompts are given to the model without the chat template.
        seed: decides the texts.
    """
    if not count:
        return []
    head = _start(loaded, raw=raw)
    rows = torch.tensor([head or [starts[n % len(starts)][0]] for n in range(count)])
    first, generator = len(head), torch.Generator().manual_seed(seed)
    ids = rows.to(loaded.device)
    silent = sorted(stop_tokens(loaded) | set(getattr(loaded.tokenizer, "all_special_ids", ())))
    for _ in range(_LENGTHS[-1]):
        logits = _next_logits(loaded, ids)
        logits[:, silent] = -torch.inf
        best = logits.topk(min(_TOP_K, logits.shape[1] - len(silent)))
        chosen = torch.multinomial(best.values.softmax(-1).cpu(), 1, generator=generator)
        ids = torch.cat([ids, best.indices.gather(1, chosen.to(ids.device))], dim=1)
    lengths = [_LENGTHS[n % len(_LENGTHS)] for n in range(count)]
    texts = [
        decoded(loaded, row[first : first + length]).strip()
        for row, length in zip(ids.tolist(), lengths, strict=True)
    ]
    return list(dict.fromkeys(text for text in texts if any(c.isalnum() for c in text)))


def prompts_in_contexts(
    loaded: LoadedModel, fact: EncodedFact, contexts: Sequence[str], place: Place, *, raw: bool
) -> list[Placed]:
    """The fact's prompt by itself, then after each of the contexts."""
    prompt = fact.fact.prompt
    texts = [f"{_ended(loaded, context)} {prompt}" for context in contexts]
    found = encode_prompts(loaded, texts, fact.fact.subject, raw=raw)
    return [placed(one, place) for one in (fact.prompt, *found)]


def essence(loaded: LoadedModel, fact: EncodedFact, place: Place, *, raw: bool) -> Placed:
    """A prompt about what the subject is, where the model shall go on as before."""
    prompts = encode_prompts(loaded, [f"{fact.fact.subject} is a"], fact.fact.subject, raw=raw)
    return placed(prompts[0], place)


def placed(prompt: Prompted, place: Place) -> Placed:
    """A prompt and the number of the token at a place."""
    return Placed(prompt.ids, prompt.position(place))


def _start(loaded: LoadedModel, *, raw: bool) -> list[int]:
    """The tokens that stand before what a user writes; none if the model knows no such."""
    tokenizer = loaded.tokenizer
    mark = "Once"
    text = prompt_texts(loaded, [mark], raw=raw)[0]
    if text != mark:
        return token_ids(loaded, [text.partition(mark)[0]])[0]
    special = encode(loaded, [""], raw=raw)[0]
    end = getattr(tokenizer, "eos_token_id", None)
    return special[:1] or ([] if end is None else [end])


@torch.no_grad()
def _next_logits(loaded: LoadedModel, ids: Tensor) -> Float[Tensor, "rows vocabulary"]:
    row = torch.arange(len(ids), device=ids.device)
    with only_logits_of(loaded.model, row, torch.full_like(row, ids.shape[1] - 1)):
        logits: Tensor = loaded.model(input_ids=ids, use_cache=False).logits[0]
    return logits.float()


def _ended(loaded: LoadedModel, context: str) -> str:
    """The context as a sentence, if the model has a word for its end."""
    unknown = getattr(loaded.tokenizer, "unk_token_id", None)
    ended = context[-1] in ".!?" or unknown in token_ids(loaded, ["."])[0]
    return context if ended else context + "."
