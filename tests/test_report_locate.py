"""The page on where facts are recalled: what it says, and documents that it is not drawn from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brickwork.brick.base import Fingerprint
from brickwork.errors import DataError
from brickwork.measure.results import Interval
from brickwork.report.locate import draw_fact, read_location, write_location_report
from brickwork.update.trace_results import (
    KINDS,
    LOCATE_FILE,
    KnowledgeNeurons,
    Location,
    PlaceEffect,
    ScoredNeuron,
    TracedFact,
    TracedPlace,
    TracedToken,
    Tracing,
    address_of,
)

PLACES: tuple[TracedPlace, ...] = ("subject_first", "last")
LAYERS = 3


def location(facts: int = 2) -> Location:
    """Effects that grow with the layer at the last token, and are nothing at the subject's."""
    tokens = [
        TracedToken(position=n, text=text, places=[place])
        for n, text, place in ((2, "<b>Ada</b>", PLACES[0]), (3, " in", PLACES[1]))
    ]
    effects = {kind: [[0.0] * LAYERS, [0.1, 0.2, 0.3]] for kind in KINDS}
    averages = [
        PlaceEffect(
            kind=kind, place=place, layer=layer, address=address_of(kind, layer), facts=facts,
            effect=Interval(value=value, low=value, high=value),
        )
        for kind in KINDS
        for place, row in zip(PLACES, effects[kind], strict=True)
        for layer, value in enumerate(row)
    ]  # fmt: skip
    found = [
        TracedFact(
            id=f"fact {n}", prompt="<b>Ada</b> in", subject="<b>Ada</b>", answer="Oslo", clean=0.9,
            corrupted=0.2, tokens=tokens, effects=effects,
        )
        for n in range(facts)
    ]  # fmt: skip
    tracing = Tracing(
        layers=LAYERS, window=1, noise=0.1, samples=2, seed=0, facts=found,
        skipped={"other": "the model does not answer 'x'"}, averages=averages,
    )  # fmt: skip
    neurons = KnowledgeNeurons(
        id="fact 0", answer="Oslo", prompts=["<b>Ada</b> in"], coarse=[2],
        neurons=[
            ScoredNeuron(layer=1, neuron=9, score=0.25), ScoredNeuron(layer=0, neuron=4, score=0.1)
        ],
    )  # fmt: skip
    model = Fingerprint(name="tiny", architecture="a", shapes="b", weights="c")
    return Location(brickwork="0", model=model, raw=False, tracing=tracing, neurons=[neurons])


def test_the_page_says_where_most_comes_back_and_escapes_names(tmp_path: Path) -> None:
    files = write_location_report(location(), tmp_path)
    page = (tmp_path / "locate.html").read_text()
    assert "at last in layers.2.mlp: 0.300" in page
    assert "layers.0.mlp.neurons[4]; layers.1.mlp.neurons[9]" in page
    assert "1 fact that the model gets wrong were left out: other" in page
    assert "<b>Ada" not in page
    assert {file.suffix for file in files} == {".html", ".svg", ".png"}


def test_equal_documents_give_equal_files(tmp_path: Path) -> None:
    first, second = (write_location_report(location(), tmp_path / name) for name in ("one", "two"))
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in second]


def test_a_map_has_a_row_for_each_token_and_marks_the_subject() -> None:
    found = location(1)
    figure = draw_fact(found, found.tracing.facts[0])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["<b>Ada</b> *", "in"]
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == [
        "what blocks hand on", "what FFNs add", "what attention adds",
    ]  # fmt: skip


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / LOCATE_FILE).write_text(location().model_dump_json())
    assert read_location(tmp_path) == location()


def without_facts(document: Any) -> None:
    document["tracing"]["facts"] = []


def with_a_short_row(document: Any) -> None:
    document["tracing"]["facts"][0]["effects"]["mlp"][0] = [0.0]


def with_a_strange_layer(document: Any) -> None:
    document["tracing"]["averages"][0]["layer"] = 9


def with_another_format(document: Any) -> None:
    document["format"] = 99


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (without_facts, "tracing.facts: none"),
        (with_a_short_row, r"tracing.facts.0.effects.mlp: not a number for each token and layer"),
        (with_a_strange_layer, r"tracing.averages.0.layer: is 9 of 3 layers"),
        (with_another_format, "should be of format 1, but its format is 99"),
    ],
)
def test_documents_that_cannot_be_true_are_refused(
    tmp_path: Path, spoil: Callable[[Any], None], told: str
) -> None:
    document = json.loads(location().model_dump_json())
    spoil(document)
    (tmp_path / LOCATE_FILE).write_text(json.dumps(document))
    with pytest.raises(DataError, match=told):
        read_location(tmp_path)
