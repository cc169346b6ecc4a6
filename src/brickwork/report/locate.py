"""The page on where a model recalls facts: heat maps by token and layer, places, and neurons."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from brickwork.errors import DataError
from brickwork.report.document import invalid, read_document
from brickwork.report.html import Plate, plate_of, render, style_sheet, write_page
from brickwork.report.maps import heat_map, layer_labels, share_scale
from brickwork.report.numbers import count, interval, percent
from brickwork.report.selection import Listing
from brickwork.report.style import canvas, short, styled
from brickwork.report.tables import Cell, Table
from brickwork.update.trace_results import (
    FORMAT,
    KINDS,
    LOCATE_FILE,
    TRACED_PLACES,
    Kind,
    Location,
    TracedFact,
    location_problems,
)

PAGE, FIGURES = "locate.html", "locate-figures"
WHAT = "a location of facts"
_DRAWN = 4  # facts that get a map of their own
_TITLES: dict[Kind, str] = {
    "residual": "what blocks hand on",
    "mlp": "what FFNs add",
    "attention": "what attention adds",
}


def read_location(folder: Path) -> Location:
    """The document in a folder, checked to be one that a page can be drawn from.

    Raises:
        DataError: if it is missing, damaged, of another format, or contradicts itself.
    """
    return read_document(
        folder / LOCATE_FILE, Location, location_problems, format=FORMAT, what=WHAT
    )


def write_location_report(location: Location, folder: Path) -> list[Path]:
    """Write ``locate.html`` and its figures, and return their paths.

    Args:
        location: the document; nothing else is read.
        folder: made if it is missing.

    Raises:
        DataError: if the document contradicts itself.
    """
    if problems := list(location_problems(location)):
        raise DataError(invalid("the document", WHAT, problems))
    plates = list(_plates(location))
    tables = [
        Listing(
            "places", "Places and layers",
            "The mean effect over the facts that have the place, with its 95 % bootstrap interval "
            "over facts.",
            places_table(location),
        )
    ]  # fmt: skip
    if location.neurons:
        tables.append(
            Listing(
                "neurons", "Knowledge neurons",
                "What each neuron adds to the answer's probability, the mean over wordings.",
                neurons_table(location),
            )
        )  # fmt: skip
    content = render(
        "selection.html.j2",
        title=f"Where {location.model.name or 'the model'} recalls "
        + count(len(location.tracing.facts), "fact"),
        look=style_sheet(),
        opening=list(_opening(location)),
        limits=list(_limits(location)),
        plates=plates,
        tables=tables,
        facts=_facts(location),
    )
    return write_page(folder, PAGE, content=content, plates=plates, figures=FIGURES)


def _plates(location: Location) -> Iterator[Plate]:
    facts = location.tracing.facts
    if len(facts) > 1:
        yield plate_of(
            "places-map", "By place and layer", caption_places(location), draw_places(location)
        )
    for number, fact in enumerate(facts[:_DRAWN], start=1):
        yield plate_of(
            f"fact-{number}", f"{short(fact.prompt, 60)} {short(fact.answer, 30)}",
            caption_fact(fact), draw_fact(location, fact),
        )  # fmt: skip


@styled
def draw_fact(location: Location, fact: TracedFact) -> Figure:
    """A map for each kind: tokens from top to bottom, layers from left to right."""
    rows = [f"{token.text.strip() or '␣'}{_star(fact, n)}" for n, token in enumerate(fact.tokens)]
    maps = {kind: np.array(found).clip(min=0) for kind, found in fact.effects.items()}
    return _drawn(location, maps, rows)


@styled
def draw_places(location: Location) -> Figure:
    """The same for the places, averaged over facts."""
    tracing = location.tracing
    having = {row.place for row in tracing.averages}
    places = [place for place in TRACED_PLACES if place in having]
    maps = {kind: np.zeros((len(places), tracing.layers)) for kind in _kinds(location)}
    for row in tracing.averages:
        maps[row.kind][places.index(row.place), row.layer] = max(0.0, row.effect.value)
    return _drawn(location, maps, [place.replace("_", " ") for place in places])


def _drawn(location: Location, maps: dict[Kind, NDArray[np.float64]], rows: list[str]) -> Figure:
    figure = canvas(1.6 + 0.24 * len(rows))
    scale = share_scale(max(float(values.max()) for values in maps.values()))
    kinds = [kind for kind in KINDS if kind in maps]
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=False)[0]
    for number, (axes, kind) in enumerate(zip(panels, kinds, strict=True)):
        mesh = heat_map(
            axes, maps[kind], rows=rows if number == 0 else [""] * len(rows),
            columns=layer_labels(range(location.tracing.layers)), scale=scale,
        )  # fmt: skip
        axes.set(title=_TITLES[kind], xlabel="layer")
    figure.colorbar(mesh, ax=list(panels), label="rise of the probability", pad=0.01)
    return figure


def caption_fact(fact: TracedFact) -> str:
    """The probabilities, and where the effects are largest."""
    best = ", ".join(
        f"{_TITLES[kind]} {_peak(fact, kind)}" for kind in KINDS if kind in fact.effects
    )
    return (
        f"How far the probability of “{fact.answer}” rises when one state is given back to the "
        f"model while the subject (*) is disturbed: {percent(fact.clean)} undisturbed, "
        f"{percent(fact.corrupted)} disturbed. Largest: {best}."
    )


def caption_places(location: Location) -> str:
    """The means, and where they are largest."""
    best = [location.tracing.best(kind) for kind in _kinds(location)]
    told = ", ".join(
        f"{_TITLES[row.kind]} {row.effect.value:.2f} at {row.place.replace('_', ' ')} in "
        f"{row.address}"
        for row in best
        if row is not None
    )
    return f"The same, averaged over facts by what the tokens are. Largest: {told}."


def places_table(location: Location) -> Table:
    """Every place, kind and layer."""
    rows = [
        (
            Cell(row.place.replace("_", " ")),
            Cell(_TITLES[row.kind]),
            Cell(row.address, row.layer),
            Cell(interval(row.effect, "{:.3f}"), row.effect.value),
            Cell(f"{row.facts:,}", row.facts),
        )
        for row in location.tracing.averages
    ]
    return Table(("place", "restored", "address", "effect", "facts"), rows)


def neurons_table(location: Location) -> Table:
    """Every neuron that was found."""
    rows = [
        (
            Cell(found.id),
            Cell(short(found.answer, 30)),
            Cell(f"layers.{one.layer}.mlp.neurons[{one.neuron}]"),
            Cell(f"{one.score:.4f}", one.score),
        )
        for found in location.neurons
        for one in found.neurons
    ]
    return Table(("fact", "answer", "address", "attribution"), rows)


def _opening(location: Location) -> Iterator[str]:
    tracing = location.tracing
    clean, corrupted = (
        sum(getattr(fact, field) for fact in tracing.facts) / len(tracing.facts)
        for field in ("clean", "corrupted")
    )
    yield (
        f"The model gives the answers to {count(len(tracing.facts), 'prompt')} a probability of "
        f"{percent(clean)}; with noise on the subject {percent(corrupted)} are left. Each number "
        "says how much of it comes back when one part of the model, at one token, says what it "
        "said without noise."
    )
    for kind in _kinds(location):
        best = tracing.best(kind)
        if best is not None:
            yield (
                f"Of {_TITLES[kind]}, most comes back at {best.place.replace('_', ' ')} in "
                f"{best.address}: {best.effect.value:.3f}."
            )
    for found in location.neurons:
        told = "; ".join(found.addresses) or "none"
        yield f"Knowledge neurons of {found.id} for “{found.answer}”: {told}."


def _limits(location: Location) -> Iterator[str]:
    tracing = location.tracing
    yield (
        "That a state brings an answer back does not say that an edit there works best; compare "
        "edits at several layers where it matters."
    )
    if len(tracing.facts) < 10:
        yield f"{count(len(tracing.facts), 'fact')} are few; others may be recalled elsewhere."
    if tracing.skipped:
        yield (
            f"{count(len(tracing.skipped), 'fact')} that the model gets wrong were left out: "
            f"{', '.join(list(tracing.skipped)[:10])}."
        )
    if tracing.window > 1:
        yield (
            f"FFNs and attention are given back in windows of {tracing.window} layers about the "
            "one that is named, so that their maps are smooth."
        )


def _facts(location: Location) -> list[tuple[str, object]]:
    tracing = location.tracing
    return [
        ("Model", f"{location.model.name}, {location.model.weights}"),
        ("Prompts", "as they are" if location.raw else "in the chat template, if there is one"),
        ("Noise", f"{tracing.noise:.4g}, the standard deviation"),
        ("Corrupted copies", tracing.samples),
        ("Window", count(tracing.window, "layer")),
        ("Seed", tracing.seed),
        ("Brickwork", location.brickwork),
    ]


def _kinds(location: Location) -> list[Kind]:
    having = {row.kind for row in location.tracing.averages}
    return [kind for kind in KINDS if kind in having]


def _peak(fact: TracedFact, kind: Kind) -> str:
    values = np.array(fact.effects[kind])
    token, layer = np.unravel_index(values.argmax(), values.shape)
    return f"{values.max():.2f} at “{fact.tokens[token].text.strip()}”, layer {layer}"


def _star(fact: TracedFact, number: int) -> str:
    inside = {"subject_first", "subject_middle", "subject_last"} & set(fact.tokens[number].places)
    return " *" if inside else ""
