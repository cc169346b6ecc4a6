"""Which embedder to retrieve with: the best one that needs nothing the user does not have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path

from brickwork.errors import DataError
from brickwork.route.embedders import Embedder, SentenceEmbedder, has_minilm, packaged_minilm
from brickwork.route.index import VectorCache, build_index
from brickwork.route.lexical import TfidfEmbedder
from brickwork.route.states import BaseStates, StatesEmbedder
from brickwork.route.texts import BrickTexts, with_texts

# Below, more than three in ten of the bricks' own exemplars would go elsewhere.
_LOW_ACCURACY = 0.7


@dataclass(frozen=True)
class Choice:
    """Which embedder was chosen, and why.

    Attributes:
        name: ``sentence-transformers``, ``minilm``, ``states`` or ``tfidf``.
        id: the embedder's own id.
        reason: one sentence with the accuracies that decided.
        accuracies: by name, the share of left-out exemplars that find their brick; NaN if there
            is no telling. On exemplars that were made from one template it promises too much.
        warning: what to expect the worse for, and what to do; empty if nothing.
    """

    name: str
    id: str
    reason: str
    accuracies: Mapping[str, float] = field(default_factory=dict)
    warning: str = ""


def choose_embedder(
    corpus: Sequence[BrickTexts],
    *,
    path: str | Path | None = None,
    states: BaseStates | None = None,
    cache: VectorCache | None = None,
) -> tuple[Embedder, Choice]:
    """The user's embedder, else the packaged MiniLM, else the base's states, else TF-IDF.

    The base's states are taken only where they find more left-out exemplars than TF-IDF: those of
    a small or little trained model do not.

    Args:
        corpus: the bricks to be found.
        path: folder of a sentence-transformers model.
        states: the base model, if it may be asked.
        cache: where vectors are kept; what is missing is embedded and kept.

    Raises:
        DataError: if ``path`` holds no such model, or a brick is in the corpus twice.
        MissingExtraError: if ``path`` is given without the extra ``embed``.
    """
    refusal = ""
    if path is not None:
        embedder: Embedder = SentenceEmbedder(path)
        return embedder, _sentence(corpus, embedder, cache, "sentence-transformers", "you named it")
    if has_minilm():
        try:
            embedder = packaged_minilm()
        except DataError as error:
            refusal = str(error)
        else:
            return embedder, _sentence(corpus, embedder, cache, "minilm", "it is installed")
    return _without_extra(corpus, states, cache, refusal)


def _sentence(
    corpus: Sequence[BrickTexts],
    embedder: Embedder,
    cache: VectorCache | None,
    name: str,
    why: str,
) -> Choice:
    accuracy = _accuracy(corpus, embedder, cache)
    reason = f"the sentence embedder is used because {why}; {_told(accuracy)}."
    return Choice(name, embedder.id, reason, {name: accuracy}, _warning(accuracy, ""))


def _without_extra(
    corpus: Sequence[BrickTexts],
    states: BaseStates | None,
    cache: VectorCache | None,
    refusal: str,
) -> tuple[Embedder, Choice]:
    words = TfidfEmbedder(with_texts(corpus))
    found = {"tfidf": _accuracy(corpus, words, cache)}
    install = "install the extra 'embed', which matches meaning: pip install 'brickwork[embed]'"
    if states and with_texts(corpus):
        base = StatesEmbedder(corpus, states, cache)
        found["states"] = base.accuracy
        if base.accuracy > found["tfidf"]:
            warning = _warning(base.accuracy, install, refusal)
            reason = (
                f"layer {base.layer} of the base model is used; {_told(base.accuracy)}, with "
                f"TF-IDF {found['tfidf']:.2f}."
            )
            return base, Choice("states", base.id, reason, found, warning)
    reason = f"TF-IDF matches words, not meaning; {_told(found['tfidf'])}"
    reason += f", with the base's states {found['states']:.2f}." if "states" in found else "."
    return words, Choice(
        "tfidf", words.id, reason, found, _warning(found["tfidf"], install, refusal)
    )


def _accuracy(corpus: Sequence[BrickTexts], embedder: Embedder, cache: VectorCache | None) -> float:
    index = build_index(corpus, embedder, cache)
    return index.rehearsal.accuracy if index.bricks else float("nan")


def _told(accuracy: float) -> str:
    if isnan(accuracy):
        return "how well it finds bricks cannot be told from so few exemplars"
    return f"{accuracy:.2f} of the left-out exemplars find their brick"


def _warning(accuracy: float, advice: str, refusal: str = "") -> str:
    low = ""
    if accuracy < _LOW_ACCURACY:
        low = (
            f"only {accuracy:.2f} of the bricks' own exemplars find their brick when left out, so "
            "expect wrong choices and missed bricks; give the bricks more exemplars"
        )
        low += f", or {advice}." if advice else "."
    return " ".join(part for part in (refusal, low) if part)
