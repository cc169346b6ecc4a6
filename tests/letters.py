"""An embedder, a cache and bricks for tests of retrieval: exact, in memory, without a model."""

import hashlib
import string
from collections.abc import Sequence

import numpy as np

from brickwork.route.embedders import Vectors, unit
from brickwork.route.texts import BrickTexts


class Letters:
    """Counts letters, so texts with the same letters are alike; other signs say nothing."""

    id = "letters"
    fitted = False

    def embed(self, texts: Sequence[str]) -> Vectors:
        rows = [[text.lower().count(letter) for letter in string.ascii_lowercase] for text in texts]
        return unit(np.array(rows, np.float32).reshape(len(texts), 26))


class MemoryCache:
    """What a store does with vectors."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], tuple[Vectors, str]] = {}

    def vectors(self, embedder_id: str) -> dict[str, Vectors]:
        return {h: matrix for (e, h), (matrix, _) in self.kept.items() if e == embedder_id}

    def texts_hashes(self, embedder_id: str) -> dict[str, str]:
        return {h: texts for (e, h), (_, texts) in self.kept.items() if e == embedder_id}

    def put_vectors(self, embedder_id: str, content: str, matrix: Vectors, texts: str) -> None:
        self.kept[embedder_id, content] = (matrix, texts)


def brick(name: str, *exemplars: str, function: str = "") -> BrickTexts:
    """A brick whose hash depends on its name alone."""
    return BrickTexts(hashlib.sha256(name.encode()).hexdigest(), name, function, exemplars)
