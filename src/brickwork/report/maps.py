"""Heat maps with their numbers in the cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, Normalize, SymLogNorm
from numpy.typing import NDArray

from brickwork.report.style import INK, WIDTH, short

_MISSING = "#efefef"
_SMALLEST, _LARGEST = 5.0, 8.5  # points


@dataclass(frozen=True)
class Scale:
    """What the colours of a map mean."""

    colours: str
    """The name of a colour map of matplotlib."""
    norm: Normalize

    def map(self) -> Colormap:
        """The colour map, with a grey for what was not measured."""
        return mpl.colormaps[self.colours].with_extremes(bad=_MISSING)


@dataclass(frozen=True)
class Cells:
    """What stands in the cells of a map."""

    text: Callable[[float], str]
    strong: NDArray[np.bool_]
    """Cells whose number is set in bold."""


def share_scale(high: float, colours: str = "YlGnBu") -> Scale:
    """From 0, light, to the given number, dark."""
    return Scale(colours, Normalize(0.0, high if high > 0 else 1.0))


def change_scale(most: float = 1000.0) -> Scale:
    """Changes in percent: blue below 0, white at 0, red above; even to 5, then by powers of ten."""
    return Scale("RdBu_r", SymLogNorm(5.0, linscale=0.5, vmin=-most, vmax=most, clip=True))


def grid(rows: Sequence[Mapping[str, float | None]], columns: Sequence[str]) -> NDArray[np.float64]:
    """The rows' numbers under each name; NaN where a row has none."""
    values = [[row.get(name) for name in columns] for row in rows]
    numbers = [[np.nan if value is None else value for value in row] for row in values]
    return np.array(numbers, dtype=np.float64).reshape(len(rows), len(columns))


def heat_map(
    axes: Axes,
    values: NDArray[np.float64],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    scale: Scale,
    cells: Cells | None = None,
) -> QuadMesh:
    """Draw a matrix, its first row at the top.

    Args:
        axes: where.
        values: one number for each row and column; NaN is drawn grey and without a number.
        rows: labels from top to bottom.
        columns: labels from left to right.
        scale: colours.
        cells: numbers in the cells; left out where they would be too small to read.
    """
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(values),
        cmap=scale.map(),
        norm=scale.norm,
        edgecolors="white",
        linewidth=0.8,
    )
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [short(name, 34) for name in rows])
    _label_columns(axes, columns)
    if cells:
        _write(axes, mesh, values, cells)
    return mesh


def layer_labels(layers: Sequence[int]) -> list[str]:
    """A label for each layer, those in between left empty where there are many."""
    step = max(1, -(-len(layers) // 16))
    return [str(layer) if place % step == 0 else "" for place, layer in enumerate(layers)]


def _label_columns(axes: Axes, columns: Sequence[str]) -> None:
    labels = [short(name) for name in columns]
    slanted = max(map(len, labels), default=0) * len(labels) > 88 * _share(axes)
    axes.set_xticks(
        np.arange(len(labels)) + 0.5,
        labels,
        rotation=30 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor",
    )


def _write(axes: Axes, mesh: QuadMesh, values: NDArray[np.float64], cells: Cells) -> None:
    texts = {
        (row, column): cells.text(value)
        for (row, column), value in np.ndenumerate(values)
        if np.isfinite(value)
    }
    size = _size(axes, max(map(len, texts.values()), default=1), values.shape[1])
    if size < _SMALLEST:
        return
    colours = mesh.to_rgba(np.ma.masked_invalid(values))
    for (row, column), text in texts.items():
        brightness = colours[row, column, :3] @ (0.299, 0.587, 0.114)
        axes.text(
            column + 0.5,
            row + 0.5,
            text,
            ha="center",
            va="center",
            fontsize=size,
            color=INK if brightness > 0.55 else "white",
            fontweight="bold" if cells.strong[row, column] else "normal",
        )


def _size(axes: Axes, letters: int, columns: int) -> float:
    """Points that let the longest text fit into a cell, before the layout is known."""
    return min(_LARGEST, 72 * 0.72 * WIDTH * _share(axes) / columns / (0.75 * letters))


def _share(axes: Axes) -> float:
    """Share of the figure's width that the panel was given."""
    spec = axes.get_subplotspec()
    if spec is None:
        return 1.0
    ratios = np.ravel(spec.get_gridspec().get_width_ratios() or [1.0])
    return float(ratios[list(spec.colspan)].sum() / ratios.sum()) if len(ratios) > 1 else 1.0
