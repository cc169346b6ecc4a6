"""The document of an analysis, read from its folder without trust."""

from collections.abc import Iterator
from pathlib import Path

from brickwork.measure.results import FILE, FORMAT, Analysis, Overlap, OverlapMatrix
from brickwork.report.document import read_document


def read_analysis(folder: Path) -> Analysis:
    """The analysis in a folder, checked to be one that a report can be drawn from.

    Args:
        folder: where ``analysis.json`` lies.

    Raises:
        DataError: if the file is missing, is not JSON, is of another format, lacks a field or
            contradicts itself; the message names every field in question.
    """
    return read_document(
        folder / FILE, Analysis, _contradictions, format=FORMAT, what="an analysis"
    )


def _contradictions(analysis: Analysis) -> Iterator[str]:
    """Lengths that do not belong together, which the schema alone cannot see."""
    edges = len(analysis.sparsity.edges)
    for layer in analysis.sparsity.layers:
        if not len(layer.activation) == len(layer.magnitude) == edges:
            yield f"sparsity.layers, layer {layer.layer}: needs one share for each of {edges} edges"
    yield from _overlap_contradictions(analysis.overlap)
    names = [ablation.name for ablation in analysis.perturbation.ablations]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"perturbation.ablations: the name {name!r} is given twice"


def _overlap_contradictions(overlap: Overlap) -> Iterator[str]:
    size = len(overlap.functions)
    places = [("pooled", overlap.pooled)]
    places += [(f"layers.{number}", matrix) for number, matrix in enumerate(overlap.layers)]
    for place, matrix in places:
        if not _square(matrix, size):
            yield f"overlap.{place}.values: needs {size} rows of {size} numbers"
    merges = overlap.linkage
    if len(merges) != max(size - 1, 0) or any(len(merge) != 4 for merge in merges):
        yield f"overlap.linkage: needs {max(size - 1, 0)} rows of 4 numbers"
    elif not _joins_each_once(merges, size):
        yield "overlap.linkage: needs every cluster to be joined once, after it was made"


def _square(matrix: OverlapMatrix, size: int) -> bool:
    return len(matrix.values) == size and all(len(row) == size for row in matrix.values)


def _joins_each_once(merges: list[list[float]], size: int) -> bool:
    joined = [child for merge in merges for child in merge[:2]]
    made = all(child < size + step for step, merge in enumerate(merges) for child in merge[:2])
    return made and sorted(joined) == list(range(len(joined)))
