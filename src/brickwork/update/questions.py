"""What an evaluation asks of a model: the prompts of facts, each with its right answer."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from brickwork.errors import EditError
from brickwork.model.load import LoadedModel
from brickwork.model.words import encode
from brickwork.update.facts import Fact, Probe
from brickwork.update.words import answer_ids
from brickwork.update.writing import own_answers

Kind = Literal["efficacy", "paraphrase", "neighbourhood", "same_subject", "others"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Question:
    """A prompt, and what is looked for after it.

    Attributes:
        kind: what the prompt is to its fact.
        fact: the number of the fact; of the other fact for ``others``.
        prompt: as it is given.
        right: the answer that is wanted; empty: what the model says before the edit.
        rival: the answer that it is compared with; empty where none is known.
    """

    kind: Kind
    fact: int
    prompt: str
    right: str
    rival: str = ""


@dataclass(frozen=True)
class Questions:
    """What is asked, and of each kind how much is not, for it is edited itself."""

    asked: tuple[Question, ...]
    left_out: Counter[Kind]


def questions_of(facts: Sequence[Fact], others: Sequence[Fact] = ()) -> Questions:
    """Every prompt of the facts, and the prompts of other facts.

    A neighbour, another relation of the subject or another fact that is edited itself says
    nothing of what an edit spares, and is left out. It is one if its prompt is an edited fact's or
    a paraphrase of it, or if it has the relation of an edited fact and names its subject.

    Args:
        facts: those that are edited.
        others: facts whose old answers are to stay.
    """
    edited = _Edited(facts)
    asked: list[Question] = []
    left_out: Counter[Kind] = Counter()

    def spare(kind: Kind, fact: int, probe: Probe, relation: str, rival: str = "") -> None:
        if edited.holds(probe.prompt, relation):
            left_out[kind] += 1
        else:
            asked.append(Question(kind, fact, probe.prompt, probe.answer, rival))

    for number, fact in enumerate(facts):
        new = fact.target, fact.target_true
        asked.append(Question("efficacy", number, fact.prompt, *new))
        asked += [Question("paraphrase", number, prompt, *new) for prompt in fact.paraphrases]
        for probe in fact.neighbours:
            spare("neighbourhood", number, probe, _relation(fact), fact.target)
        for probe in fact.same_subject:
            spare("same_subject", number, probe, "")
    for number, other in enumerate(others):
        spare("others", number, Probe(other.prompt, other.target_true), _relation(other))
    return Questions(tuple(asked), left_out)


class _Edited:
    """Whether a prompt asks for what is edited."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self._prompts = {_normal(p) for fact in facts for p in (fact.prompt, *fact.paraphrases)}
        subjects: dict[str, list[str]] = {}
        for fact in facts:
            subjects.setdefault(_relation(fact), []).append(re.escape(_normal(fact.subject)))
        self._subjects = {
            relation: re.compile(rf"(?<!\w)(?:{'|'.join(own)})(?!\w)")
            for relation, own in subjects.items()
        }

    def holds(self, prompt: str, relation: str) -> bool:
        asked, subjects = _normal(prompt), self._subjects.get(relation)
        return asked in self._prompts or bool(subjects and subjects.search(asked))


def _relation(fact: Fact) -> str:
    """A name for what is asked of the subject."""
    if fact.relation:
        return f"relation {_normal(fact.relation)}"
    before, _, after = fact.prompt.rpartition(fact.subject or fact.prompt)
    return f"prompt {_normal(before)} {_normal(after)}"


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as token ids; ``rival`` is empty where there is none, or it is the right answer.

    The prompt and the right answer are never empty.
    """

    question: Question
    prompt: tuple[int, ...]
    right: tuple[int, ...]
    rival: tuple[int, ...]


def encode_questions(
    loaded: LoadedModel, questions: Sequence[Question], *, raw: bool = False
) -> list[EncodedQuestion]:
    """Questions as token ids; the model, as it runs now, says the right answers that are not known.

    Raises:
        EditError: if a fact shall get an answer without tokens.
    """
    prompts = dict.fromkeys(question.prompt for question in questions)
    ids = dict(zip(prompts, map(tuple, encode(loaded, list(prompts), raw=raw)), strict=True))
    pairs = dict.fromkeys((q.prompt, answer) for q in questions for answer in (q.right, q.rival))
    answers = {pair: answer_ids(loaded, *pair, raw=raw) for pair in pairs}
    unknown = list(
        dict.fromkeys(ids[q.prompt] for q in questions if not answers[q.prompt, q.right])
    )
    said = dict(zip(unknown, own_answers(loaded, unknown), strict=True))
    found = []
    for q in questions:
        right = answers[q.prompt, q.right]
        if not right and q.kind in ("efficacy", "paraphrase"):
            raise EditError(
                f"the prompt {q.prompt!r} was to be answered {q.right!r}, which has no tokens; "
                "name what the model shall say."
            )
        right = right or said[ids[q.prompt]]
        rival = answers[q.prompt, q.rival]
        found.append(EncodedQuestion(q, ids[q.prompt], right, rival if rival != right else ()))
    return found
