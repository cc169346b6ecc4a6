"""The page on a continued training: what it tells, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from brickwork.brick.durable import write_file
from brickwork.brick.files import json_bytes
from brickwork.errors import DataError
from brickwork.grow.curve import CURVE_FILE, Curve
from brickwork.report.growth import read_curve, running_mean, write_curve_report


def curve(**changes: Any) -> Curve:
    document = {
        "brickwork": "0", "model": "<grown>", "recipe": {"rate": 1e-3, "steps": 4}, "share": 0.25,
        "replayed": 12, "sequences": 80, "trained": 100, "parameters": 400,
        "instances": {"Math": 40, "Coding": 9}, "steps": (0, 2, 4),
        "losses": {"Math": (3.0, 2.0, 1.0), "Coding": (1.0, 1.5, 1.25)},
        "training": (3.0, 2.5, 2.0, 1.0),
    }  # fmt: skip
    return Curve.model_validate(document | changes)


def test_the_page_tells_what_was_won_and_lost(tmp_path: Path) -> None:
    paths = write_curve_report(curve(), tmp_path)
    page = paths[0].read_text("utf-8")
    assert paths[0].name == "training.html"
    assert "&lt;grown&gt;" in page
    assert "<grown>" not in page
    assert "25 % of its 400 numbers were trained on 80 instances" in page.replace("\xa0", " ")
    assert "from 12 older instances" in page
    assert "At 1 of 2 functionalities the loss is higher than before, most at Coding (+0.25" in page
    assert "Fewer than 30 instances were watched of Coding" in page
    names = {path.name for path in paths[1:]}
    assert names == {f"{n}.{form}" for n in ("losses", "changes", "batches")
                     for form in ("svg", "png")}  # fmt: skip


def test_a_training_that_nothing_watched_shows_its_batches(tmp_path: Path) -> None:
    bare = curve(instances={}, losses={}, share=0.0, replayed=0, trained=400)
    paths = write_curve_report(bare, tmp_path)
    page = paths[0].read_text("utf-8")
    assert {path.name for path in paths[1:]} == {"batches.svg", "batches.png"}
    assert "All of its 400 numbers" in page
    assert "nothing older was replayed" in page


def test_many_functionalities_have_room(tmp_path: Path) -> None:
    names = [f"functionality {n}" for n in range(24)]
    many = curve(
        instances=dict.fromkeys(names, 40), losses=dict.fromkeys(names, (9.0, 1.0, 0.5))
    )  # a layout that finds no room warns, and a warning is an error here
    assert len(write_curve_report(many, tmp_path)) == 7


def test_a_running_mean_is_over_a_twentieth_of_the_steps() -> None:
    values = tuple(float(n) for n in range(60))  # over 3
    assert running_mean(values)[:4] == [0.0, 0.5, 1.0, 2.0]
    assert running_mean(values)[-1] == 58.0


def test_a_written_document_is_read_again(tmp_path: Path) -> None:
    write_file(tmp_path / CURVE_FILE, json_bytes(CURVE_FILE, curve().model_dump(mode="json")))
    assert read_curve(tmp_path) == curve()


def test_a_document_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"losses\.Math: 3 numbers at 2 steps"):
        write_curve_report(curve(steps=(0, 4)), tmp_path)
    assert list(tmp_path.iterdir()) == []
