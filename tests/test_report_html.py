"""The report's page and files: whole, escaped, and asking nothing of the network."""

import functools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from brickwork.errors import DataError, MissingExtraError
from brickwork.measure.results import FILE, Analysis, Interval, OverlapMatrix
from brickwork.report import extra, html
from brickwork.report.extra import require_report
from brickwork.report.figures import FIGURES, FigureRow
from brickwork.report.html import PAGE, Plate, draw_row, render_page, write_report
from brickwork.report.read import read_analysis
from brickwork.report.tables import TABLES
from tests.analysis import FUNCTIONS, synthetic_analysis

VOID = {"meta", "br", "img", "link", "hr", "input"}
ONE = Interval(value=1.0, low=1.0, high=1.0)
EVIL = ("<script>alert(1)</script>\"'&", "Übersetzung 翻訳 {{ 7 * 7 }}")


class Page(HTMLParser):
    """What a page is made of; ``open`` is empty after a balanced one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)


CASES = {
    "one layer, odd names": synthetic_analysis(1, EVIL, sources=EVIL),
    "32 layers": synthetic_analysis(32, (*FUNCTIONS, "Linguistic", "Knowledge", "Writing")),
    "little measured": synthetic_analysis(
        2, FUNCTIONS[:2], sources=(), heads=False, attribution=False
    ),
}


@functools.cache
def page_of(case: str) -> str:
    analysis = CASES[case]
    return render_page(analysis, [(row, list(draw_row(row, analysis))) for row in FIGURES])


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return synthetic_analysis()


@pytest.fixture(scope="module")
def sections(analysis: Analysis) -> list[tuple[FigureRow, list[Plate]]]:
    return [(row, list(draw_row(row, analysis))) for row in FIGURES]


@pytest.fixture(scope="module")
def text(analysis: Analysis, sections: list[tuple[FigureRow, list[Plate]]]) -> str:
    return render_page(analysis, sections)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of one row, where the rest of the table says nothing new."""
    monkeypatch.setattr(html, "FIGURES", FIGURES[:1])


def test_every_figure_is_a_file_of_both_kinds(
    analysis: Analysis, text: str, sections: list[tuple[FigureRow, list[Plate]]], tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "folder"
    paths = write_report(analysis, folder)
    plates = [plate for _, plates in sections for plate in plates]
    names = {plate.name for plate in plates}
    assert {"sparsity", "perturbation-neurons-zero", "one-by-one-layers-skip"} <= names
    files = {f"figures/{name}.{form}" for name in names for form in ("svg", "png")}
    assert {str(path.relative_to(folder)) for path in paths} == {PAGE, *files}
    assert sorted(paths) == sorted(path for path in folder.rglob("*") if path.is_file())
    assert (folder / PAGE).read_text(encoding="utf-8") == text  # drawn twice, equal bytes


def test_every_figure_stands_with_its_caption(
    text: str, sections: list[tuple[FigureRow, list[Plate]]]
) -> None:
    page = Page(text)
    plates = [plate for _, plates in sections for plate in plates]
    assert page.count("svg") == page.count("figcaption") == len(plates)
    words = "".join(page.words)
    for row in FIGURES:
        assert all(part in words for part in (row.shows, row.computed, row.read, row.null))
    assert all(plate.caption in words for plate in plates)


def test_every_table_has_its_rows(analysis: Analysis, text: str) -> None:
    words = "".join(Page(text).words)
    for row in TABLES:
        table = row.build(analysis)
        section = text[text.index(f'<section id="{row.name}">') :].partition("</section>")[0]
        assert section.count("<tr>") == len(table.rows) + 1
        assert all(len(cells) == len(table.columns) for cells in table.rows)
    ablations = analysis.perturbation.ablations
    taken = sum(len(ablation.rows) for ablation in ablations) * len(FUNCTIONS)
    assert len(next(row for row in TABLES if "perturbation" in row.name).build(analysis).rows) == (
        taken
    )
    best = analysis.functionality.neurons[2].functions["Math"].best_unit
    assert f"layers.2.mlp.neurons[{best}]" in words
    assert "layers.1.attn.heads[" in words


def test_findings_show_their_verdict_in_words(analysis: Analysis, text: str) -> None:
    words = "".join(Page(text).words)
    for finding in analysis.findings:
        assert finding.verdict in words
        for sentence in (finding.claim, finding.evidence):  # with one kind of space before %
            assert re.sub(r" ?%", "\u00a0%", sentence) in words
    section = text.partition('id="findings"')[2].partition('id="figures"')[0]
    assert section.count("<details open>") == len(analysis.findings)


def test_the_page_says_how_to_make_it_again_and_where_the_method_is_from(text: str) -> None:
    assert "brickwork analyse reference --out analysis" in text
    assert "Xiao et al. 2024" in text
    assert "arXiv:2409.02877" in text
    assert "Seconds for perturbation" in text
    assert "812 MiB" in text


def test_limits_name_what_is_small(text: str) -> None:
    words = "".join(Page(text).words)
    assert "The model is small (21 million parameters" in words
    assert "as few as 40 evaluation instances" in words
    assert "anti-correlated" in words
    assert "p-values are not corrected" in words


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_balanced_self_contained_and_small(case: str) -> None:
    text = page_of(case)
    page = Page(text)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href"}:
                assert value
                assert value.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\((?!#|'?#)|@import", text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {v[1:] for t, a in page.tags if t == "a" and (v := a["href"])}
    assert links <= set(ids)
    assert len(text.encode()) < 3_000_000


def test_names_are_escaped() -> None:
    text = page_of("one layer, odd names")
    page = Page(text)
    assert page.count("script") == 1
    assert "<script>alert" not in text
    assert "{{ 7 * 7 }}" in text
    assert "翻訳" in text


def test_a_name_cannot_lead_out_of_the_folder(
    analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tuple(row for row in FIGURES if row.name == "perturbation")
    monkeypatch.setattr(html, "FIGURES", rows)
    first, second, *rest = analysis.perturbation.ablations
    ablations = [
        first.model_copy(update={"name": "../../out"}),
        second.model_copy(update={"name": "out"}),
        *rest,
    ]
    perturbation = analysis.perturbation.model_copy(update={"ablations": ablations})
    changed = analysis.model_copy(update={"perturbation": perturbation})
    paths = write_report(changed, tmp_path / "report")
    assert all(path.resolve().is_relative_to(tmp_path / "report") for path in paths)
    assert len(paths) == len(set(paths))
    assert {path.name for path in tmp_path.iterdir()} == {"report"}


@pytest.mark.usefixtures("few")
def test_a_large_figure_goes_in_as_pixels(
    analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "_LARGEST_SVG", 0)
    write_report(analysis, tmp_path)
    page = Page((tmp_path / PAGE).read_text(encoding="utf-8"))
    assert page.count("svg") == 0
    assert page.count("img") == page.count("figcaption")


def test_what_was_not_measured_is_said() -> None:
    text = page_of("little measured")
    assert text.count("Not measured in this analysis.") == 3
    assert "Nothing to list in this analysis." in text
    assert "names no source with two functionalities" in "".join(Page(text).words)


@pytest.mark.usefixtures("few")
def test_figures_of_an_older_report_are_deleted(analysis: Analysis, tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    for name in ("perturbation-neurons-gone.svg", "perturbation-neurons-gone.png", "notes.txt"):
        (figures / name).write_text("old")
    (tmp_path / "mine.png").write_text("not the report's")
    paths = write_report(analysis, tmp_path)
    assert {path.name for path in figures.iterdir()} == {
        "sparsity.svg", "sparsity.png", "notes.txt",
    }  # fmt: skip
    assert (tmp_path / "mine.png").exists()
    assert all(path.exists() for path in paths)


def test_a_long_name_is_shortened_and_stands_whole_in_its_title() -> None:
    source = "allenai/natural-instructions via another/" + "very-long-name-" * 9
    analysis = synthetic_analysis(1, sources=(source, "flan"))
    section = render_page(analysis, []).partition('<section id="sources-table">')[2]
    cells = section.partition("</section>")[0]
    assert f'<td title="{source}">{source[:39]}…</td>' in cells
    assert f">{source}<" not in cells
    assert "<td>flan</td>" in cells


@pytest.mark.usefixtures("few")
def test_an_old_report_stands_where_drawing_fails(
    analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / PAGE).write_text("old")
    monkeypatch.setattr(html, "TABLES", None)
    with pytest.raises(TypeError):
        write_report(analysis, tmp_path)
    left = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {PAGE: "old"}


@pytest.mark.usefixtures("few")
def test_an_old_file_stands_where_writing_fails(
    analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int) -> None:
        raise OSError("no space left on device")

    (tmp_path / PAGE).write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_report(analysis, tmp_path)
    left = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {PAGE: "old"}


def test_a_missing_library_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_report()
    monkeypatch.setattr(extra, "_LIBRARIES", ("matplotlib", "no_such_library"))
    with pytest.raises(MissingExtraError, match=r"the report needs.*brickwork\[report\]"):
        require_report()


def test_a_written_analysis_is_read_back(analysis: Analysis, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(analysis.model_dump_json(), encoding="utf-8")
    assert read_analysis(tmp_path) == analysis


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused_when_an_analysis_is_made(value: float) -> None:
    with pytest.raises(ValidationError, match=r"high\n  Input should be a finite number"):
        Interval(value=1.0, low=0.5, high=value)
    with pytest.raises(ValidationError, match="Input should be a finite number"):
        OverlapMatrix(values=[[1.0, value], [value, 1.0]], null=ONE, null_mean=ONE)


def changed(analysis: Analysis, path: str, value: Any) -> str:
    """The document as JSON, with one field set or, for ``...``, left out."""
    document = analysis.model_dump()
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
        ("format", 2, "should be of format 1, but its format is 2"),
        ("format", ..., "its format is None"),
        ("model.name", ..., r"in 1 place.*\n  - model.name: Field required"),
        ("model.colour", "red", "model.colour: Extra inputs are not permitted"),
        ("settings.share", "much", "settings.share: Input should be a valid number"),
        ("findings.0.verdict", "perhaps", "findings.0.verdict: Input should be"),
        ("sparsity.edges", [0.5], "sparsity.layers, layer 0: needs one share for each of 1 edges"),
        ("overlap.independent", float("nan"), "overlap.independent: Input should be a finite"),
        ("overlap.pooled.values", [[1.0]], "overlap.pooled.values: needs 4 rows of 4 numbers"),
        ("overlap.layers.1.values", [], "overlap.layers.1.values: needs 4 rows of 4"),
        ("overlap.linkage", [], "overlap.linkage: needs 3 rows of 4 numbers"),
        ("overlap.linkage.0.1", 6.0, "overlap.linkage: needs every cluster to be joined once"),
        ("perturbation.ablations.1.name", "neurons-zero", "'neurons-zero' is given twice"),
    ],
)
def test_a_wrong_document_is_refused_by_field(
    analysis: Analysis, tmp_path: Path, path: str, value: Any, message: str
) -> None:
    (tmp_path / FILE).write_text(changed(analysis, path, value), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_analysis(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"holds no analysis\.json; name the folder that an analysis was written to"),
        (b"{", "is not JSON: .*make the analysis again"),
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
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_analysis(tmp_path)
