"""The vectors of a corpus, and how well a brick suits an instruction: brute-force search.

A brick stands at the centroid of its instructions' vectors, its function counted as one more.
Against the mean of the two nearest exemplars, the nearest alone, and weighted sums with the
function's own vector, this was best or within noise of the best for every embedder, number of
exemplars and set of texts; it wins most where exemplars are few (docs/log.md, command:
python -m benchmarks.retrieval_choices).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int

from brickwork.errors import StoreError
from brickwork.route.embedders import Embedder, Vectors, unit
from brickwork.route.texts import BrickTexts, with_texts

# Where two bricks of a store do the same, each would teach the other's threshold to turn away what
# both serve: of 100 instructions, a store of such pairs with 4 exemplars each kept at most 9, and
# 69 to 95 once pairs were told apart from rivals (docs/log.md). Fewer exemplars do not suffice.
_NEAR = 0.9
_ENOUGH_EXEMPLARS = 3


class VectorCache(Protocol):
    """Where vectors of bricks are kept by embedder and content hash: a store."""

    def vectors(self, embedder_id: str, /) -> dict[str, Vectors]: ...

    def texts_hashes(self, embedder_id: str, /) -> dict[str, str]: ...

    def put_vectors(
        self, embedder_id: str, content: str, matrix: Vectors, texts_hash: str, /
    ) -> None: ...


@dataclass(frozen=True, eq=False)
class Index:
    """Bricks by reference, each with the matrix of its texts."""

    bricks: tuple[BrickTexts, ...]
    matrices: tuple[Vectors, ...]

    @cached_property
    def centroids(self) -> Float32[np.ndarray, "bricks dim"]:
        """Where the bricks stand, at length 1."""
        return unit(np.stack([matrix.sum(0) for matrix in self.matrices]))

    def scores(self, queries: Vectors) -> Float32[np.ndarray, "texts bricks"]:
        """Cosine of every query with every brick, in [-1, 1]; 0 for a query of zeros."""
        scores: Float32[np.ndarray, "texts bricks"] = queries @ self.centroids.T
        return scores

    @cached_property
    def rehearsal(self) -> "Rehearsal":
        """The corpus' own instructions as queries."""
        return _rehearse(self)


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What the bricks' own instructions would score as queries.

    Attributes:
        scores: each instruction against each brick; against its own brick as if it were not one
            of that brick's texts, and NaN if it is the brick's only instruction.
        owner: which brick each instruction is of.
        same: bricks that share a text, each with itself too: one found for the other's
            instruction is no mistake.
        twins: these, and bricks whose instructions suit the other about as well as their own.
    """

    scores: Float32[np.ndarray, "texts bricks"]
    owner: Int[np.ndarray, " texts"]
    same: Bool[np.ndarray, "bricks bricks"]
    twins: Bool[np.ndarray, "bricks bricks"]

    @property
    def own(self) -> Float32[np.ndarray, " texts"]:
        """Each instruction's score against its own brick."""
        own: Float32[np.ndarray, " texts"] = self.scores[np.arange(len(self.owner)), self.owner]
        return own

    @property
    def foreign(self) -> Float32[np.ndarray, "texts bricks"]:
        """The scores, with -inf for an instruction's own brick and its twins."""
        return np.where(self.twins[self.owner], -np.inf, self.scores).astype(np.float32)

    @property
    def accuracy(self) -> float:
        """Share of left-out instructions that find their brick first; NaN if there is no telling.

        There is with two bricks that share no text, one of them with two instructions.
        """
        rivals = np.where(self.same[self.owner], -np.inf, self.scores).max(1)
        known = np.isfinite(self.own) & np.isfinite(rivals)
        return float(np.mean(self.own[known] > rivals[known])) if known.any() else float("nan")


def build_index(
    corpus: Sequence[BrickTexts], embedder: Embedder, cache: VectorCache | None = None
) -> Index:
    """The index of all bricks that have texts; only those that the cache misses are embedded.

    Raises:
        DataError: if a brick is in the corpus twice.
    """
    bricks = with_texts(corpus)
    cache = None if embedder.fitted else cache
    known = _kept(cache, embedder.id, bricks) if cache else {}
    missing = [brick for brick in bricks if brick.hash not in known]
    if missing:
        rows = embedder.embed([text for brick in missing for text in brick.texts])
        ends = np.cumsum([len(brick.texts) for brick in missing])[:-1]
        for brick, matrix in zip(missing, np.split(rows, ends), strict=True):
            known[brick.hash] = matrix
            if cache:
                _keep(cache, embedder.id, brick, matrix)
    return Index(bricks, tuple(known[brick.hash] for brick in bricks))


def _kept(cache: VectorCache, embedder_id: str, bricks: Sequence[BrickTexts]) -> dict[str, Vectors]:
    """What the cache has of these bricks, made of the texts they have now."""
    vectors, texts = cache.vectors(embedder_id), cache.texts_hashes(embedder_id)
    current = {b.hash for b in bricks if b.hash in vectors and texts[b.hash] == b.texts_hash}
    return {content: vectors[content] for content in current}


def _keep(cache: VectorCache, embedder_id: str, brick: BrickTexts, matrix: Vectors) -> None:
    try:
        cache.put_vectors(embedder_id, brick.hash, matrix, brick.texts_hash)
    except StoreError:
        return  # a store that can only be read, or is busy: the vectors are made again next time


def _rehearse(index: Index) -> Rehearsal:
    counts = [len(brick.instructions) for brick in index.bricks]
    # A brick with a function alone is rehearsed with that.
    queries = [matrix[: count or 1] for matrix, count in zip(index.matrices, counts, strict=True)]
    owner = np.repeat(np.arange(len(queries)), [len(rows) for rows in queries])
    scores = np.concatenate([index.scores(rows) for rows in queries])
    left_out = [_left_out(m, n) for m, n in zip(index.matrices, counts, strict=True)]
    scores[np.arange(len(owner)), owner] = np.concatenate(left_out)
    same = _same(index.bricks)
    near = _near(scores, owner, same, np.array(counts))
    return Rehearsal(scores, owner, same, same | near)


def _left_out(matrix: Vectors, instructions: int) -> Float32[np.ndarray, " texts"]:
    """Each instruction against the centroid of its brick's other texts."""
    if instructions < 2:
        return np.full(1, np.nan, np.float32)
    rows = matrix[:instructions]
    scores: Float32[np.ndarray, " texts"] = (rows * unit(matrix.sum(0) - rows)).sum(1)
    return scores


def _same(bricks: Sequence[BrickTexts]) -> Bool[np.ndarray, "bricks bricks"]:
    """Pairs of bricks that share a text, and each brick with itself."""
    same = np.eye(len(bricks), dtype=bool)
    users: dict[str, list[int]] = {}
    for number, brick in enumerate(bricks):
        for text in brick.texts:
            users.setdefault(text.casefold(), []).append(number)
    for sharing in users.values():
        same[np.ix_(sharing, sharing)] = True
    return same


def _near(
    scores: Float32[np.ndarray, "texts bricks"],
    owner: Int[np.ndarray, " texts"],
    same: Bool[np.ndarray, "bricks bricks"],
    counts: Int[np.ndarray, " bricks"],
) -> Bool[np.ndarray, "bricks bricks"]:
    """Pairs of bricks whose left-out instructions score as high on the other as on their own."""
    apart = scores[~same[owner]]
    above = np.stack([scores[owner == brick].mean(0) for brick in range(len(counts))])
    above -= apart.mean() if len(apart) else 0.0  # bricks (whose instructions) bricks (scored)
    own = above.diagonal()[:, None]
    near = (above >= _NEAR * own) & (own > 0) & (counts >= _ENOUGH_EXEMPLARS)[:, None]
    both: Bool[np.ndarray, "bricks bricks"] = near & near.T
    return both
