"""The page on edits: what it says, what it never shows raw, and what it cannot be drawn from."""

from pathlib import Path
from typing import Any

import pytest

from brickwork.brick.durable import write_file
from brickwork.brick.files import json_bytes
from brickwork.errors import DataError
from brickwork.report.edits import read_edit_evaluation, write_edit_report
from brickwork.update.evaluation_results import EVALUATION_FILE, EditEvaluation


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def measured(before: float, after: float) -> dict[str, Any]:
    return {"facts": 2, "prompts": 4, "before": interval(before), "after": interval(after)}


def prompted(**changes: Any) -> dict[str, Any]:
    forms = dict.fromkeys(("lenient", "magnitude", "strict", "tokens"), measured(0.25, 0.75))
    return {**forms, "without_rival": 0, "left_out": 0, **changes}


def fact(id: str, *, stuck: bool) -> dict[str, Any]:
    return {
        "id": id, "subject": "s", "prompt": "Complete:\nThe <prompt> of s is", "target": "new",
        "target_true": "old", "said_before": False, "stuck": stuck, "probability_before": 0.1,
        "probability_after": 0.6, "paraphrase": 0.5, "neighbourhood": None,
        "says": "" if stuck else "another",
    }  # fmt: skip


def evaluation(**changes: Any) -> EditEvaluation:
    kept = {"prompts": 9, "right": 5, "still": 4, "share": interval(0.8), "left_out": 0}
    loss = {"instances": 40, "before": interval(2.0), "after": interval(2.1)}
    document = {
        "brickwork": "0", "model": "base", "raw": False, "seed": 0, "data": "d",
        "score": {"before": interval(0.3), "after": interval(0.7)}, "strict_score": None,
        "efficacy": prompted(without_rival=3), "paraphrase": prompted(),
        "neighbourhood": prompted(left_out=2), "same_subject": kept, "others": kept,
        "fluency": {"texts": 4, "tokens": 9, "before": interval(5), "after": interval(4),
                    "change": interval(-1)},
        "perplexity": {"math": {**loss, "rise": {"value": 0.1, "low": 0.05, "high": 0.2}},
                       "ethics": {**loss, "rise": {"value": 0.1, "low": -0.05, "high": 0.2}}},
        "facts": [fact("one", stuck=True), fact("<two>", stuck=False)], "seconds": 1.0,
    }  # fmt: skip
    return EditEvaluation.model_validate(document | changes)


def test_the_page_names_what_failed_what_got_worse_and_what_is_left_out(tmp_path: Path) -> None:
    paths = write_edit_report(evaluation(), tmp_path)
    page = paths[0].read_text("utf-8")
    assert {path.name for path in paths} == {
        "evaluation.html", "shares.svg", "shares.png", "perplexity.svg", "perplexity.png",
    }  # fmt: skip
    assert "Of 2 facts the model says 1 with the edits; without them it said 0." in page
    assert "Did not stick: &lt;two&gt;." in page
    assert "<two>" not in page
    assert "<prompt>" not in page
    assert "1 functionality of 2 certainly got worse: math." in page
    assert "efficacy: 3 prompts without a known old answer" in page
    assert "neighbourhood: 2 prompts left out" in page


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    none = prompted(lenient=None, magnitude=None, strict=None, tokens=None)
    bare = evaluation(score=None, paraphrase=none, neighbourhood=none, fluency=None, perplexity={})
    paths = write_edit_report(bare, tmp_path)
    assert not [path for path in paths if path.stem == "perplexity"]
    assert "There are no prompts for paraphrase" in paths[0].read_text("utf-8")


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    known = evaluation()
    write_file(
        tmp_path / EVALUATION_FILE, json_bytes(EVALUATION_FILE, known.model_dump(mode="json"))
    )
    assert read_edit_evaluation(tmp_path) == known


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts": []}, "facts: there are none"),
        ({"facts": [fact("one", stuck=True)]}, "efficacy.strict: is not of the 1 facts"),
        (
            {"others": {"prompts": 9, "right": 3, "still": 4, "share": None, "left_out": 0}},
            "others: 4 of 3 of 9 prompts are kept",
        ),
    ],
)
def test_a_document_that_contradicts_itself_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        write_edit_report(evaluation(**changes), tmp_path)
    assert not list(tmp_path.iterdir())
