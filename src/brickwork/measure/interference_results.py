"""What a check before merging finds, as one JSON document.

Plain data without torch, so that a page can be drawn from it alone.
"""

from typing import Literal

from pydantic import Field

from brickwork.measure.results import Result

INTERFERENCE_FILE = "interference.json"
FORMAT = 1
Verdict = Literal["redundant", "contradicting", "colliding", "independent"]


class Thresholds(Result):
    """Where one verdict ends and the next begins."""

    redundant: float = 0.8
    """Cosine of the updates from which one repeats the other."""
    contradicting: float = -0.3
    """Cosine from which one undoes the other."""
    colliding: float = 0.3
    """Cosine, or overlap of the outputs above chance as a share of all that is possible, from which
    both write to the same directions."""


class Beside(Result):
    """A number and what it would be by chance."""

    value: float
    expected: float


class Sampled(Beside):
    """A share over the values of an update, and how far it may be off."""

    error: float
    """Standard error between rows; 0 if every row was read."""


class PairNumbers(Result):
    """How the updates of two stand to each other; b is the second."""

    cosine: Beside
    conflicts: Sampled | None
    """Share of the values that both change, in opposite directions; None if they share none."""
    weighted: Sampled | None
    """The same, each value weighted by the product of the two changes."""
    inputs: Beside
    """Overlap of the principal directions that they read: mean squared cosine."""
    outputs: Beside
    """Overlap of the principal directions that they write to."""
    ratio: float
    """Length of a's update over that of b's."""


class SitePair(Result):
    """Two at one site that both change."""

    site: str
    numbers: PairNumbers
    values: int
    """Values that conflicts were counted over."""


class Pair(Result):
    """Two in all sites together; overlaps are means weighted by the lengths of both updates."""

    a: str
    b: str
    numbers: PairNumbers | None
    """None if they share no site."""
    only_a: int
    """Sites that a alone changes."""
    only_b: int
    verdict: Verdict
    advice: str
    sites: list[SitePair]


class Kept(Result):
    """What a merge by one method would leave of each."""

    method: str
    parameters: dict[str, float | bool | str]
    kept: dict[str, float]
    """Inner product of the merged update with the brick's own, over the latter's square: 1 is all
    of it, 0 none, below 0 it is turned round."""
    cosine: dict[str, float]
    """Whether the merged update points where the brick's own does, whatever its length."""


class Neurons(Result):
    """Which neurons of the FFNs a functionality and the updates have in common."""

    function: str
    share: float
    """Of a layer's neurons that are functional, or most written to: what chance gives."""
    energy: dict[str, float]
    """For each brick the share of its change of FFNs that falls on functional neurons."""
    both: list[float]
    """For each pair, the share of the functional neurons that both write to most."""
    both_expected: float


class Interference(Result):
    """The whole document."""

    format: int = FORMAT
    brickwork: str
    kind: Literal["bricks", "models"]
    names: list[str]
    base: str
    forms: list[str]
    sites: dict[str, int]
    """How many sites each changes."""
    rank: int | None
    """Principal directions that were compared at most; None: all that an update has."""
    rows: Literal["all", "some"]
    """Whether shares over values and what methods keep were taken over every row."""
    thresholds: Thresholds = Thresholds()
    pairs: list[Pair]
    kept: list[Kept]
    left_out: dict[str, str]
    """Methods that were not tried, with the reason."""
    neurons: list[Neurons] = Field(default_factory=list)
    seed: int
