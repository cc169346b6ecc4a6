"""The page on a stream: what it says, what it never shows raw, and what it cannot be drawn from."""

from pathlib import Path
from typing import Any

import pytest

from brickwork.errors import DataError
from brickwork.grow.stream import write_study
from brickwork.grow.stream_results import StreamStudy
from brickwork.report.stream import base_table, read_stream, strategies_table, write_stream_report


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def result(strategy: str, label: str, last: list[float], rise: float) -> dict[str, Any]:
    change = {"instances": 40, "before": interval(2.0), "change": interval(rise)}
    served = {
        "a<b>": {"prompts": 4, "own": 3, "other": 0, "none": 1},
        "Math": {"prompts": 40, "own": 0, "other": 2, "none": 38},
    }
    cost = {"parameters": 1000, "flops": 500, "seconds": 60.0}
    return {
        "strategy": strategy, "label": label, "options": {},
        "losses": [[4.0, 5.0], [1.0, 5.0], last], "accuracies": [[0.0, 0.0], [0.5, 0.0], [0.5, 1]],
        "base_losses": [[2.0], [2.0], [2.0 + rise]], "base": {"Math": change}, "overall": change,
        "served": served if strategy == "bricks" else {}, "untouched": 38, "moved": 0,
        "costs": [cost, cost], "measured_seconds": 3.0,
    }  # fmt: skip


def study(**changes: Any) -> StreamStudy:
    task = {"functionality": "Math", "text": "t", "train": 9, "test": 4, "test_tokens": 8}
    document = {
        "brickwork": "0", "model": "tiny", "parameters": 10_000, "flops": 20_000, "data": "d",
        "seed": 0, "tasks": [{"name": "a<b>", **task}, {"name": "c", **task}],
        "functionalities": ["Math"],
        "results": [
            result("oracle", "oracle", [1.0, 1.0], 0.0),
            result("bricks", "<routed>", [1.0, 2.0], 0.0),
            result("full", "full", [3.5, 1.0], 0.75),
        ],
    }  # fmt: skip
    return StreamStudy.model_validate(document | changes)


def test_the_page_says_what_was_learned_forgotten_and_routed(tmp_path: Path) -> None:
    paths = write_stream_report(study(), tmp_path)
    page = paths[0].read_text("utf-8").replace("\u00a0", " ")
    assert {path.stem for path in paths} == {"stream", "balance", "curves", "matrices"}
    assert "&lt;routed&gt;: the loss on the tasks fell by 3.00 nats, 85.7 % of the oracle" in page
    assert "<routed>" not in page
    assert "a<b>" not in page
    assert "functionalities are forgotten, by full most" in page
    assert "To the last bit unchanged on the right: oracle, &lt;routed&gt;." in page
    assert "2 of 40 prompts of the base" in page
    assert "of the 38 others 0 have another loss" in page


def test_the_tables_say_what_the_document_says() -> None:
    oracle, routed, full = strategies_table(study()).rows
    assert [cell.text.replace("\u00a0", " ") for cell in full] == [
        "full", "2.250", "75 %", "64.3 %", "+2.500", "+0.000", "+0.7500 [+0.6500, +0.8500]",
        "1 thousand (10 %)", "2.5 %", "120",
    ]  # fmt: skip
    assert (oracle[3].order, routed[3].order) == (1.0, 6 / 7)
    assert [cell.text for cell in base_table(study()).rows[0]][-1] == "+0.750 [+0.650, +0.850]"


def test_a_stream_without_functionalities_or_oracle_is_drawn(tmp_path: Path) -> None:
    bare = result("full", "full", [3.5, 1.0], 0.0) | {
        "base_losses": [[], [], []], "base": {}, "overall": None,
    }  # fmt: skip
    paths = write_stream_report(study(results=[bare], functionalities=[]), tmp_path)
    assert {path.stem for path in paths} == {"stream", "curves", "matrices"}


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_study(study(), tmp_path)
    assert read_stream(tmp_path) == study()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"results": []}, "results: there are none"),
        ({"results": [result("full", "x", [1, 1], 0)] * 2}, "'x' is there 2 times"),
        ({"results": [result("full", "x", [1], 0)]}, "results.0.losses: is not of 3 rows and 2"),
        ({"functionalities": ["Ethics"]}, "results.0.base: is not of Ethics"),
        (
            {"results": [result("bricks", "x", [1, 1], 0) | {"served": {
                "Math": {"prompts": 9, "own": 1, "other": 1, "none": 1}}}]},
            "results.0.served.Math: does not add up to 9",
        ),
        (
            {"results": [result("full", "x", [1, 1], 0) | {"served": {
                "Art": {"prompts": 0, "own": 0, "other": 0, "none": 0}}}]},
            "served: holds Art, which was not measured",
        ),
        ({"results": [result("full", "x", [1, 1], 0) | {"costs": []}]}, "costs: are not of the 2"),
    ],
)  # fmt: skip
def test_a_document_that_contradicts_itself_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        write_stream_report(study(**changes), tmp_path)
    assert not list(tmp_path.iterdir())
