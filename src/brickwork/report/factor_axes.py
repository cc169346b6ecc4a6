"""Axes on which equal distances are equal factors, with round numbers at their ticks."""

from collections.abc import Iterable, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

_STEPS = (1, 1.5, 2, 3, 5, 7)


def loss_axis(axes: Axes, values: Sequence[float], which: Literal["x", "y"] = "y") -> None:
    """Even where numbers are alike; by equal factors where the largest is many times the least."""
    if min(values) > 0 and max(values) > 3 * min(values):
        by_factors(axes, which, round_between(min(values), max(values)))


def by_factors(axes: Axes, which: Literal["x", "y"], ticks: Sequence[float]) -> None:
    """An axis on which equal distances are equal factors."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def round_between(low: float, high: float) -> list[float]:
    """Round numbers from the least to the largest, not too many."""
    ticks = [step * 10.0**power for power in range(-4, 6) for step in _STEPS]
    shown = [tick for tick in ticks if 0.95 * low <= tick <= 1.05 * high]
    return shown[:: max(1, -(-len(shown) // 9))]


def apart(ticks: Iterable[float]) -> list[float]:
    """Those of the ticks that leave room for each other on an axis of factors."""
    kept: list[float] = []
    for tick in sorted(ticks):
        if not kept or tick > 1.12 * kept[-1]:
            kept.append(tick)
    return kept
