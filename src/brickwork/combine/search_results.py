"""What a search found, as JSON documents: plain data without torch, for reports."""

from typing import Any, Literal

from brickwork.measure.results import Result

SEARCH_FILE, LEARNED_FILE = "search.json", "learned.json"


class TrialRow(Result):
    """One candidate, parent or single method, and what it reaches.

    Attributes:
        number: of the trial; -1 for parents and single methods, which are not part of the search.
        kind: what it is.
        label: what people call it.
        parameters: of the method, for each block of layers.
        seed: of its random choices.
        values: the objectives on the instances that were searched on; None if it failed.
        held_out: the same on instances that the search never saw; None where not measured.
        reason: why it failed.
        front: whether no other trial is better in one objective and as good in all others.
    """

    number: int
    kind: Literal["trial", "parent", "method"]
    label: str
    method: str
    parameters: tuple[dict[str, Any], ...]
    rank: int | None
    seed: int
    values: dict[str, float] | None
    held_out: dict[str, float] | None = None
    reason: str = ""
    front: bool = False


class SearchResult(Result):
    """A whole search."""

    format: Literal[1] = 1
    brickwork: str
    base: str
    fingerprint: str
    operands: tuple[str, ...]
    data: str
    instances: int
    held_out: int
    objectives: tuple[str, ...]
    sampler: str
    seed: int
    recipe: dict[str, Any]
    rows: tuple[TrialRow, ...]


class LearnedResult(Result):
    """Learned coefficients beside uniform ones and none.

    Attributes:
        weights: for every brick its weight, or one for each group of layers.
        search: nats per token on the instances that were learned from: without bricks, with
            uniform weights (all 1, and 1 over their number), each brick alone, and learned.
        held_out: the same on others.
    """

    format: Literal[1] = 1
    brickwork: str
    base: str
    fingerprint: str
    by: str
    data: str
    instances: int
    held_out_instances: int
    seed: int
    evaluations: int
    weights: dict[str, tuple[float, ...]]
    search: dict[str, float]
    held_out: dict[str, float]
    history: tuple[float, ...]
