"""Causal tracing: where in a model a fact is recalled.

Noise on the subject's embeddings makes the model forget the answer. Then one part at one token is
given back what it said without noise: how far that raises the answer's probability is the part's
indirect effect.

Source: Meng et al. 2022, Locating and Editing Factual Associations in GPT (arXiv:2202.05262), 2.
Departures: answers of several tokens count whole; windows of layers scale with the depth of the
model (the paper's 10 of 48); what a window cannot change is not computed again, so the blocks
below it and the tokens before the subject are left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from brickwork.errors import ConfigurationError, EditError
from brickwork.measure.intervals import per_token, resample_counts
from brickwork.model.load import LoadedModel
from brickwork.model.parts import (
    CausalModel,
    experts_row_of,
    ffn_row_of,
    layers_of,
    part_of,
    role_path,
)
from brickwork.model.taps import tapped
from brickwork.update.recall import (
    Recall,
    answer_logs,
    answer_text,
    knows,
    probabilities,
    reading,
    starting_at,
)
from brickwork.update.trace_results import (
    KINDS,
    TRACED_PLACES,
    Kind,
    PlaceEffect,
    TracedFact,
    TracedPlace,
    TracedToken,
    Tracing,
    address_of,
)
from brickwork.update.words import PLACES

_RESAMPLES = 1000
_LOGITS_PER_BATCH = 1 << 26  # a quarter of a gigabyte of float32 logits at once


@dataclass(frozen=True)
class TraceRecipe:
    """How to trace.

    Attributes:
        kinds: what is restored.
        samples: corrupted copies of each prompt.
        noise: standard deviation of the noise, in units of that of the subjects' embeddings: all
            numbers of all subject tokens of the facts together.
        window: layers restored at once for ``mlp`` and ``attention``, about the one that the
            effect is written to; None: 10 of 48, at least one.
        places: restore only at the places where edits can be made, not at every token.
        seed: of the noise.
        tokens_per_batch: tokens that are computed at once.
    """

    kinds: tuple[Kind, ...] = KINDS
    samples: int = 10
    noise: float = 3.0
    window: int | None = None
    places: bool = False
    seed: int = 0
    tokens_per_batch: int = 4096


def trace(
    loaded: LoadedModel,
    recalls: Sequence[Recall],
    recipe: TraceRecipe,
    *,
    advance: Callable[[float], None] = lambda _facts: None,
) -> Tracing:
    """Where the model recalls these answers; facts that it gets wrong are skipped and listed.

    Args:
        loaded: the model; it is left as it is, to the bit. Bricks that act on it act here, too.
        recalls: prompts with the answers to trace.
        recipe: how.
        advance: told the number of facts that have just been done.

    Raises:
        EditError: if the model says none of the answers.
        ConfigurationError: if the recipe asks for no samples, or for a window of no layers.
    """
    model = loaded.model
    recipe = _settled(recipe, layers_of(model))
    known = [recall for recall in recalls if knows(model, recall)]
    if not known:
        raise _unknown(loaded, recalls)
    sigma = recipe.noise * subject_deviation(model, known)
    facts = []
    for recall in known:
        facts.append(_traced(loaded, recall, recipe, sigma))
        advance(1)
    return Tracing(
        layers=layers_of(model),
        window=recipe.window or 0,
        noise=sigma,
        samples=recipe.samples,
        seed=recipe.seed,
        facts=facts,
        skipped={
            recall.id: f"the model does not answer {answer_text(loaded, recall)!r}"
            for recall in recalls
            if recall not in known
        },
        averages=list(_averages(facts, recipe)),
    )


@torch.inference_mode()
def forgotten(model: CausalModel, recalls: Sequence[Recall], recipe: TraceRecipe) -> list[float]:
    """How much of each answer's probability noise on the subject takes away.

    Where that is little, the model guesses the answer from the rest of the prompt, and tracing
    can say nothing of where it is recalled.
    """
    sigma = recipe.noise * subject_deviation(model, recalls)
    found = []
    for recall in recalls:
        high = probabilities(answer_logs(model, recall, 1), recall)
        with noise_on(model, recall, sigma, recipe.seed):
            low = probabilities(answer_logs(model, recall, recipe.samples), recall)
        found.append(float(high - low.mean()))
    return found


def subject_deviation(model: CausalModel, recalls: Sequence[Recall]) -> float:
    """The standard deviation of all numbers of the embeddings of all subject tokens."""
    tokens = [t for r in recalls for t in r.prompt.ids[r.prompt.start : r.prompt.stop]]
    embedding = model.get_input_embeddings()
    with torch.inference_mode():
        vectors = embedding(torch.tensor([tokens], device=model.device))
    return float(vectors.float().std())


def said_by(model: CausalModel, kind: Kind, layer: int) -> nn.Module:
    """The module whose output is what the kind restores.

    An FFN's output is that of its last linear map, or of all its experts together.
    """
    if kind == "residual":
        path = role_path(model, "block", layer) or ""
    elif kind == "attention":
        path = part_of(model, "attn.o", layer).module
    elif ffn_row_of(model, layer).form == "moe_gated":
        path = experts_row_of(model, layer).down.rpartition(".")[0]
    else:
        path = part_of(model, "mlp.down", layer).module
    return model.get_submodule(path)


def window_of(layer: int, width: int, layers: int) -> range:
    """The layers about one, itself among them, as far as there are any."""
    first = layer - width // 2
    return range(max(0, first), min(layers, first + width))


def _settled(recipe: TraceRecipe, layers: int) -> TraceRecipe:
    window = max(1, round(10 / 48 * layers)) if recipe.window is None else recipe.window
    for name, number in (("samples", recipe.samples), ("window", window)):
        if number < 1:
            raise ConfigurationError(
                f"causal tracing was asked for a number of {name} of {number}; take at least 1."
            )
    return replace(recipe, window=window)


def _unknown(loaded: LoadedModel, recalls: Sequence[Recall]) -> EditError:
    first = f"; of {recalls[0].text!r} it was {answer_text(loaded, recalls[0])!r}"
    return EditError(
        f"an answer was to be traced that the model gives, but it gives none of {len(recalls)}"
        f"{first if recalls else ''}; trace what it does answer, or mend the prompts."
    )


@dataclass(frozen=True, eq=False)
class _Runs:
    """One recall, its clean states, and its corrupted ones.

    Attributes:
        clean: what the part of a kind and layer says, without noise.
        corrupted: what each block reads with noise, a row for each sample.
        low: the answer's probability with noise, for each sample.
    """

    model: CausalModel
    recall: Recall
    clean: Mapping[tuple[Kind, int], Float[Tensor, "tokens hidden"]]
    corrupted: Mapping[int, Float[Tensor, "samples tokens hidden"]]
    low: Float[Tensor, " samples"]


@torch.inference_mode()
def _traced(loaded: LoadedModel, recall: Recall, recipe: TraceRecipe, sigma: float) -> TracedFact:
    model, layers = loaded.model, layers_of(loaded.model)
    clean: dict[tuple[Kind, int], Tensor] = {}
    with _noting(model, recipe.kinds, clean):
        high = probabilities(answer_logs(model, recall, 1), recall)
    corrupted: dict[int, Tensor] = {}
    taps = reading(corrupted, layers)
    with noise_on(model, recall, sigma, recipe.seed), tapped(model, blocks=taps):
        low = probabilities(answer_logs(model, recall, recipe.samples), recall)
    runs = _Runs(model, recall, clean, corrupted, low)
    positions = _positions(recall, places=recipe.places)
    effects = {
        kind: torch.stack(
            [_effects(runs, kind, layer, positions, recipe) for layer in range(layers)], dim=1
        )
        for kind in recipe.kinds
    }
    return TracedFact(
        id=recall.id,
        prompt=recall.text,
        subject=recall.subject,
        answer=answer_text(loaded, recall),
        clean=float(high),
        corrupted=float(low.mean()),
        tokens=[_token(loaded, recall, position) for position in positions],
        effects={kind: found.tolist() for kind, found in effects.items()},
    )


@contextmanager
def _noting(
    model: CausalModel, kinds: Sequence[Kind], into: dict[tuple[Kind, int], Tensor]
) -> Iterator[None]:
    """Keep what every part of these kinds says of the only row."""

    def note(key: tuple[Kind, int], _module: nn.Module, _args: Any, output: Any) -> None:
        said = output if isinstance(output, Tensor) else output[0]
        into[key] = said.reshape(-1, said.shape[-1])  # some families flatten rows and tokens

    with ExitStack() as stack:
        for key in product(kinds, range(layers_of(model))):
            hook = said_by(model, *key).register_forward_hook(partial(note, key))
            stack.callback(hook.remove)
        yield


@contextmanager
def noise_on(model: CausalModel, recall: Recall, sigma: float, seed: int) -> Iterator[None]:
    """Add noise to the subject's embeddings, another one in each row."""
    generator = torch.Generator().manual_seed(seed)
    subject = slice(recall.prompt.start, recall.prompt.stop)

    def add(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        shape = (len(output), subject.stop - subject.start, output.shape[-1])
        noise = sigma * torch.randn(shape, generator=generator)
        changed = output.clone()
        changed[:, subject] += noise.to(output)
        return changed

    hook = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _effects(
    runs: _Runs, kind: Kind, layer: int, positions: Sequence[int], recipe: TraceRecipe
) -> Float[Tensor, " positions"]:
    """By how much restoring a window at each position raises the probability, on average."""
    assert recipe.window is not None
    window = window_of(layer, 1 if kind == "residual" else recipe.window, layers_of(runs.model))
    cells = torch.cartesian_prod(torch.tensor(positions), torch.arange(recipe.samples))
    words = len(runs.recall.answer) * runs.model.config.get_text_config().vocab_size
    tokens = len(runs.recall.ids)
    rows = max(1, min(recipe.tokens_per_batch // tokens, _LOGITS_PER_BATCH // words))
    found = [_restored(runs, kind, window, chunk) for chunk in cells.split(rows)]
    high = torch.cat(found).view(len(positions), recipe.samples)
    return (high - runs.low).mean(1).cpu()


def _restored(
    runs: _Runs, kind: Kind, window: range, cells: Int[Tensor, "rows 2"]
) -> Float[Tensor, " rows"]:
    """The answer's probability where each row restores one position of one sample."""
    model, rows = runs.model, len(cells)
    position, sample = cells.to(model.device).unbind(1)
    row = torch.arange(rows, device=model.device)

    def restore(layer: int, _module: nn.Module, _args: Any, output: Any) -> Any:
        said = output if isinstance(output, Tensor) else output[0]
        changed = said.reshape(rows, -1, said.shape[-1]).clone()
        changed[row, position] = runs.clean[kind, layer][position]
        changed = changed.view_as(said)
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    with ExitStack() as stack:
        stack.enter_context(starting_at(model, window[0], runs.corrupted[window[0]][sample]))
        for layer in window:
            hook = said_by(model, kind, layer).register_forward_hook(partial(restore, layer))
            stack.callback(hook.remove)
        return probabilities(answer_logs(model, runs.recall, rows), runs.recall)


def _positions(recall: Recall, *, places: bool) -> list[int]:
    """What is restored: nothing before the subject, since noise changes nothing there."""
    if places:
        return sorted({recall.prompt.position(place) for place in PLACES})
    return list(range(recall.prompt.start, len(recall.prompt.ids)))


def _token(loaded: LoadedModel, recall: Recall, position: int) -> TracedToken:
    token = recall.prompt.ids[position]
    text = str(loaded.tokenizer.decode([token])) if loaded.tokenizer else str(token)
    return TracedToken(position=position, text=text, places=_places_at(recall, position))


def _places_at(recall: Recall, position: int) -> list[TracedPlace]:
    found: list[TracedPlace] = [p for p in PLACES if recall.prompt.position(p) == position]
    if found:
        return found
    return ["subject_middle" if position < recall.prompt.stop else "between"]


def _averages(facts: Sequence[TracedFact], recipe: TraceRecipe) -> Iterator[PlaceEffect]:
    """The mean effects over the facts that have a place, with intervals over resampled facts."""
    layers = len(next(iter(facts[0].effects.values()))[0])
    for place in TRACED_PLACES:
        having = [f for f in facts if any(place in token.places for token in f.tokens)]
        if not having:
            continue
        generator = torch.Generator().manual_seed(recipe.seed)
        counts = resample_counts(len(having), _RESAMPLES, generator)
        ones = torch.ones(len(having))
        for kind, layer in product(recipe.kinds, range(layers)):
            values = torch.tensor([fact.at(kind, place, layer) for fact in having])
            yield PlaceEffect(
                kind=kind,
                place=place,
                layer=layer,
                address=address_of(kind, layer),
                facts=len(having),
                effect=per_token(values, ones, counts),
            )
