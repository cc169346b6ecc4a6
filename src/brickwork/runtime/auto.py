"""From an instruction to a configuration: retrieve the bricks of a store that suit it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brickwork.brick.configuration import BrickUse, Configuration, Options
from brickwork.brick.effects import EFFECTS
from brickwork.brick.forms import find_form, forms
from brickwork.brick.selection import SELECTIONS
from brickwork.measure.states import pooled_states
from brickwork.model.load import LoadedModel
from brickwork.route.choose import choose_embedder
from brickwork.route.retrieve import Hit, Retrieval, Retriever
from brickwork.route.states import BaseStates
from brickwork.route.texts import corpus_of
from brickwork.store.store import Store


@dataclass(frozen=True)
class Selection:
    """A configuration for one instruction, why each brick is in it, and what was considered."""

    configuration: Configuration
    reasons: dict[str, str]
    retrieval: Retrieval


class Selector:
    """Chooses bricks for instructions among those of a store that were made for this base.

    Bricks that keep a part of the base (masks, routers, layers) save work and add nothing: they are
    used where a configuration names them, and never retrieved. Nor are bricks that cannot be run.

    Args:
        loaded: the base.
        store: where the bricks are.
        embedder: folder of a sentence-transformers model; without it, the best embedder at hand.
        background: instructions that no brick serves, from which the thresholds learn to abstain.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        store: Store,
        *,
        embedder: Path | None = None,
        background: Sequence[str] = (),
    ) -> None:
        weights = loaded.base.fingerprint.weights
        can_run = {name for name, row in forms().items() if row.target}.difference(SELECTIONS)
        built = [e for e in store.list(base=weights) if e.spec.form in can_run]
        self._forms = {e.reference: e.spec.form for e in built}
        corpus = corpus_of(built)
        states = BaseStates(weights, lambda texts: pooled_states(loaded, texts))
        chosen, self.choice = choose_embedder(
            corpus, path=embedder, states=states if loaded.tokenizer else None, cache=store
        )
        self.retriever = Retriever(corpus, chosen, cache=store, background=background)

    def select(self, instruction: str, options: Options, base: str) -> Selection:
        """The configuration for an instruction: one brick as built, or several by their shares."""
        retrieval = self.retriever.retrieve(instruction)
        hits = retrieval.chosen
        if len(hits) > 1 and not all(self._can_be_weighted(hit) for hit in hits):
            hits = hits[:1]
        uses = tuple(
            BrickUse(name=hit.reference, weight=1.0 if len(hits) == 1 else round(hit.weight, 3))
            for hit in hits
        )
        reasons = {
            hit.reference: f"retrieved: score {hit.score:.2f}, threshold {hit.threshold:.2f}"
            for hit in hits
        }
        return Selection(Configuration(base=base, bricks=uses, options=options), reasons, retrieval)

    def _can_be_weighted(self, hit: Hit) -> bool:
        return EFFECTS[find_form(self._forms[hit.reference]).effect].weighted
