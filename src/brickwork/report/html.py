"""The report: every figure as a file, and one HTML page that needs nothing else."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from brickwork.brick.durable import write_file
from brickwork.measure.results import Analysis
from brickwork.report import words
from brickwork.report.figures import FIGURES, FigureRow
from brickwork.report.style import png_bytes, svg_bytes
from brickwork.report.tables import TABLES

PAGE, FIGURE_FOLDER = "report.html", "figures"
_TEMPLATE = "report.html.j2"
_LARGEST_SVG = 300_000  # bytes; a larger figure goes into the page as PNG
_OPEN_ROWS = 30  # a longer table is folded at first


@dataclass(frozen=True)
class Plate:
    """One drawn figure."""

    name: str
    """Its file's name without the ending; letters, digits and hyphens."""
    title: str
    caption: str
    svg: bytes
    figure: Figure = field(repr=False, compare=False)

    @cached_property
    def png(self) -> bytes:
        """The figure's pixels."""
        return png_bytes(self.figure)

    @property
    def markup(self) -> Markup:
        """The figure as part of a page: its lines where they are few, else its pixels."""
        if len(self.svg) > _LARGEST_SVG:
            data = base64.b64encode(self.png).decode()
            return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(self.title, data)
        content = self.svg.decode()
        return Markup(content[content.index("<svg") :])  # matplotlib escapes the names in it


def write_report(analysis: Analysis, folder: Path) -> list[Path]:
    """Write ``report.html`` and its figures, and return their paths.

    Everything is drawn before the first file is written, and every file is replaced whole: if
    drawing fails, an older report stands as it was. Figures that only the older one had are
    deleted in the end.

    Args:
        analysis: the results; nothing else is read.
        folder: made if it is missing. Figures go to ``figures`` in it, as SVG and as PNG.
    """
    sections = [(row, list(draw_row(row, analysis))) for row in FIGURES]
    plates = [plate for _, drawn in sections for plate in drawn]
    return write_page(folder, PAGE, content=render_page(analysis, sections), plates=plates)


def write_page(
    folder: Path,
    page: str,
    *,
    content: str,
    plates: Sequence[Plate],
    figures: str = FIGURE_FOLDER,
) -> list[Path]:
    """Write a page and its figures, delete other figures of the same place, and return the paths.

    Args:
        folder: made if it is missing.
        page: the page's file name.
        content: the page.
        plates: what is drawn on it.
        figures: the folder in it that holds this page's figures and no other page's.
    """
    contents = {page: content.encode()}
    for plate in plates:
        contents[f"{figures}/{plate.name}.svg"] = plate.svg
        contents[f"{figures}/{plate.name}.png"] = plate.png
    (folder / figures).mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        write_file(folder / name, data)
    written = [folder / name for name in contents]
    for form in ("svg", "png"):
        for old in set((folder / figures).glob(f"*.{form}")) - set(written):
            old.unlink()
    return written


def draw_row(row: FigureRow, analysis: Analysis) -> Iterator[Plate]:
    """The figures of one row of the table; none where it was not measured."""
    taken: set[str] = set()
    for arguments in row.each(analysis):
        title, name = row.title, row.name
        for ablation in arguments[1:]:
            title, name = ablation.title, f"{row.name}-{_slug(ablation.name)}"
        if name in taken:
            name = f"{name}-{len(taken) + 1}"
        taken.add(name)
        yield plate_of(name, title, row.caption(*arguments), row.draw(*arguments))


def plate_of(name: str, title: str, caption: str, figure: Figure) -> Plate:
    """A figure with what stands around it; its layout is fixed from here on."""
    svg = svg_bytes(figure, name)
    figure.set_layout_engine("none")  # its parts stand where they should; once is enough
    return Plate(name, title, _spaced(caption), svg, figure)


def render_page(analysis: Analysis, sections: Sequence[tuple[FigureRow, Sequence[Plate]]]) -> str:
    """The whole page; every name in it is escaped."""
    tables = [(row, row.build(analysis)) for row in TABLES]
    return render(
        _TEMPLATE,
        analysis=analysis,
        sections=sections,
        tables=tables,
        open_rows=_OPEN_ROWS,
        opening=list(words.opening(analysis)),
        limits=list(words.limits(analysis)),
        terms=words.TERMS,
        paper=words.PAPER,
        facts=_facts(analysis),
        look=style_sheet(),
    )


def render(template: str, **values: Any) -> str:
    """A template of this room with its values, every one of which is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["spaced"] = _spaced
    return environment.from_string(_source(template)).render(**values)


def style_sheet() -> Markup:
    """The rules that give every page of this room one look."""
    return Markup(_source("page.css"))


def _source(template: str) -> str:
    return files("brickwork.report").joinpath(template).read_text(encoding="utf-8")


def _spaced(text: str) -> str:
    """One way to write percentages, and no line break before their sign."""
    return re.sub(r"(?<=[0-9]) ?%", "\u00a0%", text)


def _facts(analysis: Analysis) -> Mapping[str, Any]:
    """What decides the numbers, and what they cost."""
    settings, data = analysis.settings, analysis.data
    return {
        "Model": analysis.model.name,
        "Fingerprint of the model (sha256)": analysis.model.fingerprint,
        "Data": data.name,
        "Fingerprint of the data (sha256)": data.sha256,
        "Sources named by the data": f"{data.sources:,}",
        "Longest instance": f"{data.longest:,} tokens",
        "Cut / left out": f"{data.cut:,} / {data.left_out:,} instances",
        "Share that counts as functional": f"{settings.share:g}",
        "Evaluation instances per functionality, at most": f"{settings.evaluation:,}",
        "Shuffles of the labels": f"{settings.permutations:,}",
        "Bootstrap resamples": f"{settings.resamples:,}",
        "Instances with attribution": f"{analysis.functionality.attribution_instances:,}",
        "Seed": settings.seed,
        "Peak memory": f"{analysis.peak_memory / 2**20:,.0f} MiB",
        "Brickwork": analysis.brickwork,
    }


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "figure"
