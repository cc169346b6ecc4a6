"""The numbers behind the figures, as tables that a reader can sort."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from brickwork.measure.results import Analysis, Interval, LayerScores, RowKind
from brickwork.report.numbers import change_interval, interval, percent, percent_interval, score
from brickwork.report.perturbation import ordered_rows
from brickwork.report.style import short

_LONGEST = 40  # letters of a name
KINDS: Mapping[RowKind, str] = {
    "function": "functional", "random": "control", "resident": "resident", "layer": "one by one",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What a cell says, and the number that its column is sorted by, if it is one."""

    text: str
    order: float | None = None
    title: str | None = None
    """The whole of a text that was shortened."""


@dataclass(frozen=True)
class Table:
    """Columns and rows of one table."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]


@dataclass(frozen=True)
class TableRow:
    """One table of the report."""

    name: str
    title: str
    note: str
    build: Callable[[Analysis], Table]


def functions_table(analysis: Analysis) -> Table:
    """Instances and tokens of each functionality."""
    columns = (
        "functionality", "instances to find units", "instances to measure losses",
        "prompt tokens", "response tokens",
    )  # fmt: skip
    rows = [
        (
            _name(facts.name),
            *map(_count, (facts.localisation, facts.evaluation)),
            *map(_count, (facts.prompt_tokens, facts.response_tokens)),
        )
        for facts in analysis.data.functions
    ]
    return Table(columns, rows)


def base_table(analysis: Analysis) -> Table:
    """The whole model's losses."""
    columns = ("functionality", "response loss", "loss of prompt and response")
    rows = [
        (_name(name), _interval(loss.response), _interval(loss.whole))
        for name, loss in analysis.perturbation.base.items()
    ]
    return Table(columns, rows)


def units_table(analysis: Analysis) -> Table:
    """The best neuron, head and layer for each functionality."""
    columns = (
        "functionality", "address", "score", "null of the best", "p", "score on other half",
        "units above null", "split-half overlap",
    )  # fmt: skip
    functionality = analysis.functionality
    rows = [
        *_units(functionality.neurons, "layers.{}.mlp.neurons[{}]"),
        *_units(functionality.heads, "layers.{}.attn.heads[{}]"),
        *_units(functionality.layers, "layers.{}"),
    ]
    return Table(columns, rows)


def resident_table(analysis: Analysis) -> Table:
    """The resident neurons of each layer."""
    rows = [
        (
            _count(layer.layer),
            _count(len(layer.resident)),
            Cell(_listed(f"layers.{layer.layer}.mlp.neurons", layer.resident)),
        )
        for layer in analysis.functionality.neurons
    ]
    return Table(("layer", "resident neurons", "addresses"), rows)


def sources_table(analysis: Analysis) -> Table:
    """Every pair of source and functionality."""
    columns = (
        "source", "functionality", "with it", "without it", "score within", "chance within",
        "score elsewhere", "chance elsewhere",
    )  # fmt: skip
    rows = [
        (
            _name(row.source),
            _name(row.function),
            *map(_count, (row.positives, row.negatives)),
            *map(_score, (row.within, row.chance, row.elsewhere, row.chance_elsewhere)),
        )
        for row in analysis.functionality.sources
    ]
    return Table(columns, rows)


def perturbation_table(analysis: Analysis) -> Table:
    """Every row of every ablation, on every functionality."""
    columns = (
        "ablation", "taken away", "chosen as", "units", "measured on", "response perplexity",
        "prompt and response",
    )  # fmt: skip
    rows = [
        (
            Cell(ablation.name),
            _name(row.removed),
            Cell(KINDS[row.kind]),
            _count(row.units),
            _name(target),
            _change(rise),
            _change((row.whole or {}).get(target)),
        )
        for ablation in analysis.perturbation.ablations
        for row in ordered_rows(analysis, ablation)
        for target, rise in row.increase.items()
    ]
    return Table(columns, rows)


def overlap_table(analysis: Analysis) -> Table:
    """Every two functionalities."""
    overlap, null = analysis.overlap, analysis.overlap.pooled.null
    rows = []
    for first, second in combinations(range(len(overlap.functions)), 2):
        value = overlap.pooled.values[first][second]
        layers = [matrix.values[first][second] for matrix in overlap.layers]
        rows.append(
            (
                _name(overlap.functions[first]),
                _name(overlap.functions[second]),
                _share(value),
                Cell(percent_interval(null)),
                Cell(_beside(value, null)),
                _share(min(layers, default=value)),
                _share(max(layers, default=value)),
            )
        )
    columns = (
        "functionality", "and", "shared part", "null", "beside the null", "least of a layer",
        "most of a layer",
    )  # fmt: skip
    return Table(columns, rows)


TABLES = (
    TableRow("functions", "Data", "An instance is used to find units or to measure losses, never "
             "for both.", functions_table),
    TableRow("base", "Losses of the whole model", "Nats per token with 95 % bootstrap intervals "
             "over instances; perplexity is e to this power.", base_table),
    TableRow("units", "Best units", "The best unit of each layer for each functionality. The null "
             "is the mean and the 95 % bound of the layer's best for as many instances under "
             "shuffled labels; p is the share of "
             "shuffles whose best is as good, not corrected for the number of layers and "
             "functionalities. Split-half overlap: the shared part of the functional units found "
             "on two halves of the instances; chance gives about the share that counts as "
             "functional.", units_table),
    TableRow("resident", "Resident neurons", "Neurons with one of the largest outputs of their "
             "layer for every functionality.", resident_table),
    TableRow("sources-table", "Source control", "The numbers of the figure on sources.",
             sources_table),
    TableRow("perturbation-table", "Taking units away", "Relative change of perplexity with its "
             "95 % bootstrap interval over instances.", perturbation_table),
    TableRow("overlap-table", "Overlap", "Shared part of the functional neurons, all layers "
             "together; the null is the mean and 95 % range of single pairs under shuffled labels.",
             overlap_table),
)  # fmt: skip
"""In the order of the report."""


def _units(layers: Sequence[LayerScores], address: str) -> Iterator[tuple[Cell, ...]]:
    for layer in layers:
        for name, row in layer.functions.items():
            yield (
                _name(name),
                Cell(address.format(layer.layer, row.best_unit)),
                _interval(row.best),
                Cell(f"{score(row.null.best)}, {score(row.null.best_95)}", row.null.best),
                Cell(f"{row.best_p:.3f}", row.best_p),
                _score(row.other_half),
                Cell(f"{row.above_null:,} of {layer.units:,}", row.above_null),
                _score(row.split_overlap),
            )


def _name(text: str) -> Cell:
    brief = short(text, _LONGEST)
    return Cell(brief, title=None if brief == text else text)


def _count(number: int) -> Cell:
    return Cell(f"{number:,}", number)


def _score(value: float | None) -> Cell:
    return Cell("not measured") if value is None else Cell(score(value), value)


def _share(value: float) -> Cell:
    return Cell(percent(value), value)


def _interval(estimate: Interval) -> Cell:
    return Cell(interval(estimate), estimate.value)


def _change(rise: Interval | None) -> Cell:
    return Cell("not measured") if rise is None else Cell(change_interval(rise), rise.value)


def _listed(part: str, units: Sequence[int]) -> str:
    shown = ",".join(map(str, units[:40]))
    rest = f" and {len(units) - 40} more" if len(units) > 40 else ""
    return f"{part}[{shown}]{rest}" if units else "none"


def _beside(value: float, null: Interval) -> str:
    if value > null.high:
        return "above"
    return "below" if value < null.low else "inside"
