"""Which bricks of a store suit an instruction, with scores, or none.

Source:
    Xiao et al. 2024, Configurable Foundation Models (arXiv:2409.02877), section 4.1, retrieval of
    customized bricks. The abstention and its thresholds are ours.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from brickwork.errors import DataError
from brickwork.route.calibrate import Calibration, calibrate
from brickwork.route.embedders import Embedder, Vectors
from brickwork.route.index import Index, VectorCache, build_index
from brickwork.route.texts import BrickTexts

# In units of the bricks' mean reach. Two bricks so close are seldom told apart by their scores; up
# to 13 of 100 instructions that were kept chose a second one (docs/log.md).
_CLOSE = 0.1


@dataclass(frozen=True)
class Hit:
    """A brick that was considered.

    Attributes:
        reference: how people call it, ``fr-en@2``.
        hash: its content hash.
        score: cosine of the instruction with the brick, in [-1, 1].
        threshold: the score that it has to exceed.
        chosen: whether it suits the instruction.
        weight: its share among the chosen by score above the floor; 0 if it is not chosen.
    """

    reference: str
    hash: str
    score: float
    threshold: float
    chosen: bool
    weight: float


@dataclass(frozen=True)
class Retrieval:
    """What was found for one instruction.

    Attributes:
        hits: the best bricks and all chosen ones, best score first, chosen or not.
        embedder: id of the embedder that made the vectors.
        seconds: time per instruction, of the embedding and the search.
        reason: why none was chosen; empty if one was.
    """

    hits: tuple[Hit, ...]
    embedder: str
    seconds: float
    reason: str = ""

    @property
    def chosen(self) -> tuple[Hit, ...]:
        """The bricks to use, best first; empty means the base model alone."""
        return tuple(hit for hit in self.hits if hit.chosen)

    @property
    def abstained(self) -> bool:
        """Whether no brick suits the instruction."""
        return not self.chosen


class Retriever:
    """Finds bricks by text. Building one embeds what the cache misses, and calibrates.

    Attributes:
        calibration: the thresholds and how well they did in rehearsal; None without bricks.
        without_texts: references of bricks that say nothing of themselves, so are never found.

    Raises:
        DataError: if a brick is in the corpus twice.
    """

    def __init__(
        self,
        corpus: Sequence[BrickTexts],
        embedder: Embedder,
        *,
        cache: VectorCache | None = None,
        background: Sequence[str] = (),
    ) -> None:
        self.embedder = embedder
        self.index: Index = build_index(corpus, embedder, cache)
        self.without_texts = tuple(sorted(b.reference for b in corpus if not b.texts))
        self.calibration: Calibration | None = None
        if self.index.bricks:
            aside = [text for text in background if text.strip()]
            self.calibration = calibrate(self.index, embedder.embed(aside) if aside else None)

    def retrieve(self, text: str, top: int = 3) -> Retrieval:
        """The bricks for one instruction; see ``retrieve_many``."""
        return self.retrieve_many([text], top)[0]

    def retrieve_many(self, texts: Sequence[str], top: int = 3) -> list[Retrieval]:
        """The bricks for each instruction: those above their thresholds and close to the best one.

        Args:
            texts: instructions; a blank one finds nothing.
            top: how many hits to show at least, 1 or more.

        Raises:
            DataError: if ``top`` is below 1.
        """
        if top < 1:
            raise DataError(f"retrieval was asked for the {top} best bricks; ask for 1 or more.")
        start = time.perf_counter()
        scores = self._scores(texts)
        chosen = self._choose(scores)
        seconds = (time.perf_counter() - start) / max(len(texts), 1)
        return [
            self._retrieval(row, picks, top, seconds)
            for row, picks in zip(scores, chosen, strict=True)
        ]

    def _scores(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts bricks"]:
        scores = np.zeros((len(texts), len(self.index.bricks)), np.float32)
        said = [row for row, text in enumerate(texts) if text.strip()]
        if said and self.index.bricks:
            queries: Vectors = self.embedder.embed([texts[row] for row in said])
            scores[said] = self.index.scores(queries)
        return scores

    def _choose(self, scores: Float32[np.ndarray, "texts bricks"]) -> np.ndarray:
        if self.calibration is None:
            return np.zeros(scores.shape, bool)
        above = scores > self.calibration.thresholds
        best = np.where(above, scores, -np.inf).max(1, keepdims=True)
        chosen: np.ndarray = above & (scores >= best - _CLOSE * self.calibration.reach.mean())
        return chosen

    def _retrieval(
        self, scores: Float32[np.ndarray, " bricks"], chosen: np.ndarray, top: int, seconds: float
    ) -> Retrieval:
        if self.calibration is None:
            reason = "no brick says what it is for; give the bricks a function text and exemplars."
            return Retrieval((), self.embedder.id, seconds, reason)
        order = np.argsort(-scores, kind="stable")  # equal scores: by reference
        shown = [brick for place, brick in enumerate(order) if place < top or chosen[brick]]
        weights = np.where(chosen, np.maximum(scores - self.calibration.floor, 1e-6), 0)
        weights /= weights.sum() or 1
        hits = tuple(
            Hit(
                self.index.bricks[brick].reference,
                self.index.bricks[brick].hash,
                float(scores[brick]),
                float(self.calibration.thresholds[brick]),
                bool(chosen[brick]),
                float(weights[brick]),
            )
            for brick in shown
        )
        return Retrieval(hits, self.embedder.id, seconds, "" if chosen.any() else _reason(hits))


def _reason(hits: tuple[Hit, ...]) -> str:
    best = hits[0]
    return (
        f"no brick scores above its threshold; the best, {best.reference}, scores "
        f"{best.score:.2f} of {best.threshold:.2f}."
    )
