"""GROWTHS: every way to make a model larger.

A row names the function that plans it. An outside package adds rows through the entry-point group
``brickwork.growths``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Literal

from brickwork.errors import GrowthError, UnknownNameError

Part = Literal["width", "heads", "hidden", "depth", "vocab", "experts", "context"]


@dataclass(frozen=True)
class GrowthRow:
    """One row of GROWTHS.

    Attributes:
        part: what grows; with ``name`` it is one of a kind.
        name: how.
        meaning: one line for people.
        keeps: what the grown model has in common with the old one.
        target: ``"module:function"`` that plans it.
        options: ``"module:class"`` of what it is told.
        source: the paper.
    """

    part: Part
    name: str
    meaning: str
    keeps: str
    target: str
    options: str
    source: str


NOTHING = "nothing promised"
_OPTIONS = "brickwork.grow.options"
_SAME, _OLD, _SHORT = (
    "all logits", "the logits of old tokens", "all logits of texts no longer than before",
)  # fmt: skip
_ROWS = (
    GrowthRow(
        "width", "split", "copies of neurons, whose outgoing weights are divided", _SAME,
        "brickwork.grow.width:split_width", f"{_OPTIONS}:SplitOptions",
        "Chen et al. 2016, arXiv:1511.05641",
    ),
    GrowthRow(
        "width", "zero", "new neurons that say nothing at first", _SAME,
        "brickwork.grow.width:zero_width", f"{_OPTIONS}:WidthOptions",
        "Chen et al. 2022, arXiv:2110.07143",
    ),
    GrowthRow(
        "heads", "groups", "key and value heads more, each with its query heads", _SAME,
        "brickwork.grow.heads:add_groups", f"{_OPTIONS}:GroupOptions",
        "Chen et al. 2016, arXiv:1511.05641",
    ),
    GrowthRow(
        "heads", "queries", "query heads more in every group", _SAME,
        "brickwork.grow.heads:add_queries", f"{_OPTIONS}:QueryOptions",
        "Chen et al. 2016, arXiv:1511.05641",
    ),
    GrowthRow(
        "heads", "wider", "every head several times as wide (rotary positions)", _SAME,
        "brickwork.grow.heads:widen_heads", f"{_OPTIONS}:WiderOptions",
        "rotations: Su et al. 2021, arXiv:2104.09864",
    ),
    GrowthRow(
        "hidden", "zero-extend", "zeros behind the stream, norms corrected (RMSNorm)", _SAME,
        "brickwork.grow.hidden:zero_extend", f"{_OPTIONS}:HiddenOptions",
        "Chen et al. 2022, arXiv:2110.07143",
    ),
    GrowthRow(
        "hidden", "duplicate", "every number of the stream as often", _SAME,
        "brickwork.grow.hidden:duplicate_hidden", f"{_OPTIONS}:DuplicateOptions",
        "Chen et al. 2016, arXiv:1511.05641",
    ),
    GrowthRow(
        "hidden", "duplicate-some", "some numbers of the stream twice", NOTHING,
        "brickwork.grow.hidden:duplicate_some", f"{_OPTIONS}:DuplicateOptions",
        "Chen et al. 2022, arXiv:2110.07143",
    ),
    GrowthRow(
        "depth", "identity", "blocks that say nothing at first, anywhere", _SAME,
        "brickwork.grow.depth:insert_identity", f"{_OPTIONS}:PlaceOptions",
        "Wu et al. 2024, arXiv:2401.02415",
    ),
    GrowthRow(
        "depth", "blocks", "silent blocks behind equal groups of layers (LLaMA-Pro)", _SAME,
        "brickwork.grow.depth:expand_blocks", f"{_OPTIONS}:BlockOptions",
        "Wu et al. 2024, arXiv:2401.02415",
    ),
    GrowthRow(
        "depth", "copy", "copies of layers", NOTHING,
        "brickwork.grow.depth:copy_layers", f"{_OPTIONS}:PlaceOptions",
        "Gong et al. 2019, ICML",
    ),
    GrowthRow(
        "depth", "stack", "the model on top of itself, but for a seam (SOLAR)", NOTHING,
        "brickwork.grow.depth:stack_layers", f"{_OPTIONS}:StackOptions",
        "Kim et al. 2023, arXiv:2312.15166",
    ),
    GrowthRow(
        "vocab", "mean", "new tokens from the mean of all old ones", _OLD,
        "brickwork.grow.vocabulary:add_mean", f"{_OPTIONS}:VocabularyOptions",
        "Hewitt 2021",
    ),
    GrowthRow(
        "vocab", "pieces", "new tokens from the mean of the tokens they were written with", _OLD,
        "brickwork.grow.vocabulary:add_pieces", f"{_OPTIONS}:VocabularyOptions",
        "Sachidananda et al. 2021, arXiv:2109.12308",
    ),
    GrowthRow(
        "experts", "upcycle", "a mixture of copies of the dense FFN", _SAME,
        "brickwork.grow.experts:upcycle", f"{_OPTIONS}:UpcycleOptions",
        "Komatsuzaki et al. 2023, arXiv:2212.05055",
    ),
    GrowthRow(
        "experts", "copies", "every expert of a mixture as often, and as many more per token",
        _SAME, "brickwork.grow.experts:add_copies", f"{_OPTIONS}:CopiesOptions",
        "arXiv:2604.19835",
    ),
    GrowthRow(
        "context", "extend", "more positions, rotations as they are", _SHORT,
        "brickwork.grow.context:extend_context", f"{_OPTIONS}:ContextOptions",
        "Beltagy et al. 2020, arXiv:2004.05150",
    ),
    GrowthRow(
        "context", "dynamic", "rotation slows down as the text grows", _SHORT,
        "brickwork.grow.context:scale_dynamically", f"{_OPTIONS}:ContextOptions",
        "Peng et al. 2023, arXiv:2309.00071",
    ),
    GrowthRow(
        "context", "linear", "positions squeezed into the old range", NOTHING,
        "brickwork.grow.context:scale_linearly", f"{_OPTIONS}:ContextOptions",
        "Chen et al. 2023, arXiv:2306.15595",
    ),
    GrowthRow(
        "context", "yarn", "slow rotations squeezed, fast ones not", NOTHING,
        "brickwork.grow.context:scale_yarn", f"{_OPTIONS}:ContextOptions",
        "Peng et al. 2023, arXiv:2309.00071",
    ),
)  # fmt: skip


@cache
def growths() -> Mapping[tuple[str, str], GrowthRow]:
    """All rows by part and name, those of installed packages included."""
    rows: dict[tuple[str, str], GrowthRow] = {(row.part, row.name): row for row in _ROWS}
    for entry in entry_points(group="brickwork.growths"):
        row = entry.load()
        if (row.part, row.name) in rows:
            raise GrowthError(f"two packages define the growth {row.part} {row.name}; remove one.")
        rows[row.part, row.name] = row
    return rows


def find_growth(part: str, name: str) -> GrowthRow:
    """The row of that part and name, or an error that lists the nearest names."""
    parts = sorted({row.part for row in growths().values()})
    if part not in parts:
        raise UnknownNameError("part to grow", part, parts)
    if (part, name) not in growths():
        known = [row.name for row in growths().values() if row.part == part]
        raise UnknownNameError(f"way to grow {part}", name, known)
    return growths()[part, name]
