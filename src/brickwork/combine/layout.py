"""Which tensors of which models every tensor of the output is merged from.

Whole models are one span of all layers. Embeddings come from the models of the first span, norm
and head from those of the last.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brickwork.combine.checkpoints import Checkpoint
from brickwork.combine.names import DERIVED, is_placed, lies_before, natural
from brickwork.combine.parameters import Settings
from brickwork.combine.plan import ModelRef
from brickwork.combine.recipe import ModelInput, Module, OutputSlice, Recipe, SliceInput


@dataclass(frozen=True)
class Input:
    """Layers ``[start, stop)`` of a model, and the settings for this model alone."""

    checkpoint: Checkpoint
    start: int
    stop: int
    settings: Settings
    statistics: Path | None = None


@dataclass(frozen=True)
class Span:
    """Layers of the output that follow each other.

    Attributes:
        path: of the span in the recipe, for errors.
        inputs: what each layer is merged from.
        base: what the inputs are compared with; one of their models.
        scopes: settings for all inputs, from the strongest to the weakest.
        whole: whether the inputs are whole models.
    """

    path: str
    inputs: tuple[Input, ...]
    base: ModelRef | None
    scopes: tuple[Settings, ...]
    whole: bool

    @property
    def layers(self) -> int:
        """How many there are; if the inputs do not agree, as many as the shortest has."""
        return max(0, min(given.stop - given.start for given in self.inputs))


@dataclass(frozen=True)
class Draft:
    """A tensor of the output, before it is known whether its inputs fit.

    Attributes:
        name: in the output.
        span: whose inputs it has.
        tensors: its name in each of them; they may lack it.
        depth: 0 at the span's first layer and outside the layers, 1 at its last.
    """

    name: str
    span: Span
    tensors: tuple[str, ...]
    depth: float = 0.0

    def held(self) -> list[tuple[int, str]]:
        """The inputs that have it, by number, and its name there."""
        pairs = zip(self.span.inputs, self.tensors, strict=True)
        return [(n, t) for n, (given, t) in enumerate(pairs) if t in given.checkpoint.held]

    def lacking(self) -> list[tuple[Input, str]]:
        """The inputs that lack it, and the name it would have there."""
        pairs = zip(self.span.inputs, self.tensors, strict=True)
        return [(given, t) for given, t in pairs if t not in given.checkpoint.held]


def lay_spans(recipe: Recipe, checkpoints: Mapping[ModelRef, Checkpoint]) -> tuple[Span, ...]:
    """The recipe's slices; whole models as one slice of all their layers."""
    spans: list[Span] = []
    for path, part in recipe.modules_or_self().items():
        outer = (part.parameters, recipe.parameters) if isinstance(part, Module) else (
            recipe.parameters,
        )  # fmt: skip
        before = f"{path}." if path else ""
        if part.models:
            spans.append(_whole(f"{before}models", part.models, recipe, checkpoints, outer))
        for number, piece in enumerate(part.slices or ()):
            spans.append(_piece(f"{before}slices.{number}", piece, recipe, checkpoints, outer))
    return tuple(spans)


def _whole(
    path: str,
    models: Sequence[ModelInput],
    recipe: Recipe,
    checkpoints: Mapping[ModelRef, Checkpoint],
    scopes: tuple[Settings, ...],
) -> Span:
    inputs = [_input(given, checkpoints[given.model], None) for given in models]
    base = recipe.base_model
    if base is not None and base not in [given.model for given in models]:
        inputs.append(_input(ModelInput(model=base), checkpoints[base], None))
    return Span(path, tuple(inputs), base, scopes, whole=True)


def _piece(
    path: str,
    piece: OutputSlice,
    recipe: Recipe,
    checkpoints: Mapping[ModelRef, Checkpoint],
    scopes: tuple[Settings, ...],
) -> Span:
    inputs = tuple(
        _input(source, checkpoints[source.model], source.layer_range) for source in piece.sources
    )
    base = piece.base_model or recipe.base_model
    return Span(path, inputs, base, (piece.parameters, *scopes), whole=False)


def _input(
    given: ModelInput | SliceInput, checkpoint: Checkpoint, layers: tuple[int, int] | None
) -> Input:
    start, stop = layers or (0, checkpoint.stack.layers if checkpoint.stack else 0)
    statistics = given.statistics and given.statistics.expanduser()
    return Input(checkpoint, start, stop, given.parameters, statistics)


def draft_tensors(spans: Sequence[Span], donor: Checkpoint) -> tuple[list[Draft], list[str]]:
    """All tensors of the output in order, and notes on those that are left out or guessed at.

    Args:
        spans: whose layer ranges are within their models.
        donor: whose names the output has.
    """
    head = output_head(spans)
    drafts: list[Draft] = []
    notes: list[str] = []
    drafts += _loose(spans[0], donor, lies_before, head)
    for span, first in zip(spans, _offsets(spans), strict=True):
        drafts += _layers(span, first, donor)
    drafts += _loose(spans[-1], donor, lambda name: not lies_before(name), head)
    old = [d for d in drafts if DERIVED.search(d.name) and len(d.held()) < len(d.tensors)]
    if old:
        notes.append(
            f"{len(old)} buffers that only some of the models have ({old[0].name!r}, ...) are left "
            "out; every model computes them anew"
        )
    notes += _guesses(spans, drafts)
    dropped = {draft.name for draft in old}
    return [draft for draft in drafts if draft.name not in dropped], notes


def output_head(spans: Sequence[Span]) -> str:
    """The name of the output's head; empty if it is tied: if all models' heads are."""
    return next(
        (
            given.checkpoint.vocabulary.head
            for span in spans
            for given in span.inputs
            if not given.checkpoint.tied
        ),
        "",
    )


def _offsets(spans: Sequence[Span]) -> list[int]:
    return [sum(span.layers for span in spans[:number]) for number in range(len(spans))]


def _layers(span: Span, first: int, donor: Checkpoint) -> list[Draft]:
    drafts = []
    for offset in range(span.layers):
        depth = offset / (span.layers - 1) if span.layers > 1 else 1.0
        rests = _union(given.checkpoint.layers[given.start + offset] for given in span.inputs)
        for rest in rests:
            tensors = tuple(
                given.checkpoint.stack.name(given.start + offset, rest)
                for given in span.inputs
                if given.checkpoint.stack
            )
            name = f"{donor.stack.prefix if donor.stack else ''}.{first + offset}.{rest}"
            drafts.append(Draft(name, span, tensors, depth))
    return drafts


def _loose(span: Span, donor: Checkpoint, wanted: Callable[[str], bool], head: str) -> list[Draft]:
    """The tensors outside the layers, each model's head under the name of the output's."""
    owns = [_loose_names(given.checkpoint, donor) for given in span.inputs]
    names = _union([*map(list, owns), [head] if head else []])
    if head:
        for given, own in zip(span.inputs, owns, strict=True):
            own[head] = _head_of(given.checkpoint)
    return [
        Draft(name, span, tuple(own.get(name, name) for own in owns), _depth(name, span))
        for name in names
        if wanted(name)
    ]


def _loose_names(checkpoint: Checkpoint, donor: Checkpoint) -> dict[str, str]:
    """A model's own names by the donor's, without its head.

    A family's bare models are saved without the first part of their names (``h.0`` for
    ``transformer.h.0``); such models may be merged with whole ones.
    """
    own = checkpoint.stack.prefix if checkpoint.stack else ""
    other = donor.stack.prefix if donor.stack else ""
    more = other.removesuffix(own) if other.endswith(f".{own}") else ""
    less = own.removesuffix(other) if own.endswith(f".{other}") else ""
    return {
        more + name if more + name in donor.held else name.removeprefix(less): name
        for name in checkpoint.loose
        if name != checkpoint.vocabulary.head
    }


def _head_of(checkpoint: Checkpoint) -> str:
    return checkpoint.vocabulary.embedding if checkpoint.tied else checkpoint.vocabulary.head


def _depth(name: str, span: Span) -> float:
    """Where a tensor lies in the layers beside the text part's (those of a vision tower)."""
    checkpoint = span.inputs[0].checkpoint
    for stack in checkpoint.stacks if span.whole else ():
        main = checkpoint.stack is not None and stack.prefix == checkpoint.stack.prefix
        place = None if main or stack.layers < 2 else stack.place(name)
        if place:
            return place[0] / (stack.layers - 1)
    return 0.0


def _union(lists: Iterable[Sequence[str]]) -> list[str]:
    return sorted({name for names in lists for name in names}, key=natural)


def _guesses(spans: Sequence[Span], drafts: Sequence[Draft]) -> list[str]:
    """Loose tensors of unclear place matter only if the first and the last span differ."""
    if [g.checkpoint.ref for g in spans[0].inputs] == [g.checkpoint.ref for g in spans[-1].inputs]:
        return []
    first = spans[0].inputs[0].checkpoint
    unclear = [d.name for d in drafts if d.name in first.loose and not is_placed(d.name)]
    notes = [
        f"{name!r} lies outside the layers, and its name does not say on which side; it comes from "
        "the models of the last slice"
        for name in unclear
    ]
    if not output_head(spans):
        notes.append(
            "the head is tied to the embedding, so both come from the models of the first slice"
        )
    return notes
