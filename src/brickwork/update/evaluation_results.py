"""What an evaluation of edits found, as a JSON document.

Plain data without torch, so that a page can be drawn from it alone. Shares are from 0 to 1, each
with its 95 % interval; ``update/measures.py`` says which.
"""

from collections.abc import Iterator
from typing import Literal

from brickwork.measure.results import Interval, Result

EVALUATION_FILE, FORMAT = "evaluation.json", 1

Group = Literal["efficacy", "paraphrase", "neighbourhood"]
GROUPS: tuple[Group, ...] = ("efficacy", "paraphrase", "neighbourhood")


class Measured(Result):
    """A mean over facts, before and after the edits.

    Attributes:
        facts: how many it is over.
        prompts: how many those have together.
        before: without the edits.
        after: with them.
    """

    facts: int
    prompts: int
    before: Interval
    after: Interval


class Prompted(Result):
    """How the prompts of one kind are answered. What no prompt is there for is None.

    At the neighbours of a fact the right answer is their own, else it is the new one; its rival is
    the other of the two.

    Attributes:
        lenient: share whose right answer is likelier than the rival, for each token.
        magnitude: by how much the probability for each token is higher than the rival's.
        strict: share of which the model would say every token of the right answer.
        tokens: share of the right answer's tokens that are the likeliest, each after the right
            ones before it.
        without_rival: prompts that only the strict forms are taken of.
        left_out: prompts that were not asked, for they are edited themselves.
    """

    lenient: Measured | None
    magnitude: Measured | None
    strict: Measured | None
    tokens: Measured | None
    without_rival: int
    left_out: int


class Kept(Result):
    """What the model knew before and still says.

    Attributes:
        prompts: those that were asked.
        right: of these the ones that were answered rightly before.
        still: of these the ones that still are.
        share: the mean over facts of what each keeps; None where nothing was right.
        left_out: prompts that were not asked, for they are edited themselves.
    """

    prompts: int
    right: int
    still: int
    share: Interval | None
    left_out: int


class Fluency(Result):
    """The entropy of texts in bits: the mean over pairs and triples of words, weighted 2/3 and 4/3.

    Attributes:
        texts: how many were drawn.
        tokens: of each.
        before: without the edits.
        after: with them.
        change: of the same beginnings with the same chance.
    """

    texts: int
    tokens: int
    before: Interval
    after: Interval
    change: Interval


class PerplexityChange(Result):
    """How well the responses of one functionality are predicted.

    Attributes:
        instances: how many were measured.
        before: nats per response token without the edits.
        after: with them.
        rise: of the perplexity, as a share of itself, the same instances compared.
    """

    instances: int
    before: Interval
    after: Interval
    rise: Interval


class FactOutcome(Result):
    """What became of one fact.

    Attributes:
        id: its name.
        subject: what it is about.
        prompt: as it is given.
        target: the new answer.
        target_true: the old one; empty where it is not known.
        said_before: whether the model said the new answer without the edits.
        stuck: whether it does with them.
        probability_before: of the new answer, for each token.
        probability_after: the same with the edits.
        paraphrase: share of the other wordings that get the new answer; None: there are none.
        neighbourhood: share of the neighbours that get their own; None: there are none.
        says: what the model says instead of the new answer.
    """

    id: str
    subject: str
    prompt: str
    target: str
    target_true: str
    said_before: bool
    stuck: bool
    probability_before: float
    probability_after: float
    paraphrase: float | None
    neighbourhood: float | None
    says: str


class Overall(Result):
    """The harmonic mean of efficacy, paraphrase and neighbourhood in one form."""

    before: Interval
    after: Interval


class EditEvaluation(Result):
    """How well edits did, and what else they changed.

    Attributes:
        format: of the document.
        brickwork: its version.
        model: the base.
        raw: whether prompts were given without the chat template.
        seed: of what was drawn at random.
        data: a name for what perplexities are of; empty: none were measured.
        score: S, of the lenient forms; None where a part is missing.
        strict_score: the same of the strict forms.
        efficacy: of the prompts that were edited.
        paraphrase: of the same in other words.
        neighbourhood: of the same relation about other subjects.
        same_subject: of other relations about the subjects.
        others: of other known facts.
        fluency: of texts; None: none were drawn.
        perplexity: for each functionality.
        facts: one by one.
        seconds: that it took.
    """

    format: int = FORMAT
    brickwork: str
    model: str
    raw: bool
    seed: int
    data: str
    score: Overall | None
    strict_score: Overall | None
    efficacy: Prompted
    paraphrase: Prompted
    neighbourhood: Prompted
    same_subject: Kept
    others: Kept
    fluency: Fluency | None
    perplexity: dict[str, PerplexityChange]
    facts: tuple[FactOutcome, ...]
    seconds: float

    def group(self, name: Group) -> Prompted:
        """The prompts of one kind."""
        found: Prompted = getattr(self, name)
        return found

    @property
    def failed(self) -> list[FactOutcome]:
        """The facts that did not stick."""
        return [fact for fact in self.facts if not fact.stuck]


def evaluation_problems(evaluation: EditEvaluation) -> Iterator[str]:
    """What cannot be true of any evaluation, by field."""
    if not evaluation.facts:
        yield "facts: there are none"
    strict = evaluation.efficacy.strict
    if strict is None or strict.facts != len(evaluation.facts):
        yield f"efficacy.strict: is not of the {len(evaluation.facts)} facts"
    for name in ("same_subject", "others"):
        kept = getattr(evaluation, name)
        if not kept.still <= kept.right <= kept.prompts:
            yield f"{name}: {kept.still} of {kept.right} of {kept.prompts} prompts are kept"
