"""Pages on running with part of a model: their figures, words, tables and refusals."""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from pydantic import BaseModel

from brickwork.errors import DataError
from brickwork.measure.selection_results import (
    CARVING_FILE,
    QUALITY_FILE,
    Carving,
    RouterQuality,
    RouterRow,
)
from brickwork.report import carving as carved
from brickwork.report import routers, selection, selection_tables, selection_words
from brickwork.report.html import Plate
from brickwork.report.read_selection import read_carving, read_quality
from brickwork.report.router_lines import (
    FREE,
    best_lines,
    levels_of,
    lines_of,
    looks_of_routers,
    nats,
    pareto_front,
    rise,
)
from brickwork.report.selection import (
    CARVING_PICTURES,
    ROUTER_PICTURES,
    SPEED_PICTURE,
    carving_page,
    router_page,
    router_plates,
    write_carving_report,
    write_router_report,
)
from tests.selection_results import (
    DENSITIES,
    NAMES,
    PARTITIONS,
    ROUTERS,
    synthetic_carving,
    synthetic_quality,
)
from tests.test_report_html import EVIL, Page

ODD = ("<script>alert('$x$')</script>", "翻訳 \\alpha_{2} and a name that does not end soon")
LONG = (("a-partition-whose-name-does-not-end-before-the-legend", 64), ("_b", 8))
QUALITIES = {
    "usual": synthetic_quality(),
    "both levels": synthetic_quality(
        NAMES[:2],
        partitions=PARTITIONS[:1],
        routers=ROUTERS[:3],
        levels=("token", "prompt"),
        speeds=False,
    ),
    "one density, odd names": synthetic_quality(
        ODD,
        densities=(0.5,),
        partitions=LONG,
        routers=(("_new", True, 1.0, 0.0), ("gate", True, 0.5, 0.0)),
        speeds=False,
    ),
    "single neurons": synthetic_quality(NAMES[:1], routers=(("threshold", False, 0.3, 1 / 3),)),
}
CARVINGS = {
    "four": [
        synthetic_carving("Math", healed=True),
        synthetic_carving("Coding", density=0.25, units="groups", seed=1),
        synthetic_carving("Ethics", units="layers", seed=2),
        synthetic_carving("tasks.jsonl", units="heads", seed=3),
    ],
    "one layer, odd names": [synthetic_carving(ODD[1], names=ODD, layers=1)],
    "many layers": [synthetic_carving("Math", layers=40)],
}


@pytest.fixture(scope="module")
def quality() -> RouterQuality:
    return QUALITIES["usual"]


@pytest.fixture(scope="module")
def carvings() -> list[Carving]:
    return CARVINGS["four"]


@functools.cache
def plates_of(case: str) -> list[Plate]:
    if case in QUALITIES:
        return router_plates(QUALITIES[case])
    return [picture.plate(CARVINGS[case]) for picture in CARVING_PICTURES]


@functools.cache
def page_of(case: str) -> str:
    if case in QUALITIES:
        return router_page(QUALITIES[case], plates_of(case))
    return carving_page(CARVINGS[case], plates_of(case))


def line(axes: Axes, label: str) -> list[float]:
    return next(list(each.get_ydata()) for each in axes.lines if each.get_label() == label)


def across(axes: Axes, label: str) -> list[float]:
    return next(list(each.get_xdata()) for each in axes.lines if each.get_label() == label)


def rows_of(quality: RouterQuality, router: str, partition: str) -> list[RouterRow]:
    return [row for row in quality.rows if (row.router, row.partition) == (router, partition)]


def without(quality: RouterQuality, *names: str) -> RouterQuality:
    rows = tuple(row for row in quality.rows if row.router not in names)
    return quality.model_copy(update={"rows": rows})


def flat(quality: RouterQuality, increase: float) -> RouterQuality:
    """The same where every row of a density below 1 adds as much to every functionality."""
    rows = [
        row.model_copy(
            update={"losses": {name: loss + increase for name, loss in quality.base_losses.items()}}
        )
        for row in quality.rows
    ]
    return quality.model_copy(update={"rows": tuple(rows)})


@pytest.mark.parametrize("case", [*QUALITIES, *CARVINGS])
def test_every_figure_draws_with_a_caption_that_names_unit_and_reference(case: str) -> None:
    for plate in plates_of(case):
        assert plate.png.startswith(b"\x89PNG")
        assert plate.svg.rstrip().endswith(b"</svg>")
        assert "nan" not in plate.caption.lower().split()
        assert re.search(r"nats|percent|times as fast", plate.caption)
        assert "Doing nothing" in plate.caption
        assert re.search(r"[Cc]hance|random|1 / density", plate.caption)


def test_speeds_are_left_out_where_nothing_was_timed() -> None:
    names = [plate.name for plate in plates_of("usual")]
    assert names == [*(picture.name for picture in ROUTER_PICTURES), SPEED_PICTURE.name]
    assert "speeds" not in [plate.name for plate in plates_of("one density, odd names")]
    assert "Speed was not measured." in page_of("one density, odd names")


def test_each_level_has_figures_of_its_own() -> None:
    names = [plate.name for plate in plates_of("both levels")]
    assert names[:2] == ["losses-token", "losses-prompt"]
    assert len(names) == 2 * len(ROUTER_PICTURES)
    parts = levels_of(QUALITIES["both levels"])
    assert {row.level for row in parts["prompt"].rows} == {"prompt"}
    assert looks_of_routers(parts["token"])["magnitude"].knows == "bound"
    assert looks_of_routers(parts["prompt"])["magnitude"].knows == "activations"
    prompt = {plate.name: plate.caption for plate in plates_of("both levels")}["costs-prompt"]
    assert "of the answer" in prompt
    assert "has to compute" not in prompt


def test_equal_input_gives_equal_bytes_whatever_the_caller_set() -> None:
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": None}):
        again = [picture.plate(CARVINGS["many layers"]) for picture in CARVING_PICTURES]
    once = plates_of("many layers")
    assert again == once
    assert [plate.png for plate in again] == [plate.png for plate in once]


def test_losses_are_those_of_the_document_beside_the_dense_one(quality: RouterQuality) -> None:
    panels = routers.draw_losses(quality).axes
    assert [axes.get_title(loc="left") for axes in panels] == list(NAMES)
    for axes, name in zip(panels, NAMES, strict=True):
        rows = rows_of(quality, "gate", "coactivation")  # the cheapest, as it was made
        assert line(axes, "gate") == [row.losses[name] for row in rows]
        assert across(axes, "gate") == pytest.approx([100 * row.kept for row in rows])
        assert line(axes, "whole model") == [quality.base_losses[name]] * 2
    markers = {each.get_label(): each.get_markerfacecolor() for each in panels[0].lines}
    hollow = {name for name, colour in markers.items() if colour == "white"}
    assert hollow == {"truth", "magnitude"}


def test_a_partition_is_best_by_the_densities_that_all_have(quality: RouterQuality) -> None:
    cheap = [
        row
        for row in quality.rows
        if row.partition != "random" or row.density >= 0.5 or row.router != "gate"
    ]
    lines = best_lines(quality.model_copy(update={"rows": tuple(cheap)}))
    gate = next(line for line in lines if line.router == "gate")
    assert gate.partition == "coactivation"  # the random one lacks only densities that cost much


def test_partitions_stand_side_by_side_in_each_routers_panel(quality: RouterQuality) -> None:
    panels = {axes.get_title(loc="left"): axes for axes in routers.draw_partitions(quality).axes}
    for router in ("gate", "mlp", "truth", "random", "fixed"):
        for partition, groups in PARTITIONS:
            expected = [rise(quality, row) for row in rows_of(quality, router, partition)]
            assert line(panels[router], f"{partition} ({groups})") == expected
    single = [rise(quality, row) for row in rows_of(quality, "threshold", "")]
    assert line(panels["single neurons"], "threshold") == single
    assert len({axes.get_ylim() for axes in panels.values()}) == 1


def test_the_increase_is_the_difference_of_the_means(quality: RouterQuality) -> None:
    for row in quality.rows:
        means = [np.mean(list(losses.values())) for losses in (row.losses, quality.base_losses)]
        assert rise(quality, row) == pytest.approx(means[0] - means[1])  # summed in another order


def test_captured_energy_stands_beside_an_even_spread(quality: RouterQuality) -> None:
    (axes,) = routers.draw_captured(quality).axes
    rows = rows_of(quality, "mlp", "coactivation")
    assert line(axes, "mlp") == pytest.approx([100 * row.captured for row in rows])
    assert line(axes, "evenly spread") == across(axes, "evenly spread") == [0, 100]


def test_nothing_cheaper_beats_the_front(quality: RouterQuality) -> None:
    front = pareto_front(quality)
    others = [row for row in quality.rows if row.router != "truth"]
    for row in others:
        on_front = row in front
        beaten = any(
            (o.cost <= row.cost and rise(quality, o) < rise(quality, row))
            or (o.cost < row.cost and rise(quality, o) <= rise(quality, row))
            for o in others
        )
        assert not (on_front and beaten)
        assert on_front or beaten or any(
            (o.cost, rise(quality, o)) == (row.cost, rise(quality, row)) for o in front
        )  # fmt: skip
    (axes,) = routers.draw_costs(quality).axes
    assert line(axes, "cheapest for its loss") == [rise(quality, row) for row in front]
    threshold = rows_of(quality, "threshold", "")
    assert across(axes, "threshold") == pytest.approx([100 * row.cost for row in threshold])
    assert all(row.cost > row.density for row in threshold if row.density < 1)


def test_speed_is_dense_over_sparse_beside_one_over_density(quality: RouterQuality) -> None:
    (axes,) = routers.draw_speeds(quality).axes
    rows = [row for row in quality.speeds if (row.path, row.dtype) == ("native", "bfloat16")]
    gains = [row.dense / row.sparse for row in rows]
    assert line(axes, "native, bfloat16, 2 threads, 1 token") == gains
    ideal = np.array(line(axes, "ideal: 1 / density"))
    assert ideal * np.array(across(axes, "ideal: 1 / density")) == pytest.approx(100.0)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")  # there 1 / density is straight
    most = max(row.dense / row.sparse for row in quality.speeds)
    assert f"The most is {most:.2f} at 10\u00a0%" in routers.caption_speeds(quality)


def test_captions_say_what_chance_gives_or_that_nobody_looked(quality: RouterQuality) -> None:
    random = [rise(quality, row) for row in rows_of(quality, "random", "coactivation")]
    caption = routers.caption_losses(quality)
    assert f"raises the mean loss by {nats(random[0])} nats at a density of 10\u00a0%" in caption
    assert (
        f"{nats(random[3])} nats at a density of 75\u00a0%" in caption
    )  # nothing is left out at 1
    for router in ("truth", "magnitude"):
        row = next(row for row in quality.rows if row.router == router)
        assert f"{router} {nats(rise(quality, row))} at 10\u00a0%" in caption
    less = routers.caption_losses(without(quality, "random", "truth", "magnitude"))
    assert "A choice at random was not measured" in less
    assert "Upper bounds" not in less


def opening(quality: RouterQuality) -> str:
    return " ".join(selection_words.router_opening(quality))


def test_the_opening_names_the_best_router_that_sees_the_input_only(
    quality: RouterQuality,
) -> None:
    words = opening(quality)
    assert "least loss is added by mlp with coactivation (64 groups) at 10\u00a0%" in words
    row = next(r for r in rows_of(quality, "mlp", "coactivation") if r.density == 0.75)
    assert rise(quality, row) < FREE
    assert f"than {FREE} nats down to a density of 75\u00a0%" in words
    assert f"adds {nats(rise(quality, row))}" in words
    random = next(r for r in rows_of(quality, "random", "coactivation") if r.density == 0.75)
    assert f"a random choice adds {nats(rise(quality, random))}" in words
    assert "nothing is gained" not in words


def test_the_opening_claims_no_more_than_the_numbers_do(quality: RouterQuality) -> None:
    assert (
        f"At none of the densities below 100 % is the increase of the mean loss under {FREE}"
        in (opening(flat(quality, 0.2)))
    )
    assert "The control (random and fixed) costs no more" in opening(flat(quality, 0.01))
    assert "A random choice was not measured." in opening(without(quality, "random"))
    unknown = without(quality, *(line.router for line in lines_of(quality) if line.usable))
    assert "no such router was measured" in opening(unknown)
    assert "no such router was measured" in opening(QUALITIES["single neurons"])


def test_a_density_is_free_only_if_all_higher_ones_are(quality: RouterQuality) -> None:
    best = dict(zip((0.1, 0.25, 0.5, 0.75), quality.rows, strict=False))
    rises = {0.1: 0.01, 0.25: 0.3, 0.5: 0.04, 0.75: 0.0}
    for density, added in rises.items():
        losses = {name: loss + added for name, loss in quality.base_losses.items()}
        best[density] = best[density].model_copy(update={"density": density, "losses": losses})
    assert selection_words.lowest_free(quality, best) == 0.5
    assert selection_words.lowest_free(quality, {0.25: best[0.25]}) is None


def test_the_table_has_every_row_after_the_whole_model(quality: RouterQuality) -> None:
    table = selection_tables.rows_table(quality)
    assert len(table.rows) == len(quality.rows) + 1
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert [cell.order for cell in table.rows[0][-len(NAMES) :]] == list(
        quality.base_losses.values()
    )
    told = {tuple(cell.order for cell in row[-len(NAMES) :]) for row in table.rows[1:]}
    assert told == {tuple(row.losses.values()) for row in quality.rows}
    assert len(selection_tables.speeds_table(quality).rows) == len(quality.speeds)


def test_the_table_of_the_best_has_the_least_of_each_sort(quality: RouterQuality) -> None:
    table = selection_tables.best_table(quality)
    assert [row[1].order for row in table.rows] == [d for d in DENSITIES if d < 1]
    for row in table.rows:
        assert len(row) == len(table.columns)
        here = [r for r in quality.rows if r.density == row[1].order]
        seeing = [r for r in here if r.router in ("gate", "mlp", "similarity", "centroid")]
        reading = [r for r in here if r.router in ("threshold", "magnitude")]
        bounds = [r for r in here if r.router in ("truth", "magnitude")]
        for place, rows in ((3, seeing), (6, reading), (9, bounds)):
            assert row[place].order == min(rise(quality, r) for r in rows)


def heat(axes: Axes) -> np.ndarray:
    return np.ma.filled(axes.collections[0].get_array(), np.nan)


def test_shares_kept_are_those_of_the_layers(carvings: list[Carving]) -> None:
    neurons, heads, *_ = carved.draw_kept(carvings).axes
    for axes, word in ((neurons, "neurons"), (heads, "kv_heads")):
        expected = [
            [
                np.nan if p.skipped else 100 * getattr(p, word) / getattr(p, f"of_{word}")
                for p in each.layers
            ]
            for each in carvings
        ]
        assert heat(axes) == pytest.approx(np.array(expected), nan_ok=True)
        crosses = [text.get_position() for text in axes.texts if text.get_text() == "\u00d7"]
        skipped = [(p.layer + 0.5, 2.5) for p in carvings[2].layers if p.skipped]
        assert skipped
        assert crosses == skipped


def test_models_of_other_depths_stand_in_one_map() -> None:
    pair = [synthetic_carving(layers=2), synthetic_carving(layers=3)]
    values = heat(carved.draw_kept(pair).axes[0])
    assert np.isnan(values).tolist() == [[False, False, True], [False] * 3]


def test_losses_of_a_smaller_model_stand_beside_chance(carvings: list[Carving]) -> None:
    panels = carved.draw_carved_losses(carvings).axes
    for axes, each in zip(panels, carvings, strict=True):
        points = {p.get_label(): p.get_offsets()[:, 0].tolist() for p in axes.collections}
        fields = {role.label: getattr(each, field) for field, role in carved.ROLES.items()}
        for label, losses in fields.items():
            assert points.get(label) == (None if losses is None else list(losses.values()))
        bold = [t.get_text() for t in axes.get_yticklabels() if t.get_fontweight() == "bold"]
        assert bold == ([each.target] if each.target in NAMES else [])
    assert sum(axes.get_legend() is None for axes in panels) == len(panels)


def test_sizes_are_shares_of_the_whole(carvings: list[Carving]) -> None:
    for axes, field in zip(carved.draw_sizes(carvings).axes, ("parameters", "flops"), strict=True):
        pairs = [getattr(each, field) for each in carvings]
        widths = [bar.get_width() for bar in axes.patches]
        assert widths[: len(pairs)] == [100.0] * len(pairs)
        assert widths[len(pairs) :] == pytest.approx([100 * b / a for a, b in pairs])
    assert "14.9 million of 21.3 million" in carved.draw_sizes(carvings).axes[0].texts[0].get_text()


def told(carvings: Sequence[Carving]) -> str:
    return " ".join(selection_words.carving_opening(carvings))


def test_the_opening_sets_the_target_beside_chance_and_names_who_suffers(
    carvings: list[Carving],
) -> None:
    each = carvings[0]
    words = told([each])
    after, random = carved.rises(each), carved.rises(each, "random")
    assert f"nats ({nats(after['Math'])}); with random units it changes by" in words
    assert f"{nats(random['Math'])}. The choice saves" in words
    worst = max(after, key=after.__getitem__)
    assert f"Most is lost on: {worst} ({nats(after[worst])})" in words
    assert f"After healing, Math is at {nats(carved.rises(each, 'healed')['Math'])}." in words
    assert "Losses were not measured on tasks.jsonl itself" in told(carvings)


def test_a_choice_no_better_than_chance_is_called_so(carvings: list[Carving]) -> None:
    each = carvings[1]
    equal = each.model_copy(update={"random": each.after})
    assert "no better than chance for its target" in told([equal])
    unharmed = each.model_copy(update={"after": each.before})
    assert "No functionality's loss rises." in told([unharmed])


def test_the_tables_of_smaller_models_are_whole(carvings: list[Carving]) -> None:
    losses = selection_tables.carved_losses_table(carvings)
    assert len(losses.rows) == sum(len(each.before) + 1 for each in carvings)
    models = selection_tables.carvings_table(carvings)
    assert len(models.rows) == len(carvings)
    for table in (losses, models):
        assert all(len(row) == len(table.columns) for row in table.rows)
    healed = [row[-1].text for row in losses.rows]
    assert healed.count("not measured") == 3 * (len(NAMES) + 1)


@pytest.mark.parametrize("case", [*QUALITIES, *CARVINGS])
def test_a_page_is_balanced_self_contained_and_needs_no_script(case: str) -> None:
    text = page_of(case)
    page = Page(text)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "base", "script"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href"}:
                assert value
                assert value.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\((?!#|'?#)|@import", text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {v[1:] for t, a in page.tags if t == "a" and (v := a["href"])} <= set(ids)
    assert "--paper: #fff" in text  # the analysis report's look
    assert page.count("figcaption") == len(plates_of(case))
    words = "".join(page.words)
    assert all(plate.caption in words for plate in plates_of(case))
    assert len(text.encode()) < 3_000_000


def test_names_are_escaped() -> None:
    for text in (page_of("one density, odd names"), page_of("one layer, odd names")):
        assert "<script" not in text
        assert "&lt;script&gt;alert" in text
    quality = synthetic_quality(EVIL, partitions=[(EVIL[0], 4)])
    text = router_page(quality.model_copy(update={"model": EVIL[0], "data": EVIL[1]}), [])
    assert "<script" not in text
    assert "{{ 7 * 7 }}" in text


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_both_pages_share_a_folder_with_the_analysis(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "sparsity.svg").write_text("the analysis report's")
    (tmp_path / "router-figures").mkdir()
    (tmp_path / "router-figures" / "losses-prompt.svg").write_text("an older page's")
    first = write_router_report(QUALITIES["single neurons"], tmp_path)
    second = write_carving_report(CARVINGS["many layers"], tmp_path)
    assert (tmp_path / "routers.html").read_text(encoding="utf-8") == page_of("single neurons")
    assert (tmp_path / "carving.html").read_text(encoding="utf-8") == page_of("many layers")
    written = {str(path.relative_to(tmp_path)) for path in [*first, *second]}
    assert files_of(tmp_path) == written | {"figures/sparsity.svg"}
    assert {"router-figures/costs.svg", "carving-figures/kept.png"} <= written


@pytest.mark.parametrize(
    ("page", "write", "document"),
    [
        ("routers.html", write_router_report, QUALITIES["single neurons"]),
        ("carving.html", write_carving_report, CARVINGS["many layers"]),
    ],
)
def test_an_old_page_stands_where_drawing_fails(
    page: str,
    write: Callable[[Any, Path], list[Path]],
    document: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / page).write_text("old")
    monkeypatch.setattr(selection, "selection_tables", None)
    with pytest.raises(AttributeError):
        write(document, tmp_path)
    assert files_of(tmp_path) == {page}
    assert (tmp_path / page).read_text() == "old"


def test_a_written_document_is_read_back(
    quality: RouterQuality, carvings: list[Carving], tmp_path: Path
) -> None:
    (tmp_path / QUALITY_FILE).write_text(quality.model_dump_json(), encoding="utf-8")
    (tmp_path / CARVING_FILE).write_text(carvings[0].model_dump_json(), encoding="utf-8")
    assert read_quality(tmp_path) == quality
    assert read_carving(tmp_path) == carvings[0]


def changed(made: BaseModel, path: str, value: Any) -> str:
    """The document as JSON, with one field set or, for ``...``, left out."""
    document = made.model_dump(mode="json")
    place: Any = document
    *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    for part in way:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 2, "should be of format 1, but its format is 2; read it with the version"),
        ("format", ..., "its format is None"),
        ("model", ..., r"in 1 place.*\n  - model: Field required"),
        ("colour", "red", "colour: Extra inputs are not permitted"),
        ("rows.0.level", "layer", "rows.0.level: Input should be 'token' or 'prompt'"),
        ("rows", [], "rows: holds none"),
        ("instances", 0, "instances: should be at least 1, is 0"),
        ("base_losses", {}, "base_losses: names no functionality"),
        ("base_losses.Math", float("nan"), "base_losses.Math: Input should be a finite"),
        ("rows.3.losses.Math", ..., "rows.3.losses: needs the functionalities .* differ in 'Math'"),
        ("rows.3.losses.Math", float("inf"), "rows.3.losses.Math: Input should be a finite"),
        ("rows.1.density", 0.1, "rows.1: the same router, partition and density are given twice"),
        ("rows.1.density", 0.0, "rows.1.density: should be above 0 and at most 1, is 0"),
        ("rows.1.kept", 1.2, "rows.1.kept: should be at least 0 and at most 1, is 1.2"),
        ("rows.1.captured", -0.1, "rows.1.captured: should be at least 0 and at most 1"),
        ("rows.1.cost", -1.0, "rows.1.cost: should be at least 0, is -1"),
        ("rows.1.groups", 0, "rows.1.groups: is 0 for the partition 'coactivation'"),
        ("rows.1.partition", "", "rows.1.groups: is 64 for the partition ''"),
        ("speeds.0.sparse", 0.0, "speeds.0.sparse: should be above 0, is 0"),
        ("speeds.0.threads", 0, "speeds.0.threads: should be above 0"),
    ],
)
def test_a_wrong_document_on_routers_is_refused_by_field(
    quality: RouterQuality, tmp_path: Path, path: str, value: Any, message: str
) -> None:
    (tmp_path / QUALITY_FILE).write_text(changed(quality, path, value), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_quality(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 3, "should be of format 1, but its format is 3"),
        ("layers", [], "layers: holds none"),
        ("layers.1.layer", 0, "layers.1: layer 0 is given twice"),
        ("layers.1.layer", -1, "layers.1.layer: should be at least 0, is -1"),
        ("layers.1.neurons", 2000, "layers.1.neurons: keeps 2000 of 1024"),
        ("layers.1.kv_heads", -1, "layers.1.kv_heads: keeps -1 of 4"),
        ("layers.1.skipped", True, "layers.1.neurons: keeps 512 in a layer that is skipped"),
        ("after.Math", ..., "after: needs the functionalities of the whole model; .* 'Math'"),
        ("random.Art", 1.0, "random: needs the functionalities of the whole model; .* 'Art'"),
        ("healed", {}, "healed: needs the functionalities"),
        ("before.Math", -1.0, "before.Math: should be at least 0, is -1"),
        ("density", 0.0, "density: should be above 0"),
        ("parameters", [5, 6], "parameters: should fall .* but goes from 5 to 6"),
        ("flops", [5, 0], "flops: should fall .* but goes from 5 to 0"),
    ],
)
def test_a_wrong_document_on_a_smaller_model_is_refused_by_field(
    carvings: list[Carving], tmp_path: Path, path: str, value: Any, message: str
) -> None:
    (tmp_path / CARVING_FILE).write_text(changed(carvings[0], path, value), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_carving(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"holds no routers\.json; name the folder that a comparison of routers was written to",
        ),
        (b"{", "is not JSON: .*make the comparison of routers again"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "should hold one JSON object, but holds a list"),
    ],
    ids=["missing", "cut", "not text", "deep", "a list"],
)
def test_what_is_no_document_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / QUALITY_FILE).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_quality(tmp_path)


def test_nothing_is_written_of_a_document_that_contradicts_itself(
    quality: RouterQuality, carvings: list[Carving], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"the document is not sound as a comp.*\n  - rows: holds"):
        write_router_report(quality.model_copy(update={"rows": ()}), tmp_path)
    wrong = carvings[1].model_copy(update={"after": {}})
    with pytest.raises(DataError, match="document 2 is not sound as a carving"):
        write_carving_report([carvings[0], wrong], tmp_path)
    with pytest.raises(DataError, match="0 documents were given; give at least one"):
        write_carving_report([], tmp_path)
    assert files_of(tmp_path) == set()


def test_the_pages_load_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, brickwork.report.selection, brickwork.report.read_selection; "
        "print('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout == "False\n"
