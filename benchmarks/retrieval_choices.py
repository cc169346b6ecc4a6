"""What the choices inside retrieval are worth: where a brick stands, and how its threshold is set.

    python -m benchmarks.retrieval_choices --exemplars 4 --json out.json

Takes the options of ``benchmarks/retrieval.py``. ``accuracy`` is the share of instructions that
find their brick first, by where a brick stands; ``balance`` the mean of "kept on topic" and
"turned away off topic", by how thresholds are set.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.retrieval import (
    Task,
    base_states,
    corpus_of,
    embedders,
    load,
    parse,
    report,
    rounds,
)
from brickwork.route.calibrate import balanced_threshold, calibrate
from brickwork.route.embedders import Embedder, Vectors, unit
from brickwork.route.index import Index, build_index
from brickwork.route.texts import BrickTexts


def accuracies(index: Index, queries: Vectors, owner: np.ndarray) -> dict[str, float]:
    """By where a brick stands."""
    columns: dict[str, list[np.ndarray]] = {}
    for brick, matrix in zip(index.bricks, index.matrices, strict=True):
        exemplars = matrix[: len(brick.instructions)]
        function = queries @ matrix[-1]
        cosines = np.sort(queries @ exemplars.T, axis=1)
        centroid = queries @ unit(exemplars.sum(0))
        placed = {
            "centroid": centroid,
            "centroid with function": queries @ unit(matrix.sum(0)),
            "3/4 centroid + 1/4 function": 0.75 * centroid + 0.25 * function,
            "mean of two nearest": cosines[:, -2:].mean(1),
            "nearest": cosines[:, -1],
            "function alone": function,
        }
        for name, column in placed.items():
            columns.setdefault(name, []).append(column)
    found = {name: np.stack(each, 1).argmax(1) for name, each in columns.items()}
    return {name: float((best == owner).mean()) for name, best in found.items()}


def balances(index: Index, on: Vectors, off: Vectors) -> dict[str, float]:
    """By how thresholds are set."""
    own, owner = index.rehearsal.own, index.rehearsal.owner
    foreign = index.rehearsal.foreign
    kept, strange = index.scores(on), index.scores(off)
    bricks = range(len(index.bricks))
    rules: dict[str, float | np.ndarray] = {
        "one for all": balanced_threshold(own, foreign.max(1)),
        "one per brick": np.array(
            [balanced_threshold(own[owner == b], foreign[owner != b, b]) for b in bricks]
        ),
        "ours": calibrate(index).thresholds,
        "one for all, in hindsight": balanced_threshold(kept.max(1), strange.max(1)),
    }
    return {name: balance(limit, kept, strange) for name, limit in rules.items()}


def balance(limit: float | np.ndarray, kept: np.ndarray, strange: np.ndarray) -> float:
    above = float((kept > limit).any(1).mean())
    return (above + float((strange <= limit).all(1).mean())) / 2


def pairs_kept(corpus: list[BrickTexts], embedder: Embedder, queries: Vectors) -> dict[str, float]:
    """Share kept on topic where every brick has a twin, with and without knowing of twins."""
    halves = [
        replace(b, hash=f"{b.hash}{half}", reference=f"{b.reference}{half}",
                exemplars=b.exemplars[half::2])
        for b in corpus
        for half in (0, 1)
    ]  # fmt: skip
    index, blind = (build_index(halves, embedder) for _ in range(2))
    alone = np.eye(len(halves), dtype=bool)
    vars(blind)["rehearsal"] = replace(index.rehearsal, twins=alone, same=alone)
    scores = index.scores(queries)
    limits = {"twins known": calibrate(index).thresholds, "not known": calibrate(blind).thresholds}
    return {name: float((scores > limit).any(1).mean()) for name, limit in limits.items()}


def evaluate(embedder: Embedder, stored: dict[str, Task], off: Sequence[str]) -> dict[str, float]:
    index = build_index(corpus_of(stored), embedder)
    places = {brick.reference: place for place, brick in enumerate(index.bricks)}
    asked = [(places[name], query) for name, task in stored.items() for query in task.queries]
    on = embedder.embed([query for _, query in asked])
    owner = np.array([place for place, _ in asked])
    return (
        {f"accuracy: {k}": v for k, v in accuracies(index, on, owner).items()}
        | {f"balance: {k}": v for k, v in balances(index, on, embedder.embed(off)).items()}
        | {f"kept, pairs: {k}": v for k, v in pairs_kept(corpus_of(stored), embedder, on).items()}
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.exemplars < 2:
        sys.exit("at least two exemplars are needed to leave one out")
    tasks, elsewhere = load(options)
    states = base_states(options.model) if options.model else None
    found: dict[str, list[dict[str, float]]] = {}
    for stored, off_topic in rounds(tasks, elsewhere, options):
        for name, embedder in embedders(options, states, corpus_of(stored)):
            found.setdefault(name, []).append(evaluate(embedder, stored, off_topic))
    report(found, options)


if __name__ == "__main__":
    main()
