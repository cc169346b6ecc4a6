"""What a task router reads of an instruction: numbers that no later task changes."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float32
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from brickwork.errors import DataError
from brickwork.measure.states import pooled_states
from brickwork.model.load import LoadedModel

Rows = Float32[np.ndarray, "texts features"]
# Punctuation counts as words: it tells code, formulas and questions apart.
_WORD, _COLUMNS = r"(?u)\w+|[^\w\s]", 4096


class Features(Protocol):
    """Texts as rows of numbers.

    Attributes:
        id: equal for features that give equal numbers.
    """

    @property
    def id(self) -> str:
        """What the features are, so that a router is not used with others."""

    def __call__(self, texts: Sequence[str]) -> Rows:
        """A row for each text."""


class WordFeatures:
    """TF-IDF of words and pairs of words, with weights that are fixed once and for all.

    Words fall into columns by their hash, so that there is a column for the words of tasks that
    are yet to come; their rarity is that in the background, where such words are the rarest.

    Args:
        rarity: the weight of each column; None: it comes from the background.
        background: instructions of all kinds.

    Raises:
        DataError: if there is neither a rarity nor a background.

    Source:
        scikit-learn's TfidfTransformer with sublinear counts, after its HashingVectorizer
        (Weinberger et al. 2009, arXiv:0902.2206).
    """

    def __init__(
        self,
        background: Sequence[str] = (),
        *,
        rarity: Float32[np.ndarray, " features"] | None = None,
    ) -> None:
        self._counter = HashingVectorizer(
            n_features=_COLUMNS, token_pattern=_WORD, ngram_range=(1, 2), norm=None,
            alternate_sign=False, dtype=np.float32,
        )  # fmt: skip
        self._weigher = TfidfTransformer(sublinear_tf=True)
        if rarity is not None:
            if rarity.shape != (_COLUMNS,) or not np.isfinite(rarity).all():
                raise DataError(
                    f"the rarity of words has the shape {rarity.shape}; it needs {_COLUMNS} finite "
                    "numbers, as the router that was written had them."
                )
            self._weigher.idf_ = rarity.astype(np.float64)
        elif background:
            self._weigher.fit(self._counter.transform(background))
        else:
            raise DataError(
                "word features were asked for without a background; give instructions that no "
                "brick serves, from which they learn which words are rare."
            )

    @property
    def id(self) -> str:
        """Of the columns and their weights."""
        return f"words:{_COLUMNS}:{_digest(self.rarity)}"

    @property
    def rarity(self) -> Float32[np.ndarray, " features"]:
        """The weight of each column."""
        found: Float32[np.ndarray, " features"] = self._weigher.idf_.astype(np.float32)
        return found

    def __call__(self, texts: Sequence[str]) -> Rows:
        """Weighted counts, each row at length 1; zeros for a text without words."""
        if not texts:
            return np.zeros((0, _COLUMNS), np.float32)
        rows: Rows = self._weigher.transform(self._counter.transform(texts)).toarray()
        return rows.astype(np.float32)


class StateFeatures:
    """The mean hidden state of a layer, each number with mean 0 and variance 1 on the background.

    Args:
        loaded: the base with its tokenizer.
        layer: 0 for the input embeddings.
        background: instructions of all kinds, at least one.

    Raises:
        DataError: if there is no such layer, or no background.
        ModelError: if the base has no tokenizer.
    """

    def __init__(self, loaded: LoadedModel, layer: int, background: Sequence[str]) -> None:
        depth = loaded.model.config.get_text_config().num_hidden_layers
        if not 0 <= layer <= depth or not background:
            raise DataError(
                f"states of layer {layer} were asked for, centred on {len(background)} texts; "
                f"name a layer from 0 to {depth}, and give at least one text."
            )
        self._loaded, self._layer = loaded, layer
        states = pooled_states(loaded, background)[layer]
        self._mean = states.mean(0)
        self._scale = states.std(0, correction=0).clamp_min(torch.finfo(states.dtype).eps)
        centre = _digest(self._mean.numpy(), self._scale.numpy())
        self.id = f"states:{loaded.base.fingerprint.weights[:24]}:{layer}:{centre}"

    def __call__(self, texts: Sequence[str]) -> Rows:
        """Standardised states."""
        states = pooled_states(self._loaded, texts)[self._layer]
        rows: Rows = ((states - self._mean) / self._scale).numpy()
        return rows


def _digest(*arrays: Float32[np.ndarray, " features"]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:24]
