"""Numbers as a reader sees them."""

import math
from collections.abc import Sequence

from brickwork.measure.results import Interval

_SPACE = "\u00a0"  # a number and its unit stay on one line


def score(value: float) -> str:
    """Two decimals.

    >>> score(0.937)
    '0.94'
    """
    return f"{value:.2f}"


def percent(share: float) -> str:
    """A share in percent, with a decimal where it is small.

    >>> percent(0.8123), percent(0.0123), percent(0.05), percent(0.0002)
    ('81\\xa0%', '1.2\\xa0%', '5\\xa0%', '<\\xa00.1\\xa0%')
    """
    if 0 < share < 0.0005:
        return f"<{_SPACE}0.1{_SPACE}%"
    return f"{_hundredfold(share).removesuffix('.0')}{_SPACE}%"


def percent_interval(estimate: Interval) -> str:
    """A share in percent with its bounds."""
    value, low, high = (_hundredfold(number).removesuffix(".0") for number in _numbers(estimate))
    return f"{value}{_SPACE}% [{low}, {high}]"


def percent_spread(shares: Sequence[float]) -> str:
    """The smallest and the largest share in percent, or the only one.

    >>> percent_spread([0.012, 0.5])
    '1.2\\xa0% to 50\\xa0%'
    """
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"


def change(relative: float) -> str:
    """A relative change in percent, always with its sign; long numbers as powers of ten.

    >>> change(1.12), change(-0.031), change(45678.0)
    ('+112\\xa0%', '-3.1\\xa0%', '+4.6e6\\xa0%')
    """
    return f"{brief_change(relative)}{_SPACE}%"


def brief_change(relative: float) -> str:
    """The same without its unit, for the cells of a figure."""
    text = _hundredfold(abs(relative))
    return text if text in ("0", "nan") else f"{'-' if relative < 0 else '+'}{text}"


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """The smallest and the largest, or the only one.

    >>> spread([0.5, 0.25]), spread([0.5])
    ('0.25 to 0.50', '0.50')
    """
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def interval(estimate: Interval, form: str = "{:.2f}") -> str:
    """The estimate with its bounds."""
    value, low, high = (form.format(number) for number in _numbers(estimate))
    return f"{value} [{low}, {high}]"


def change_interval(estimate: Interval) -> str:
    """A relative change in percent with its bounds."""
    value, low, high = map(brief_change, _numbers(estimate))
    return f"{value}{_SPACE}% [{low}, {high}]"


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "layer"), count(1200, "neuron"), count(7, "functionality")
    ('1 layer', '1,200 neurons', '7 functionalities')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"


def amount(number: int) -> str:
    """A large number in words.

    >>> amount(21_300_000), amount(950)
    ('21.3 million', '950')
    """
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return str(number)


def _numbers(estimate: Interval) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _hundredfold(share: float) -> str:
    value = 100 * share
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 10_000:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    if abs(value) >= 9.95 or abs(value) < 0.05:
        return f"{value:.0f}" if abs(value) >= 0.05 else "0"
    return f"{value:.1f}"
