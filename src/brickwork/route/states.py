"""The base model's own hidden states as vectors of texts: no second model, nothing to install."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy.typing import ArrayLike

from brickwork.errors import DataError
from brickwork.route.embedders import Vectors, unit
from brickwork.route.index import Index, VectorCache, build_index
from brickwork.route.texts import BrickTexts, hash_texts


@dataclass(frozen=True)
class BaseStates:
    """A base model as retrieval sees it.

    Attributes:
        id: what changes with the base: its fingerprint's ``weights``.
        states: mean hidden states of texts, (layers + 1, texts, hidden), made for example by
            ``brickwork.measure.states.pooled_states``.
    """

    id: str
    states: Callable[[Sequence[str]], ArrayLike]

    def rows(self, texts: Sequence[str]) -> Float32[np.ndarray, "states texts hidden"]:
        """The states, every row at length 1."""
        states = np.asarray(self.states(texts), np.float32)
        if states.ndim != 3 or states.shape[1] != len(texts) or not np.isfinite(states).all():
            raise DataError(
                f"the base's states of {len(texts)} texts must be finite and of shape (layers + 1, "
                f"{len(texts)}, hidden), these are {list(states.shape)}; see pooled_states."
            )
        return unit(states)


class StatesEmbedder:
    """Hidden states of one layer, centred on the corpus.

    States of any two texts share a large part that says nothing; the mean over the corpus' texts
    stands for it. The layer is the one whose vectors find the brick of most left-out exemplars:
    the lowest of several, the last if there is no telling. A cache keeps the states of all layers,
    so that another brick costs its own texts only.

    Attributes:
        layer: 0 for the input embeddings.
        accuracy: share of left-out exemplars that find their brick; NaN if there is no telling.
    """

    fitted = True

    def __init__(
        self, corpus: Sequence[BrickTexts], base: BaseStates, cache: VectorCache | None = None
    ) -> None:
        every = build_index(corpus, _AllLayers(base), cache)
        texts = [text for brick in every.bricks for text in brick.texts]
        if not texts:
            raise DataError("no brick has a text to fit hidden states on; add exemplars.")
        layers = _by_layer(every, len(base.rows(texts[:1])))
        accuracies = [_centred(every, rows).rehearsal.accuracy for rows in layers]
        known = not np.isnan(accuracies).any()
        self.layer = int(np.argmax(accuracies)) if known else len(layers) - 1
        self.accuracy = accuracies[self.layer]
        self.id = f"states:{base.id[:24]}:{self.layer}:{hash_texts(sorted(texts))[:24]}"
        self._base = base
        self._rows = dict(zip(texts, layers[self.layer], strict=True))
        self._centre = layers[self.layer].mean(0)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The states of each text; those of the corpus' own texts are at hand."""
        strange = list(dict.fromkeys(text for text in texts if text not in self._rows))
        fresh = self._base.rows(strange)[self.layer] if strange else ()
        rows = self._rows | dict(zip(strange, fresh, strict=True))
        return unit(np.stack([rows[text] for text in texts]) - self._centre)


class _AllLayers:
    """The states of all layers side by side, which depend on the base alone."""

    fitted = False

    def __init__(self, base: BaseStates) -> None:
        self.id = f"states:{base.id[:24]}"
        self._base = base

    def embed(self, texts: Sequence[str]) -> Vectors:
        rows = self._base.rows(texts)
        return unit(np.concatenate(list(rows), axis=-1))


def _by_layer(every: Index, layers: int) -> Float32[np.ndarray, "states texts hidden"]:
    rows = np.concatenate(every.matrices)  # texts states*hidden
    return unit(np.stack(np.split(rows, layers, axis=-1)))


def _centred(every: Index, rows: Vectors) -> Index:
    """The same bricks with one layer's centred states."""
    ends = np.cumsum([len(matrix) for matrix in every.matrices])[:-1]
    return Index(every.bricks, tuple(np.split(unit(rows - rows.mean(0)), ends)))
