"""Where to edit: the place and the layers that causal tracing says a model recalls facts at."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from brickwork.errors import EditError
from brickwork.model.load import LoadedModel
from brickwork.model.parts import ffn_row_of, layers_of
from brickwork.update.method import EditSite
from brickwork.update.recall import Recall, answer_text, knows, recall_fact
from brickwork.update.selectivity import selectivity
from brickwork.update.trace_results import Tracing
from brickwork.update.tracing import TraceRecipe, forgotten, trace
from brickwork.update.words import PLACES, EncodedFact, Place

# A mean over facts needs fewer copies of each than one fact alone.
_SAMPLES = 4
# Many answers are guessed without the subject, or copied from it, and tracing them says nothing of
# where facts are recalled: so many are looked at for each that is traced.
_CANDIDATES = 8
# Of probability; where the largest effect is less, the site is hardly better than any other.
_FAINT = 0.05
# GPT-2 XL is edited at 0.35 of its depth, GPT-J at 0.2 to 0.3, Llama 3 at 0.1 to 0.25.
_USUAL_DEPTH = 0.25
_USUAL_PLACES: tuple[Place, ...] = ("subject_last", "last")
_MEANS = ("clean", "corrupted")
# Where places fall on one token, or have equal effects, the first of these is named.
_ORDER: tuple[Place, ...] = ("last", "subject_last", "after_subject", "subject_first")


@dataclass(frozen=True)
class Located:
    """Where to edit, and why there.

    Attributes:
        site: the place, and layers in a row that end at the best there that has enough before it.
        trace: what the choice was made by.
        note: what is worth knowing of it; empty if nothing is.
    """

    site: EditSite
    trace: Tracing
    note: str = ""


def find_site(
    loaded: LoadedModel,
    facts: Sequence[EncodedFact],
    *,
    layers: int,
    seed: int = 0,
    most: int = 8,
    advance: Callable[[float], None] = lambda _facts: None,
) -> Located:
    """Where to edit facts: some of them are traced, and the site is chosen from that.

    The answers are the old ones of facts that the model knows; if it knows none of them, what it
    says itself. See ``choose_site``.

    Args:
        loaded: the model; it is left as it is.
        facts: what is to be edited; some of them are traced.
        layers: how many layers are to be edited.
        seed: of the choice of facts and of the noise.
        most: facts that are traced.
        advance: told the number of facts that have just been traced.

    Raises:
        EditError: if there are no facts, or fewer layers in a row than asked for.
    """
    _windows(loaded, layers)
    recipe = TraceRecipe(("mlp",), _SAMPLES, window=1, places=True, seed=seed)
    recalls, note = _recalls(loaded, facts, recipe, most)
    tracing = trace(loaded, recalls, recipe, advance=advance)
    site, why = choose_site(loaded, tracing, recalls, layers=layers)
    return Located(site, tracing, "; ".join(filter(None, (note, why))))


def choose_site(
    loaded: LoadedModel, tracing: Tracing, recalls: Sequence[Recall], *, layers: int = 1
) -> tuple[EditSite, str]:
    """The site that a tracing of FFNs says, and a note where it is uncertain.

    A place and layer count by how much of the answer restoring what the FFN adds there brings
    back, times how far what it reads there depends on the subject (``selectivity``): both are
    needed, for an edit is to change the answer, and only this subject's. The layers end at the
    best one that has enough before it; layer 0 counts where nothing else does. Only layers
    count whose FFN is one linear map of its activations.

    Where that is hardly anything anywhere, the model guesses the answers without the subject, or
    recalls them at several places. Then the site is a usual one, and the note says so: layers that
    end at a quarter of the depth, and the subject's last token or the prompt's, whichever depends
    more on the subject there.

    Args:
        loaded: the model; it is left as it is.
        tracing: with the effects of FFNs.
        recalls: what was traced; those that were skipped are, here, too.
        layers: how many are to be edited.

    Raises:
        EditError: if the model has not so many layers without experts in a row.
    """
    windows = _windows(loaded, layers)
    traced = {fact.id for fact in tracing.facts}
    selective = selectivity(
        loaded.model, [recall for recall in recalls if recall.id in traced],
        samples=tracing.samples, noise=tracing.noise, seed=tracing.seed,
    )  # fmt: skip
    effects = {(r.place, r.layer): r.effect.value for r in tracing.averages if r.kind == "mlp"}
    worth = {(p, n): effects[p, n] * share for (p, n), share in selective.items()}
    # What layer 0 reads depends on little but the token itself. Given back, it brings all that is
    # above it along; edited, it takes many prompts along, or gets nowhere.
    ends = {n for _, n in worth} - {0} or {0}
    best = max(worth[place, layer] for place in PLACES for layer in ends)
    if best < _FAINT:
        site = _usual_site(loaded, layers, selective)
        return site, _faint(tracing, best, site)
    windows = [window for window in windows if window[-1] in ends] or windows
    place = max(_ORDER, key=lambda place: max(worth[place, layer] for layer in ends))
    return EditSite(max(windows, key=lambda window: worth[place, window[-1]]), place), ""


def _usual_site(
    loaded: LoadedModel, layers: int, selective: Mapping[tuple[Place, int], float]
) -> EditSite:
    """So many layers that end nearest to a quarter of the depth, and the more selective place."""
    quarter = round(layers_of(loaded.model) * _USUAL_DEPTH)
    window = min(_windows(loaded, layers), key=lambda window: abs(window[-1] - quarter))
    return EditSite(window, max(_USUAL_PLACES, key=lambda place: selective[place, window[-1]]))


def _faint(tracing: Tracing, best: float, site: EditSite) -> str:
    facts = tracing.facts
    clean, corrupted = (sum(getattr(f, n) for f in facts) / len(facts) for n in _MEANS)
    return (
        f"where what is read depends on the subject, no place brings back more than {best:.3f} of "
        f"the answers' probability, which is {clean:.2f} and with noise on the subject "
        f"{corrupted:.2f}: the site is uncertain, and a usual one was taken, {site}; try others"
    )


def _windows(loaded: LoadedModel, layers: int) -> list[tuple[int, ...]]:
    """Every run of so many layers without experts."""
    model = loaded.model
    linear = [ffn_row_of(model, n).form != "moe_gated" for n in range(layers_of(model))]
    starts = range(len(linear) - layers + 1)
    found = [tuple(range(n, n + layers)) for n in starts if all(linear[n : n + layers])]
    if layers < 1 or not found:
        raise EditError(
            f"{layers} layers in a row were to be edited, but of the {len(linear)} layers "
            f"{sum(linear)} have an FFN without experts, and no {layers} of these are in a row; "
            "edit fewer layers, or take a method that edits layers with experts, such as grace."
        )
    return found


def _recalls(
    loaded: LoadedModel, facts: Sequence[EncodedFact], recipe: TraceRecipe, most: int
) -> tuple[list[Recall], str]:
    """The facts to trace: of some that are known, those that noise on the subject takes away."""
    if not facts:
        raise EditError("a site was to be found, but there are no facts to trace; give some.")
    order = random.Random(recipe.seed).sample(facts, len(facts))
    known: list[Recall] = []
    for fact in order:
        if len(known) == _CANDIDATES * most:
            break
        if fact.true and knows(loaded.model, old := recall_fact(loaded, fact, "true")):
            known.append(old)
    note = ""
    if not known:
        known = [recall_fact(loaded, fact, "own") for fact in order[: _CANDIDATES * most]]
        note = (
            f"the model knows the old answer of none of {len(facts)} facts; what it answers "
            "itself was traced instead"
        )
    lost = forgotten(loaded.model, known, recipe)
    copied = [answer_text(loaded, recall) in recall.text for recall in known]
    best = sorted(range(len(known)), key=lambda n: (copied[n], -lost[n]))[:most]
    return [known[n] for n in sorted(best)], note
