"""What an edit shall teach: facts, and the prompts that say whether it did so and no more."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Probe:
    """A prompt whose answer an edit must leave alone.

    Attributes:
        prompt: the whole text.
        answer: what is true; empty: what the model says before the edit.
    """

    prompt: str
    answer: str = ""


@dataclass(frozen=True)
class Fact:
    """One thing that the model shall say from now on.

    Attributes:
        id: the fact's name in reports and in the ledger.
        subject: what the fact is about, as it stands in the prompt.
        prompt: the whole text, which ends where the answer starts.
        target: the new answer.
        target_true: what has been the answer; empty where it is not known.
        paraphrases: other prompts with the same answer.
        neighbours: prompts of the same relation about other subjects.
        same_subject: prompts of other relations about the subject.
        generation: beginnings of texts about the subject, for the measure of fluency.
        relation: a name for the relation; empty: the prompt without the subject stands for it.
    """

    id: str
    subject: str
    prompt: str
    target: str
    target_true: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Probe, ...] = ()
    same_subject: tuple[Probe, ...] = ()
    generation: tuple[str, ...] = ()
    relation: str = ""
