"""How every figure looks: fonts, colours of the functionalities, and equal bytes for equal input.

Only ``Figure`` objects are used, never pyplot's global state, and every setting holds inside
``styled`` alone, so a caller's matplotlib is left as it was.
"""

import io
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brickwork.measure.results import Analysis

WIDTH = 9.0  # inches; 900 pixels in the report
INK, FAINT, GRID = "#222222", "#767676", "#e4e4e4"

styled = style.context(
    [
        "default",
        {
            "axes.axisbelow": True,
            "axes.edgecolor": "#9a9a9a",
            "axes.grid": True,
            "axes.labelcolor": INK,
            "axes.labelsize": 9,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 10,
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
            "font.size": 9,
            "grid.color": GRID,
            "grid.linewidth": 0.6,
            "legend.fontsize": 8.5,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "lines.markersize": 4.5,
            "svg.fonttype": "none",
            "text.parse_math": False,  # a name may hold a dollar sign
            "xtick.color": "#555555",
            "ytick.color": "#555555",
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
        },
    ]
)
"""A decorator: inside, matplotlib's defaults with these changes, whatever the caller set."""


class Look(NamedTuple):
    """How one functionality is drawn, in every figure."""

    colour: str
    marker: str


# Okabe and Ito's colours without their yellow, which is too faint on white, and three of Tol's.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D",
    "#882255", "#999933", "#332288",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")


def names_of(analysis: Analysis) -> list[str]:
    """The functionalities, in the order of the data."""
    return [function.name for function in analysis.data.functions]


def looks_of(analysis: Analysis) -> dict[str, Look]:
    """A colour and a marker for each functionality."""
    names = names_of(analysis)
    return dict(zip(names, looks(len(names)), strict=True))


def looks(number: int) -> list[Look]:
    """So many looks; more than ten share colours, not markers."""
    return [
        Look(_COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)])
        for place in range(number)
    ]


def canvas(height: float) -> Figure:
    """An empty figure of the report's width, whose parts make room for each other."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def short(name: str, most: int = 20) -> str:
    """A name that fits beside an axis, on one line."""
    line = " ".join(name.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def legend_name(name: str) -> str:
    """The name as a legend takes it, which leaves out those that begin with an underscore."""
    return f" {short(name)}" if name.startswith("_") else short(name)


def layer_axis(axes: Axes, layers: Sequence[int], ticks: int = 12) -> None:
    """Label the horizontal axis with whole layers, also where there is only one."""
    axes.set_xlabel("layer")
    axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True, min_n_ticks=1))


def across(layers: Sequence[int]) -> list[float]:
    """Where a band over the layers stands: a single layer gives it two places, hence a width."""
    numbers = [float(layer) for layer in layers]
    return [numbers[0] - 0.4, numbers[0] + 0.4] if len(numbers) == 1 else numbers


def legend_below(figure: Figure, axes: Axes, columns: int = 7) -> None:
    """One legend for all panels, of what the given one holds."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


@styled
def svg_bytes(figure: Figure, name: str) -> bytes:
    """The figure as SVG, with ids that no figure of another name shares."""
    content = _saved(figure, "svg", hashsalt=name).decode()
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', content))

    def without_idle_id(tag: re.Match[str]) -> str:
        return tag[0] if tag[2] in used else tag[1]

    # Ids that nothing refers to would clash where figures share a page.
    return re.sub(r'(<\w[^<>]*?) id="([^"]*)"', without_idle_id, content).encode()


@styled
def png_bytes(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as PNG. Letters that the font lacks are boxes there; SVG shows them."""
    return _saved(figure, "png", dpi=dpi)


def _saved(figure: Figure, form: str, *, dpi: float = 100, hashsalt: str = "") -> bytes:
    kept = ("Date", "Creator", "Format", "Type") if form == "svg" else ("Software",)
    file = io.BytesIO()
    with warnings.catch_warnings(), style.context({"svg.hashsalt": f"brickwork {hashsalt}"}):
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(file, format=form, dpi=dpi, metadata=dict.fromkeys(kept))
    return file.getvalue()
