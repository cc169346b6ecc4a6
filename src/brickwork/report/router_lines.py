"""Rows of a document on routers as lines that can be drawn, and which of them are best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from brickwork.measure.selection_results import RouterQuality, RouterRow
from brickwork.report.numbers import mean
from brickwork.report.style import INK

FREE = 0.05  # nats; a mean loss that rises by less is called kept
Knows = Literal["input", "activations", "bound", "control"]


class Kind(NamedTuple):
    """What is said of one kind of router, and how it is drawn."""

    knows: Knows
    """Input: only what the FFN is given. Activations: some or all of them, at a cost."""
    colour: str
    marker: str
    dashes: str = "-"


KINDS: Mapping[str, Kind] = {
    "truth": Kind("bound", INK, "*", ":"),
    "magnitude": Kind("bound", "#7a5230", "h", "-."),
    "threshold": Kind("activations", "#E69F00", "v"),
    "activation": Kind("activations", "#882255", "P"),
    "gate": Kind("input", "#0072B2", "o"),
    "mlp": Kind("input", "#D55E00", "D"),
    "similarity": Kind("input", "#56B4E9", "s"),
    "centroid": Kind("input", "#009E73", "^"),
    "linear": Kind("input", "#332288", "<"),
    "fixed": Kind("control", "#b4b4b4", "p"),
    "hash": Kind("control", "#8c8c8c", "d", "-."),
    "random": Kind("control", "#5f5f5f", "X", "--"),
}
"""In the order of the legend; a kind that is not listed is drawn, but never called the best."""
_OTHERS = ("#CC79A7", "#999933", "#4D4D4D")


@dataclass(frozen=True)
class Line:
    """One router with one partition, at all densities, the smallest first."""

    router: str
    level: str
    partition: str
    groups: int
    rows: tuple[RouterRow, ...]

    @property
    def division(self) -> str:
        """What is chosen among."""
        return f"{self.partition} ({self.groups})" if self.partition else "single neurons"

    @property
    def knows(self) -> Knows | None:
        """What it needs to know; once a prompt was read, its activations are no bound."""
        kind = KINDS.get(self.router)
        if self.router == "magnitude" and self.level == "prompt":
            return "activations"
        return kind and kind.knows

    @property
    def usable(self) -> bool:
        """Whether it chooses before the FFN computes any activation that the choice may save."""
        return self.knows == "input" or (self.knows == "activations" and self.level == "prompt")


def rise(quality: RouterQuality, row: RouterRow) -> float:
    """How much the mean loss over functionalities lies above the dense model's, in nats."""
    return mean([row.losses[name] - dense for name, dense in quality.base_losses.items()])


def lines_of(quality: RouterQuality) -> list[Line]:
    """Every router with every partition, in the order of ``KINDS``; of a document of one level."""
    found: dict[tuple[str, str, str, int], list[RouterRow]] = {}
    for row in quality.rows:
        found.setdefault((row.router, row.level, row.partition, row.groups), []).append(row)
    lines = [
        Line(*key, tuple(sorted(rows, key=lambda row: row.density))) for key, rows in found.items()
    ]
    order = [*KINDS, *(line.router for line in lines)]
    return sorted(lines, key=lambda line: order.index(line.router))


def best_lines(quality: RouterQuality) -> list[Line]:
    """Every router with the partition that costs it least, over the densities all of them have."""
    lines = lines_of(quality)
    routers = dict.fromkeys(line.router for line in lines)
    return [
        _least_costly(quality, [line for line in lines if line.router == router])
        for router in routers
    ]


def levels_of(quality: RouterQuality) -> dict[str, RouterQuality]:
    """The document once for each level at which routers choose, with that level's rows alone."""
    levels = sorted({row.level for row in quality.rows}, reverse=True)  # token comes first
    return {
        level: quality.model_copy(
            update={"rows": tuple(row for row in quality.rows if row.level == level)}
        )
        for level in levels
    }


def nats(value: float) -> str:
    """A difference of losses, always with its sign.

    >>> nats(0.0312), nats(1.5), nats(-0.2), nats(0.0)
    ('+0.031', '+1.50', '-0.20', '0')
    """
    text = f"{abs(value):.3f}" if abs(value) < 0.0995 else f"{abs(value):.2f}"
    return f"{'-' if value < 0 else '+'}{text}" if float(text) else "0"


def pareto_front(quality: RouterQuality) -> list[RouterRow]:
    """The rows whose loss nothing as cheap or cheaper reaches, the cheapest first; not truth."""
    rows = [row for row in quality.rows if row.router != "truth"]
    front: list[RouterRow] = []
    for row in sorted(rows, key=lambda row: (row.cost, rise(quality, row))):
        if not front or rise(quality, row) < rise(quality, front[-1]):
            front.append(row)
    return front


def looks_of_routers(quality: RouterQuality) -> dict[str, Kind]:
    """How each router is drawn, in every figure of the document."""
    looks: dict[str, Kind] = {}
    for line in lines_of(quality):
        place = sum(name not in KINDS for name in looks) % len(_OTHERS)
        kind = KINDS.get(line.router, Kind("activations", _OTHERS[place], "oDs"[place]))
        if line.knows == "bound" or kind.knows != "bound":
            looks.setdefault(line.router, kind)
        else:
            looks.setdefault(line.router, kind._replace(knows="activations", dashes="-"))
    return looks


def _least_costly(quality: RouterQuality, lines: Sequence[Line]) -> Line:
    shared = set.intersection(*({row.density for row in line.rows} for line in lines))

    def cost(line: Line) -> float:
        return mean([rise(quality, row) for row in line.rows if row.density in shared])

    return min(lines, key=cost) if shared else max(lines, key=lambda line: len(line.rows))
