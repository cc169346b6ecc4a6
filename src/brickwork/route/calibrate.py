"""When is a score high enough? Thresholds from the bricks' own instructions.

Rehearsal: every instruction is left out of its brick once and scored against it (on topic), and
scored against all other bricks (off topic: its brick is taken to be missing from the store).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from brickwork.route.embedders import Vectors
from brickwork.route.index import Index

# Chosen on four sets of texts with three embedders (docs/log.md); none of them is sharp.
_PRIOR = 3  # the store's mean reach counts as much as this many exemplars of the brick's own
_OFF_TOPIC_QUANTILE = 0.75
_BLIND_FRACTION = 0.75  # about what rehearsal finds, for a store where there is nothing to rehearse
_SAME_TEXT = 0.999


@dataclass(frozen=True, eq=False)
class Calibration:
    """One threshold per brick: ``floor + fraction * reach``.

    Attributes:
        thresholds: an instruction suits a brick if it scores above; in [0, 0.999].
        reach: how far above the floor a brick's own instructions score.
        floor: the mean score of instructions that a brick does not serve.
        kept: share of the rehearsed on-topic instructions that their own brick wins above its
            threshold; NaN without any.
        turned_away: share of the rehearsed off-topic instructions above none; NaN without any.
        note: what could not be rehearsed, or empty.
    """

    thresholds: Float32[np.ndarray, " bricks"]
    reach: Float32[np.ndarray, " bricks"]
    floor: float
    kept: float
    turned_away: float
    note: str


def calibrate(index: Index, background: Vectors | None = None) -> Calibration:
    """Thresholds that tell a brick's instructions from all others.

    A brick's reach is the mean of its left-out scores above the floor, drawn towards the store's
    mean the fewer exemplars it has. The fraction is one for all bricks: the one of best balanced
    accuracy in rehearsal, where a wrong brick does not count as kept, but never one that lets
    pass more than a quarter of the off-topic instructions.

    With too little to rehearse it does what it can: without a brick of two instructions, only
    off-topic scores count; without off-topic ones (a single brick, no background), the fraction
    is 0.75; without either, nothing but the brick's very text passes. ``note`` says so.

    Args:
        index: the bricks, at least one.
        background: vectors of instructions that no brick serves.
    """
    own, owner, foreign = index.rehearsal.own, index.rehearsal.owner, index.rehearsal.foreign
    right = own > foreign.max(1)
    if background is not None:
        foreign = np.concatenate([foreign, index.scores(background)])
    foreign = foreign[np.isfinite(foreign).any(1)]
    known = np.isfinite(own)
    floor = float(foreign[np.isfinite(foreign)].mean()) if len(foreign) else 0.0
    reach = _reach(index, floor)
    on_topic = np.where(right, (own - floor) / reach[owner], -np.inf)[known]
    off_topic = ((foreign - floor) / reach).max(1)
    fraction = _fraction(on_topic, off_topic)
    return Calibration(
        np.clip(floor + fraction * reach, 0, _SAME_TEXT).astype(np.float32),
        reach,
        floor,
        _share(on_topic > fraction),
        _share(off_topic <= fraction),
        _note(bool(len(on_topic)), bool(len(off_topic))),
    )


def balanced_threshold(on: Float[np.ndarray, " on"], off: Float[np.ndarray, " off"]) -> float:
    """The threshold with the best mean of "``on`` above it" and "``off`` not above it".

    Of several equally good ones it is the middle of the middle gap between scores.

    >>> balanced_threshold(np.array([0.6, 0.8]), np.array([0.1, 0.2]))
    0.4
    """
    values = np.unique(np.concatenate([on, off]))
    middles = (values[1:] + values[:-1]) / 2
    candidates = np.concatenate([[values[0] - 1e-6], middles, [values[-1] + 1e-6]])
    kept = 1 - np.searchsorted(np.sort(on), candidates, side="right") / len(on)
    turned_away = np.searchsorted(np.sort(off), candidates, side="right") / len(off)
    balance = kept + turned_away
    best = np.flatnonzero(balance >= balance.max() - 1e-9)
    return float(candidates[best[len(best) // 2]])


def _reach(index: Index, floor: float) -> Float32[np.ndarray, " bricks"]:
    own, owner = index.rehearsal.own, index.rehearsal.owner
    bricks = range(len(index.bricks))
    means = np.array([own[owner == brick].mean() for brick in bricks]) - floor
    known = np.isfinite(means)
    if not known.any():
        return np.ones(len(bricks), np.float32)
    store = max(float(means[known].mean()), 1e-3)
    weight = np.array([len(brick.instructions) - 1 for brick in index.bricks]) * known
    mine = np.where(known, np.maximum(means, 0), 0)
    reach: Float32[np.ndarray, " bricks"] = (weight * mine + _PRIOR * store) / (weight + _PRIOR)
    return reach.astype(np.float32)


def _fraction(on: Float[np.ndarray, " on"], off: Float[np.ndarray, " off"]) -> float:
    if not len(off):
        return _BLIND_FRACTION if len(on) else np.inf
    ceiling = float(np.quantile(off, _OFF_TOPIC_QUANTILE))
    return max(balanced_threshold(on, off), ceiling) if len(on) else ceiling


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if len(hits) else float("nan")


def _note(on_topic: bool, off_topic: bool) -> str:
    if on_topic and off_topic:
        return ""
    if off_topic:
        return "no brick has two exemplars, so thresholds come from other bricks' texts alone"
    if on_topic:
        return (
            "no other brick and no background instructions to compare with, so the threshold is "
            "a guess; add background instructions that no brick serves"
        )
    return (
        "one text and nothing to compare with, so only the brick's very text finds it; give the "
        "brick more exemplars"
    )
