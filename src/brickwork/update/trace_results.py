"""What causal tracing and the search for knowledge neurons found, as a JSON document.

Plain data without torch, so that a page can be drawn from it alone.
"""

from collections.abc import Iterator
from typing import Literal, get_args

from brickwork.brick.address import Address
from brickwork.brick.base import Fingerprint
from brickwork.measure.results import Interval, Result

LOCATE_FILE, FORMAT = "locate.json", 1

# What is restored: what a block hands on, what its FFN adds, or what its attention adds.
Kind = Literal["residual", "mlp", "attention"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# The places where an edit can be made, and the tokens between them.
TracedPlace = Literal[
    "subject_first", "subject_middle", "subject_last", "after_subject", "between", "last"
]
TRACED_PLACES: tuple[TracedPlace, ...] = get_args(TracedPlace)
_PARTS: dict[Kind, str] = {"residual": "", "mlp": ".mlp", "attention": ".attn"}


def address_of(kind: Kind, layer: int) -> str:
    """The part of a layer that a kind restores.

    >>> address_of("mlp", 3), address_of("residual", 3)
    ('layers.3.mlp', 'layers.3')
    """
    return f"layers.{layer}{_PARTS[kind]}"


class TracedToken(Result):
    """A token of the prompt whose states were restored.

    Attributes:
        position: its number in the prompt.
        text: what it stands for.
        places: what it is; a subject of one token is its first and its last.
    """

    position: int
    text: str
    places: list[TracedPlace]


class TracedFact(Result):
    """Where one prompt recalls its answer.

    Attributes:
        id: the fact's name.
        prompt: as it was given.
        subject: what was corrupted in it.
        answer: whose probability was measured.
        clean: that probability as the model is.
        corrupted: the same with noise on the subject, the mean over samples.
        tokens: those that were restored, in order; the first is the subject's first.
        effects: for each kind, token and layer how far restoring raises the corrupted probability.
    """

    id: str
    prompt: str
    subject: str
    answer: str
    clean: float
    corrupted: float
    tokens: list[TracedToken]
    effects: dict[Kind, list[list[float]]]

    def at(self, kind: Kind, place: TracedPlace, layer: int) -> float | None:
        """The mean effect over the tokens of a place; None if the prompt has none."""
        found = [
            row[layer]
            for token, row in zip(self.tokens, self.effects[kind], strict=True)
            if place in token.places
        ]
        return sum(found) / len(found) if found else None


class PlaceEffect(Result):
    """The effect of a kind at a place and layer, averaged over the facts that have the place.

    Attributes:
        address: the part of the model; what a place is depends on the prompt.
        effect: mean over facts; of one fact the bounds are the mean.
    """

    kind: Kind
    place: TracedPlace
    layer: int
    address: str
    facts: int
    effect: Interval


class Tracing(Result):
    """What tracing some facts found.

    Attributes:
        layers: blocks of the model.
        window: layers that are restored at once for ``mlp`` and ``attention``.
        noise: standard deviation of what was added to the subjects' embeddings.
        samples: corrupted copies of each prompt.
        skipped: why facts were not traced, by their name.
        averages: over the facts, by kind, place and layer.
    """

    layers: int
    window: int
    noise: float
    samples: int
    seed: int
    facts: list[TracedFact]
    skipped: dict[str, str]
    averages: list[PlaceEffect]

    def best(self, kind: Kind, place: TracedPlace | None = None) -> PlaceEffect | None:
        """The largest average, of one place or of all; None if nothing of the kind was traced."""
        found = [
            row
            for row in self.averages
            if row.kind == kind and (place is None or row.place == place)
        ]
        return max(found, key=lambda row: row.effect.value, default=None)


class ScoredNeuron(Result):
    """A neuron, and what it adds to the answer's probability, the mean over prompts."""

    layer: int
    neuron: int
    score: float


class NeuronCheck(Result):
    """Mean probabilities of answers with the found neurons, or as many random ones, changed.

    Attributes:
        prompts: how many the means are over.
        before: as the model is.
        silent: the found neurons say 0.
        louder: they say twice as much.
        random_silent: random neurons of the same layers say 0.
        random_louder: those say twice as much.
    """

    prompts: int
    before: float
    silent: float
    louder: float
    random_silent: float
    random_louder: float


class KnowledgeNeurons(Result):
    """The neurons that a fact's answer is attributed to.

    Attributes:
        id: the fact's name.
        answer: whose probability was attributed.
        prompts: wordings that were looked at; the model gives the answer to each.
        coarse: for each of them how many neurons were found in it alone.
        neurons: found in enough of them, the largest score first.
        check: the fact's own wordings with the neurons changed; None if it was not measured.
    """

    id: str
    answer: str
    prompts: list[str]
    coarse: list[int]
    neurons: list[ScoredNeuron]
    check: NeuronCheck | None = None

    @property
    def chosen(self) -> dict[int, tuple[int, ...]]:
        """The neurons' numbers by layer, ascending."""
        layers = sorted({one.layer for one in self.neurons})
        return {
            n: tuple(sorted(one.neuron for one in self.neurons if one.layer == n)) for n in layers
        }

    @property
    def addresses(self) -> list[str]:
        """The same as addresses, one for each layer."""
        return [str(Address(n, "mlp.neurons", units)) for n, units in self.chosen.items()]


class Location(Result):
    """Where a model recalls facts: what a page is drawn from.

    Attributes:
        model: what was looked at.
        raw: whether prompts were given without the chat template.
        neurons: of each fact whose neurons were looked for.
    """

    format: int = FORMAT
    brickwork: str
    model: Fingerprint
    raw: bool
    tracing: Tracing
    neurons: list[KnowledgeNeurons]


def location_problems(location: Location) -> Iterator[str]:
    """What cannot be true of any location, by field."""
    tracing = location.tracing
    if not tracing.facts:
        yield "tracing.facts: none, so there is nothing to show"
    kinds = {row.kind for row in tracing.averages}
    if not kinds:
        yield "tracing.averages: none, so there is nothing to show"
    for number, fact in enumerate(tracing.facts):
        name = f"tracing.facts.{number}"
        if set(fact.effects) != kinds:
            yield f"{name}.effects: are of {sorted(fact.effects)}, not of {sorted(kinds)}"
        for kind, rows in fact.effects.items():
            if len(rows) != len(fact.tokens) or any(len(row) != tracing.layers for row in rows):
                yield f"{name}.effects.{kind}: not a number for each token and layer"
    for number, row in enumerate(tracing.averages):
        if not 0 <= row.layer < tracing.layers:
            yield f"tracing.averages.{number}.layer: is {row.layer} of {tracing.layers} layers"
