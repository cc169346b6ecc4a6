"""What the report says in words: facts of this analysis, its limits, and the terms it uses."""

from collections.abc import Iterator
from typing import NamedTuple

from brickwork.measure.results import Analysis
from brickwork.report.numbers import amount, count, percent, spread

PAPER = (
    "Xiao et al. 2024, Configurable Foundation Models: Building LLMs from a Modular Perspective, "
    "arXiv:2409.02877, sections 4.3 to 4.6"
)
_SMALL_MODEL = 10**9  # parameters; the paper's models have 7 and 8 billion
_FEW_INSTANCES, _FEW_TOKENS = 200, 2_000


class Term(NamedTuple):
    """A word and what it means here."""

    word: str
    meaning: str


TERMS = (
    Term("functionality", "a capability that the instances are labelled with, such as coding."),
    Term("instance", "a prompt with its response, labelled with exactly one functionality."),
    Term("neuron", "one inner unit of a layer's feed-forward network: a row of its input "
         "projections and a column of its output projection."),
    Term("activation", "the number a neuron takes for a token; its size is what is used here."),
    Term("output magnitude", "the activation's size times the norm of the neuron's output column: "
         "how much it adds to the model's state."),
    Term("functionality score", "average precision of ranking all instances by one unit's "
         "activity; 1 is perfect, knowing nothing gives about the functionality's share."),
    Term("functional neurons", "the neurons of a layer with the highest scores for a "
         "functionality."),
    Term("resident neuron", "a neuron with one of its layer's largest outputs for everything; "
         "taking it away harms everything."),
    Term("ablation", "taking units away (set to zero, to their mean, to values of other "
         "instances, or skipped) to see what they did."),
    Term("overlap", "the shared part of two functionalities' functional neurons."),
    Term("null", "what the same computation gives when labels are shuffled, so that nothing real "
         "is left to find."),
    Term("95 % interval", "where the number falls in 95 of 100 repetitions with instances drawn "
         "anew from the same ones (bootstrap)."),
    Term("perplexity", "e to the power of the loss: the number of equally likely tokens that the "
         "model hesitates between."),
)  # fmt: skip


def opening(analysis: Analysis) -> Iterator[str]:
    """What was measured, on which model and data, in plain words."""
    model, data, settings = analysis.model, analysis.data, analysis.settings
    localisation = sum(facts.localisation for facts in data.functions)
    evaluation = sum(facts.evaluation for facts in data.functions)
    yield (
        "This report asks whether a language model is made of parts with functions of their own: "
        "how few of its neurons each token needs, whether single neurons tell what an instruction "
        "asks for, what happens when they are taken away, and whether different functionalities "
        f"use different neurons. It follows {PAPER}, and sets a control beside every number."
    )
    yield (
        f"Model: {model.name}, of the {model.family} family, with {amount(model.parameters)} "
        f"parameters in {count(len(model.neurons), 'layer')} of {_size(model.neurons)} "
        f"feed-forward neurons and {_size(model.heads)} attention heads each, run in "
        f"{model.dtype} on {model.device}."
    )
    yield (
        f"Data: {data.name}, with {count(len(data.functions), 'functionality')} "
        f"({', '.join(facts.name for facts in data.functions)}). Units were found on "
        f"{count(localisation, 'instance')} and losses measured on {evaluation:,} others. "
        f"{percent(settings.share)} of the units of a layer count as functional."
    )


def limits(analysis: Analysis) -> Iterator[str]:
    """What these numbers cannot say."""
    model, data = analysis.model, analysis.data
    if model.parameters < _SMALL_MODEL:
        yield (
            f"The model is small ({amount(model.parameters)} parameters; the paper's have 7 and 8 "
            "billion). What holds here need not hold in a large model, nor the reverse."
        )
    least = min((facts.evaluation for facts in data.functions), default=0)
    if least < _FEW_INSTANCES:
        yield (
            f"The data is small: as few as {count(least, 'evaluation instance')} for a "
            "functionality, so intervals are wide and small effects stay unseen."
        )
    few = [facts for facts in data.functions if facts.response_tokens < _FEW_TOKENS]
    if few:
        named = ", ".join(f"{facts.name} ({facts.response_tokens:,})" for facts in few)
        yield (
            f"Some functionalities have few response tokens, on which their losses rest: {named}. "
            "Their perplexities move easily."
        )
    yield (
        "Every instance has exactly one label. A neuron that is high for one functionality is "
        "therefore low for the others by construction, and scores of different functionalities "
        "are anti-correlated even where nothing is specialised; the nulls have the same labels "
        "and share this property."
    )
    yield _source_limit(analysis)
    yield (
        "Units were found on other instances than losses were measured on, but both come from the "
        "same data, so nothing is said about texts of another kind."
    )
    yield (
        "Intervals resample instances only: not the choice of units, not the model's training, "
        "and not the sources."
    )
    tests = len(model.neurons) * len(data.functions)
    yield (
        f"Many comparisons are made: {tests} pairs of layer and functionality in each figure. "
        f"p-values are not corrected for them; at 0.05, {0.05 * tests:.1f} would be significant "
        "by luck."
    )
    yield (
        "A unit that tells a functionality need not cause it, and one that is taken away changes "
        "the input of all later ones; zero is also a value that later layers may never have seen."
    )
    if data.cut or data.left_out:
        yield (
            f"{count(data.cut, 'instance')} were cut at {data.longest:,} tokens and "
            f"{data.left_out:,} left out, having no prompt or no response."
        )


def _source_limit(analysis: Analysis) -> str:
    if analysis.functionality.sources:
        return (
            "Labels go together with the source and the template of an instance. The source "
            "control looks inside single sources, but not at templates within them."
        )
    return (
        "Labels go together with the source and the template of an instance. This data names no "
        "source with two functionalities, so a neuron that knows the style of a source cannot be "
        "told from one that knows the functionality."
    )


def _size(units: list[int]) -> str:
    return spread(units, "{:,}") if units else "no"
