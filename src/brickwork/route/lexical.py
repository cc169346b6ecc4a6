"""Texts as weighted words: needs no model, and finds only what shares words with an exemplar."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from brickwork.route.embedders import Vectors, unit
from brickwork.route.texts import BrickTexts, hash_texts

# The rarest words and pairs are left out, so that a thousand bricks fit in memory. A corpus of 24
# bricks found as many with 2,048 of its 6,254 as with all (docs/log.md).
MOST_FEATURES = 8192
# Punctuation counts as words: it tells code, formulas and questions apart.
_WORD = r"(?u)\w+|[^\w\s]"


class TfidfEmbedder:
    """TF-IDF of words and pairs of words, fitted on all bricks' texts.

    No stop words are left out: instructions are short, and "how", "what" and "into" tell tasks
    apart. What the corpus does not have falls into one column of its own. No brick has anything
    there, so the column changes no order; but without it a text of strange words and one known
    "the" would be all "the", and score high.

    Source:
        scikit-learn's TfidfVectorizer with sublinear counts; the column for unknown words is ours.
    """

    fitted = True

    def __init__(self, corpus: Sequence[BrickTexts]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415 - half a second

        texts = sorted({text for brick in corpus for text in brick.texts})
        self.id = f"tfidf:{hash_texts(texts)[:24]}"
        self._vectorizer: Any = TfidfVectorizer(
            token_pattern=_WORD, ngram_range=(1, 2), sublinear_tf=True, norm=None,
            max_features=MOST_FEATURES, dtype=np.float32,
        ).fit(texts or ["no brick"])  # fmt: skip
        self._words: Callable[[str], list[str]] = self._vectorizer.build_analyzer()
        self._known: dict[str, int] = self._vectorizer.vocabulary_
        self._rarest = math.log(1 + len(texts)) + 1  # the weight of a word that no text has

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Word weights, then the column of unknown words."""
        known = self._vectorizer.transform(texts).toarray()
        unknown = np.array([[self._strangeness(text)] for text in texts], np.float32)
        return unit(np.hstack([known, unknown]))

    def _strangeness(self, text: str) -> float:
        counts = Counter(word for word in self._words(text) if word not in self._known)
        return math.hypot(*((1 + math.log(n)) * self._rarest for n in counts.values()))
