"""The pages on running with part of a model: routers of neurons, and smaller models."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from matplotlib.figure import Figure

from brickwork.errors import DataError
from brickwork.measure.selection_results import Carving, RouterQuality
from brickwork.report import carving as carved
from brickwork.report import routers, selection_tables, selection_words
from brickwork.report.document import invalid
from brickwork.report.html import Plate, plate_of, render, style_sheet, write_page
from brickwork.report.read_selection import CARVED, ROUTERS, carving_problems, quality_problems
from brickwork.report.router_lines import levels_of
from brickwork.report.tables import Table

ROUTER_PAGE, ROUTER_FIGURES = "routers.html", "router-figures"
CARVING_PAGE, CARVING_FIGURES = "carving.html", "carving-figures"
_TEMPLATE = "selection.html.j2"
_LEVELS = {"token": "chosen for each token", "prompt": "chosen once for a prompt"}
_Document = TypeVar("_Document")


@dataclass(frozen=True)
class Picture(Generic[_Document]):
    """One row of the figures of a page."""

    name: str
    title: str
    draw: Callable[[_Document], Figure]
    caption: Callable[[_Document], str]

    def plate(self, document: _Document, name: str = "", title: str = "") -> Plate:
        """The figure of one document; ``name`` and ``title`` tell it from the same of others."""
        return plate_of(
            f"{self.name}{name}",
            f"{self.title}{title}",
            self.caption(document),
            self.draw(document),
        )


@dataclass(frozen=True)
class Listing:
    """A table of a page, and the words above it."""

    name: str
    title: str
    note: str
    table: Table


ROUTER_PICTURES = (
    Picture("losses", "Loss of each functionality", routers.draw_losses, routers.caption_losses),
    Picture("partitions", "Partitions compared", routers.draw_partitions,
            routers.caption_partitions),
    Picture("captured", "Captured energy", routers.draw_captured, routers.caption_captured),
    Picture("costs", "What it really saves", routers.draw_costs, routers.caption_costs),
)  # fmt: skip
SPEED_PICTURE = Picture("speeds", "Measured speed", routers.draw_speeds, routers.caption_speeds)
CARVING_PICTURES = (
    Picture("kept", "What was kept where", carved.draw_kept, carved.caption_kept),
    Picture("carved-losses", "Losses before and after", carved.draw_carved_losses,
            carved.caption_carved_losses),
    Picture("sizes", "Parameters and operations", carved.draw_sizes, carved.caption_sizes),
)  # fmt: skip


def write_router_report(quality: RouterQuality, folder: Path) -> list[Path]:
    """Write ``routers.html`` and its figures, and return their paths.

    Everything is drawn before the first file is written, as in ``html.write_report``.

    Args:
        quality: the document; nothing else is read.
        folder: made if it is missing. Figures go to ``router-figures`` in it.

    Raises:
        DataError: if the document contradicts itself.
    """
    _require_sound("the document", ROUTERS, quality_problems(quality))
    plates = router_plates(quality)
    content = router_page(quality, plates)
    return write_page(folder, ROUTER_PAGE, content=content, plates=plates, figures=ROUTER_FIGURES)


def write_carving_report(carvings: Sequence[Carving], folder: Path) -> list[Path]:
    """Write ``carving.html``, which compares smaller models, and its figures.

    Args:
        carvings: one document or several, in the order of the page.
        folder: made if it is missing. Figures go to ``carving-figures`` in it.

    Returns:
        The paths of what was written.

    Raises:
        DataError: if there is no document, or one contradicts itself.
    """
    if not carvings:
        raise DataError(
            "a page on smaller models was asked for, but 0 documents were given; give at least one."
        )
    for number, carving in enumerate(carvings, 1):
        _require_sound(f"document {number}", CARVED, carving_problems(carving))
    plates = [picture.plate(carvings) for picture in CARVING_PICTURES]
    content = carving_page(carvings, plates)
    return write_page(folder, CARVING_PAGE, content=content, plates=plates, figures=CARVING_FIGURES)


def router_plates(quality: RouterQuality) -> list[Plate]:
    """Every figure once for each level at which routers choose, and the speeds if there are any."""
    levels = levels_of(quality)
    plates = [
        picture.plate(
            part,
            f"-{level}" if len(levels) > 1 else "",
            f", {_LEVELS[level]}" if len(levels) > 1 else "",
        )
        for picture in ROUTER_PICTURES
        for level, part in levels.items()
    ]
    return [*plates, SPEED_PICTURE.plate(quality)] if quality.speeds else plates


def router_page(quality: RouterQuality, plates: Sequence[Plate]) -> str:
    """The whole page on routers; every name in it is escaped."""
    tables = (
        Listing(
            "best", "The best router at each density",
            "Increase of the mean loss in nats. From the input alone: without any activation of "
            "the FFN; by prompt, from the prompt alone. Other routers read activations and cost "
            "more. Bounds know what a router cannot.",
            selection_tables.best_table(quality),
        ),
        Listing(
            "rows", "All measurements",
            "Losses in nats per response token; the increase is that of their mean over the whole "
            "model's, which has the first row.",
            selection_tables.rows_table(quality),
        ),
        *([Listing(
            "times", "Seconds", "One FFN in a decoding step.",
            selection_tables.speeds_table(quality),
        )] if quality.speeds else []),
    )  # fmt: skip
    facts = [
        ("Model", quality.model),
        ("Fingerprint of the model", quality.fingerprint),
        ("Data", quality.data),
        ("Instances", f"{quality.instances:,}"),
        ("Seed", quality.seed),
        ("Brickwork", quality.brickwork),
    ]
    return render(
        _TEMPLATE,
        title=f"Running {quality.model} with some of its neurons",
        look=style_sheet(),
        opening=list(selection_words.router_opening(quality)),
        limits=list(selection_words.router_limits(quality)),
        plates=plates,
        tables=tables,
        facts=facts,
    )


def carving_page(carvings: Sequence[Carving], plates: Sequence[Plate]) -> str:
    """The whole page on smaller models; every name in it is escaped."""
    tables = (
        Listing(
            "carved-models", "The smaller models",
            "Parameters, and floating-point operations for a token, before and after.",
            selection_tables.carvings_table(carvings),
        ),
        Listing(
            "carved-rows", "All losses",
            "Nats per response token on held-out instances; in brackets the change from the whole "
            "model. Random: as many random units, a mean over several draws.",
            selection_tables.carved_losses_table(carvings),
        ),
    )  # fmt: skip
    facts = [
        (name, "; ".join(dict.fromkeys(str(getattr(each, field)) for each in carvings)))
        for name, field in (
            ("Model", "model"), ("Fingerprint of the model", "fingerprint"), ("Data", "data"),
            ("Seed", "seed"), ("Brickwork", "brickwork"),
        )
    ]  # fmt: skip
    models = list(dict.fromkeys(each.model for each in carvings))
    return render(
        _TEMPLATE,
        title=f"Smaller models made from {', '.join(models)}",
        look=style_sheet(),
        opening=list(selection_words.carving_opening(carvings)),
        limits=list(selection_words.carving_limits(carvings)),
        plates=plates,
        tables=tables,
        facts=facts,
    )


def _require_sound(name: str, what: str, problems: Iterable[str]) -> None:
    if found := list(problems):
        raise DataError(invalid(name, what, found))
