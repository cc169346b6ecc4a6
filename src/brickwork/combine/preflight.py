"""What speaks against a merge, found from configurations and headers before a weight is read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brickwork.combine.checkpoints import Checkpoint
from brickwork.combine.layout import Draft, Input, Span
from brickwork.combine.methods import Method, require_count
from brickwork.combine.plan import ModelRef
from brickwork.combine.recipe import Recipe
from brickwork.errors import MergeError

# Settings that give the same numbers another meaning: one layer's shape, but other heads.
_STRUCTURE = (
    "num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "num_experts",
    "num_local_experts", "num_experts_per_tok",
)  # fmt: skip
_MEANING = (
    "hidden_act", "activation_function", "rope_theta", "rope_scaling", "rope_parameters",
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "sliding_window",
)  # fmt: skip


def span_problems(row: Method, recipe: Recipe, spans: Sequence[Span]) -> list[str]:
    """What is wrong with the models, their number and their layers; no tensor is looked at."""
    problems = [
        f"{checkpoint.ref} is quantised ({checkpoint.quantised}); name the model with plain weights"
        for checkpoint in _checkpoints(spans)
        if checkpoint.quantised
    ]
    problems += _families(_checkpoints(spans))
    problems += _modules(recipe, spans)
    for span in spans:
        problems += _count(row, span)
        problems += _lengths(span)
        problems += [p for given in span.inputs for p in _range(given, span)]
        problems += [p for given in span.inputs for p in _statistics(row, given, span)]
    return list(dict.fromkeys(problems))


def tensor_problems(row: Method, recipe: Recipe, drafts: Sequence[Draft]) -> list[str]:
    """Tensors that some models lack, or have in another shape."""
    problems: list[str] = []
    missing: dict[ModelRef, list[str]] = {}
    for draft in drafts:
        for given, name in () if lone_copy(row, draft) else draft.lacking():
            missing.setdefault(given.checkpoint.ref, []).append(name)
        problems += _shapes(draft, recipe)
        problems += _kinds(draft)
    return [
        f"{ref} lacks {len(names)} tensors that other models have: {', '.join(names[:3])}"
        f"{', ...' if len(names) > 3 else ''}; leave that model out"
        for ref, names in missing.items()
    ] + list(dict.fromkeys(problems))


def lone_copy(row: Method, draft: Draft) -> bool:
    """Whether only one model has the tensor, and the method lets it be copied."""
    held = draft.held()
    if len(held) != 1 or row.alone == "merge":
        return False
    is_base = draft.span.inputs[held[0][0]].checkpoint.ref == draft.span.base
    return row.alone == "copy" or is_base


def vocabulary_problems(
    checkpoints: Sequence[Checkpoint], recipe: Recipe
) -> tuple[list[str], list[str]]:
    """Problems and notes of vocabularies that differ, where the recipe does not align them.

    Plain tokens that differ in place are a problem: rows would be merged that mean other words.
    Added tokens alone (a renamed reserve) are a note.
    """
    if recipe.vocabulary is not None:
        return [], []
    readable = [(c.ref, tokens) for c in checkpoints if (tokens := _tokens(c.folder))]
    problems: list[str] = []
    notes: list[str] = []
    for ref, (plain, added) in readable[1:]:
        first, (first_plain, first_added) = readable[0]
        problems += _clash(f"tokens of {first} and {ref}", first_plain, plain)
        notes += _clash(f"added tokens of {first} and {ref}", first_added, added)
    return problems, notes


def setting_notes(donor: Checkpoint, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Settings in which models differ from the one whose configuration the output gets."""
    mine = _text(donor.config)
    return [
        f"{key} is {_text(other.config)[key]!r} in {other.ref} and {mine[key]!r} in {donor.ref}, "
        "which the output follows"
        for other in checkpoints
        for key in _MEANING
        if key in mine and key in _text(other.config) and mine[key] != _text(other.config)[key]
    ]


def _checkpoints(spans: Sequence[Span]) -> list[Checkpoint]:
    found = {given.checkpoint.ref: given.checkpoint for span in spans for given in span.inputs}
    return list(found.values())


def _families(checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    first, *others = checkpoints
    for other in others:
        mine, theirs = first.config.get("model_type"), other.config.get("model_type")
        if mine != theirs:
            yield (
                f"{first.ref} is of the architecture {mine!r}, but {other.ref} of {theirs!r}; "
                "merge models of one architecture"
            )
            continue
        a, b = _text(first.config), _text(other.config)
        for key in _STRUCTURE:
            if a.get(key) != b.get(key):
                yield (
                    f"{key} is {a.get(key)!r} in {first.ref}, but {b.get(key)!r} in {other.ref}; "
                    "their weights do not correspond"
                )


def _modules(recipe: Recipe, spans: Sequence[Span]) -> Iterator[str]:
    """``modules`` may name the layers of the text part; more than one at a time is not possible."""
    checkpoint = spans[0].inputs[0].checkpoint
    towers = [stack.prefix for stack in checkpoint.stacks if stack.layers > 1]
    if recipe.slices and len(towers) > 1:
        yield (
            f"slices do not say which layers they mean: {checkpoint.ref} has {', '.join(towers)}; "
            "write them under `modules:` with the name of one"
        )
    if not spans[0].whole and checkpoint.config.get("is_encoder_decoder"):
        yield f"{checkpoint.ref} has an encoder and a decoder, which cannot be sliced; use models:"
    known = {"default", checkpoint.stack.prefix if checkpoint.stack else "default"}
    strange = sorted(set(recipe.modules or ()) - known)
    if strange or len(recipe.modules or ()) > 1:
        yield (
            f"modules: only one can be given, and only {' or '.join(sorted(known))} (all other "
            f"tensors go with it), not {', '.join(recipe.modules or ())}"
        )


def _count(row: Method, span: Span) -> Iterator[str]:
    refs = [given.checkpoint.ref for given in span.inputs]
    has_base = row.base != "operand" and span.base is not None
    if has_base and span.base not in refs:
        yield f"{span.path}: the base {span.base} is not among the sources; add it to them"
        return
    try:
        require_count(row, len(refs) - has_base, has_base)
    except MergeError as error:
        yield f"{span.path}: {str(error).rstrip('.')}"


def _statistics(row: Method, given: Input, span: Span) -> Iterator[str]:
    ref, folder = given.checkpoint.ref, given.statistics
    if row.statistics and folder is None:
        yield (
            f"{row.name} weighs by statistics, and {ref} has none; measure them and name their "
            f"folder as `statistics:` beside the model ({span.path})"
        )
    elif row.statistics and folder is not None and not folder.is_dir():
        yield f"there is no folder {str(folder)!r} with statistics of {ref} ({span.path}); mend it"


def _lengths(span: Span) -> Iterator[str]:
    lengths = {str(given.checkpoint.ref): given.stop - given.start for given in span.inputs}
    counts = {given.stop - given.start for given in span.inputs}
    if len(counts) > 1:
        shown = ", ".join(f"{length} of {ref}" for ref, length in lengths.items())
        yield f"{span.path}: all sources must have the same number of layers, not {shown}"
    elif not span.whole and counts and min(counts) < 1:
        yield f"{span.path}: the layer range is empty; its end is the layer after the last"


def _range(given: Input, span: Span) -> Iterator[str]:
    stack = given.checkpoint.stack
    if stack is None and not span.whole:
        yield (
            f"{span.path}: no layers can be told from the names in {given.checkpoint.ref}, so it "
            "cannot be sliced; merge it whole"
        )
    elif stack is not None:
        absent = [n for n in range(given.start, given.stop) if n not in given.checkpoint.layers]
        if absent:
            yield (
                f"{span.path}: layers {given.start} to {given.stop - 1} of {given.checkpoint.ref} "
                f"are asked for, but it has {stack.layers} (0 to {stack.layers - 1})"
            )


def _shapes(draft: Draft, recipe: Recipe) -> Iterator[str]:
    shapes = {
        str(draft.span.inputs[n].checkpoint.ref): draft.span.inputs[n].checkpoint.held[name].shape
        for n, name in draft.held()
    }
    if len(set(shapes.values())) < 2:
        return
    rows_only = len({shape[1:] for shape in shapes.values()}) == 1
    tokens = rows_only and any(
        name in draft.span.inputs[n].checkpoint.vocabulary for n, name in draft.held()
    )
    if tokens and recipe.vocabulary is not None:
        return
    shown = ", ".join(f"{list(shape)} in {ref}" for ref, shape in shapes.items())
    advice = (
        "their vocabularies differ, so set `tokenizer_source: union` (or `base`) to align them"
        if tokens
        else "merge models of one size"
    )
    yield f"{draft.name!r} is {shown}; {advice}"


def _kinds(draft: Draft) -> Iterator[str]:
    kinds = {
        str(draft.span.inputs[n].checkpoint.ref): draft.span.inputs[n].checkpoint.held[name].dtype
        for n, name in draft.held()
    }
    if len({kind.is_floating_point for kind in kinds.values()}) > 1:
        shown = ", ".join(f"{kind} in {ref}" for ref, kind in kinds.items())
        yield f"{draft.name!r} is {shown}; only numbers with a fraction can be merged"


def _clash(what: str, mine: Mapping[int, str], theirs: Mapping[int, str]) -> Iterator[str]:
    numbers = [n for n in mine.keys() & theirs.keys() if mine[n] != theirs[n]]
    if numbers:
        first = min(numbers)
        yield (
            f"{len(numbers)} {what} differ (number {first} is {mine[first]!r} in one and "
            f"{theirs[first]!r} in the other); set `tokenizer_source: union` to align them"
        )


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _tokens(folder: Path) -> tuple[dict[int, str], dict[int, str]] | None:
    """Plain and added tokens by number; None without a ``tokenizer.json`` that can be read."""
    try:
        document = json.loads((folder / "tokenizer.json").read_bytes())
        words = document["model"]["vocab"]
        added = {int(token["id"]): token["content"] for token in document["added_tokens"]}
        if isinstance(words, list):
            plain = {number: pair[0] for number, pair in enumerate(words)}
        else:
            plain = {number: word for word, number in words.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return {number: word for number, word in plain.items() if number not in added}, added
