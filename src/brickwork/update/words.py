"""Facts as tokens: where the subject stands in the prompt, and how the answers are spelled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from brickwork.errors import EditError
from brickwork.model.load import LoadedModel
from brickwork.model.words import located, prompt_texts, token_ids
from brickwork.update.facts import Fact

# Where in a prompt an edit reads its key. Not every model recalls a fact at the subject's end, so
# the place is found by causal tracing, and none is the right one in itself.
Place = Literal["subject_first", "subject_last", "after_subject", "last"]
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True)
class Prompted:
    """A prompt as token ids, and which of them are the subject: ``start`` to before ``stop``."""

    ids: tuple[int, ...]
    start: int
    stop: int

    def position(self, place: Place) -> int:
        """The number of the token at a place of the prompt."""
        last = len(self.ids) - 1
        found = {
            "subject_first": self.start,
            "subject_last": self.stop - 1,
            "after_subject": min(self.stop, last),
            "last": last,
        }
        return found[place]


@dataclass(frozen=True)
class EncodedFact:
    """A fact as tokens.

    Attributes:
        fact: the fact.
        prompt: its prompt.
        target: the new answer's tokens, at least one.
        true: the old answer's; empty where it is not known.
    """

    fact: Fact
    prompt: Prompted
    target: tuple[int, ...]
    true: tuple[int, ...]


def encode_fact(loaded: LoadedModel, fact: Fact, *, raw: bool = False) -> EncodedFact:
    """A fact as tokens of the model.

    Args:
        loaded: the model and its tokenizer.
        fact: the fact.
        raw: give the prompt to the model as it is, without the chat template.

    Raises:
        EditError: if the subject is not in the prompt, the new answer is empty or has tokens that
            the model does not know, or prompt and answer are longer than the model can read.
    """
    prompt = encode_prompts(loaded, [fact.prompt], fact.subject, raw=raw)[0]
    target, true = (
        answer_ids(loaded, fact.prompt, answer, raw=raw)
        for answer in (fact.target, fact.target_true)
    )
    unknown = getattr(loaded.tokenizer, "unk_token_id", None)
    if not target or unknown in target:
        raise EditError(
            f"the fact {fact.id!r} shall get the answer {fact.target!r}, which has "
            f"{'tokens that the model does not know' if target else 'no tokens'}; name what the "
            "model shall say."
        )
    most = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    length = len(prompt.ids) + max(len(target), len(true))
    if most and length > most:
        raise EditError(
            f"the prompt of the fact {fact.id!r} has {length} tokens with its answer, and "
            f"{loaded.name} reads at most {most}; shorten it."
        )
    return EncodedFact(fact, prompt, target, true)


def encode_prompts(
    loaded: LoadedModel, prompts: Sequence[str], subject: str, *, raw: bool = False
) -> list[Prompted]:
    """Prompts about one subject as tokens; where it stands several times, the last one counts.

    Raises:
        EditError: if the subject is not in one of them, or the chat template changes a prompt.
    """
    found = []
    for prompt, text in zip(prompts, prompt_texts(loaded, prompts, raw=raw), strict=True):
        # Many chat templates cut off the spaces around a prompt.
        kept = prompt if prompt in text else prompt.strip()
        at = kept.rfind(subject) if subject.strip() else -1
        if at < 0:
            raise EditError(
                f"the subject {subject!r} was looked for in the prompt {prompt!r}, where it does "
                "not stand; spell it as the prompt does."
            )
        if kept not in text:
            raise EditError(
                f"the prompt {prompt!r} was put into the chat template, which made {text!r} of it; "
                "write it as it stands there, or leave the template out (--raw)."
            )
        first = text.rfind(kept) + at
        ids, spans = located(loaded, text, special=raw or text == prompt)
        inside = [
            number
            for number, (start, stop) in enumerate(spans)
            if start < first + len(subject) and stop > first
        ]
        found.append(Prompted(tuple(ids), inside[0], inside[-1] + 1))
    return found


def answer_ids(
    loaded: LoadedModel, prompt: str, answer: str, *, raw: bool = False
) -> tuple[int, ...]:
    """The tokens of an answer as they follow the prompt: after a space, if nothing parts them."""
    if not answer.strip():
        return ()
    text = prompt_texts(loaded, [prompt], raw=raw)[0]
    chat = text != prompt
    parted = chat or text[-1:].isspace() or answer[:1].isspace()
    whole = text + ("" if parted else " ") + answer
    before, both = token_ids(loaded, [text, whole])
    if both[: len(before)] == before and len(both) > len(before):
        return tuple(both[len(before) :])
    return tuple(token_ids(loaded, [whole[len(text) :]])[0])
