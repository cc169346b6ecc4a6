"""What a merge keeps of its parents: the shares, the page, and what is refused."""

from pathlib import Path

import pytest

from brickwork.brick.durable import write_file
from brickwork.brick.files import json_bytes
from brickwork.errors import DataError
from brickwork.measure.tradeoff import (
    TRADEOFF_FILE,
    Member,
    Tradeoff,
    best_parents,
    kept_gains,
    rises,
)
from brickwork.report.tradeoff import read_tradeoff, write_tradeoff_report


def tradeoff(**changes: object) -> Tradeoff:
    members = (
        Member(name="base", role="base", losses={"a": 4.0, "b": 3.0, "c": 2.0}),
        Member(name="left", role="parent", losses={"a": 2.0, "b": 3.5, "c": 1.99}),
        Member(name="<right>", role="parent", losses={"a": 4.5, "b": 2.0, "c": 2.5}),
        Member(name="child", role="child", losses={"a": 3.0, "b": 3.25, "c": 2.1}),
    )
    document = {
        "brickwork": "0", "method": "linear", "data": "d", "by": "functionality",
        "instances": {"a": 40, "b": 40, "c": 9}, "seed": 0, "members": members,
    }  # fmt: skip
    return Tradeoff.model_validate(document | changes)


def test_a_gain_is_measured_from_the_base_to_the_best_parent() -> None:
    found = tradeoff()
    child = found.of("child")[0]
    assert {name: parent.name for name, parent in best_parents(found).items()} == {
        "a": "left", "b": "<right>", "c": "left",
    }  # fmt: skip
    # At c no parent gains 0.02 nats, so a share of it would be noise.
    assert kept_gains(found, child) == pytest.approx({"a": 0.5, "b": -0.25})
    assert rises(found, child) == pytest.approx({"a": 1.0, "b": 1.25, "c": 0.11})


def test_without_a_base_there_is_no_gain_to_keep() -> None:
    found = tradeoff()
    bare = tradeoff(members=[m.model_dump() for m in found.members if m.role != "base"])
    assert kept_gains(bare, bare.of("child")[0]) == {}


def test_the_page_names_everyone_and_escapes_them(tmp_path: Path) -> None:
    paths = write_tradeoff_report(tradeoff(), tmp_path)
    page = paths[0].read_text("utf-8")
    assert paths[0].name == "tradeoff.html"
    assert "&lt;right&gt;" in page
    assert "<right>" not in page
    assert "child keeps 12" in page  # (50 - 25) / 2 percent
    assert "at b it is worse than the base" in page
    assert "Of c there are fewer than 30 instances" in page
    assert {p.name for p in paths[1:]} == {
        "losses.svg", "losses.png", "kept.svg", "kept.png",
    }  # fmt: skip


def test_a_figure_has_room_for_every_method(tmp_path: Path) -> None:
    members = [m.model_dump() for m in tradeoff().members]
    for place in range(29):
        losses = {"a": 3.0, "b": 2.0 + place / 10, "c": 2.0}
        members.append({"name": f"breadcrumbs_{place}", "role": "child", "losses": losses})
    # A layout that finds no room warns, and a warning is an error here.
    assert len(write_tradeoff_report(tradeoff(members=members), tmp_path)) == 5


def test_a_written_document_is_read_again(tmp_path: Path) -> None:
    content = json_bytes(TRADEOFF_FILE, tradeoff().model_dump(mode="json"))
    write_file(tmp_path / TRADEOFF_FILE, content)
    assert read_tradeoff(tmp_path) == tradeoff()


def test_a_document_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    members = [m.model_dump() for m in tradeoff().members]
    members[1]["losses"] = {"a": 1.0}
    with pytest.raises(DataError, match=r"members.1.losses: are of \['a'\]"):
        write_tradeoff_report(tradeoff(members=members), tmp_path)
    childless = [m.model_dump() for m in tradeoff().members if m.role != "child"]
    with pytest.raises(DataError, match="members: none is a child"):
        write_tradeoff_report(tradeoff(members=childless), tmp_path)
    assert list(tmp_path.iterdir()) == []
