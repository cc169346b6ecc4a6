"""What the names of a checkpoint's tensors say: layers, embeddings, output head; for any family.

Layers are tensors ``<prefix>.<number>.<rest>`` whose numbers count up from 0 without a gap.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_LAYER = re.compile(r"(?P<prefix>(?:[^.]+\.)*?[^.]+)\.(?P<number>0|[1-9][0-9]{0,5})\.(?P<rest>.+)")
# A configuration says under one of these names how many layers the model has.
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "decoder")
_SENSES = ("vision", "visual", "audio", "image", "encoder")
_BEFORE = re.compile(
    r"(?<!un)emb(?!ed_out)|wte|wpe|project_in|per_layer|altup_proj|rotary|relative|\bshared\."
)
_BEHIND = re.compile(r"norm|ln_f|head|embed_out|output|final|project_out|unembed|score|logits|bias")
_HEADS = re.compile(r"lm_head|embed_out|unembed|output|head|predictions|decoder\.(?:weight|bias)")
_NOT_TOKENS = re.compile(r"pos|wpe|token_type|rotary|norm|ln_")
_TABLES = re.compile(r"embed_tokens|wte|embed_in\b|word_embeddings|tok_embeddings")
# Buffers that every family computes anew; old checkpoints hold them, younger ones do not.
DERIVED = re.compile(
    r"rotary_emb\.inv_freq|(?:attn|attention)\.(?:masked_bias|bias)|position_ids"
    r"|rotary_emb\.(?:cos|sin)_cached"
)


@dataclass(frozen=True)
class Stack:
    """Layers that follow each other: ``<prefix>.0`` to ``<prefix>.<layers - 1>``."""

    prefix: str
    layers: int

    def place(self, name: str) -> tuple[int, str] | None:
        """The layer of a tensor, and the rest of its name; None if it lies in no layer."""
        number, _, rest = name.removeprefix(f"{self.prefix}.").partition(".")
        if not name.startswith(f"{self.prefix}.") or not number.isdecimal() or not rest:
            return None
        return (int(number), rest) if int(number) < self.layers else None

    def name(self, layer: int, rest: str) -> str:
        """The name of a tensor of a layer."""
        return f"{self.prefix}.{layer}.{rest}"


def find_stacks(names: Iterable[str]) -> list[Stack]:
    """All stacks of at least one layer, by prefix.

    >>> find_stacks(["h.0.w", "h.1.w", "head.weight", "vision.0.w", "vision.2.w"])
    [Stack(prefix='h', layers=2)]
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        if match := _LAYER.fullmatch(name):
            numbers.setdefault(match["prefix"], set()).add(int(match["number"]))
    return [
        Stack(prefix, len(found))
        for prefix, found in sorted(numbers.items())
        if found == set(range(len(found)))
    ]


def layer_count(config: Mapping[str, Any]) -> tuple[tuple[str, ...], int] | None:
    """Where a configuration says how many layers the text part has, and how many."""
    for part in ("", *_TEXT_PARTS):
        inner = config.get(part) if part else config
        if not isinstance(inner, Mapping):
            continue
        for key in LAYER_COUNTS:
            if type(number := inner.get(key)) is int and number > 0:
                return ((part, key) if part else (key,)), number
    return None


def main_stack(config: Mapping[str, Any], stacks: Iterable[Stack]) -> Stack | None:
    """The stack of the text part, with as many layers as the configuration says.

    Layers beyond that number (for predicting several tokens, say) do not belong to it.
    """
    counted = layer_count(config)
    least = counted[1] if counted else 1
    fit = [stack for stack in stacks if stack.layers >= least]
    if not fit:
        return None
    best = min(
        fit,
        key=lambda s: (
            any(word in s.prefix for word in _SENSES),
            (s.layers != least) if counted else -s.layers,
            s.prefix,
        ),
    )
    return Stack(best.prefix, least if counted else best.layers)


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts layer 2 before layer 10.

    >>> sorted(["h.10.w", "h.2.w"], key=natural)
    ['h.2.w', 'h.10.w']
    """
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in name.split("."))


def lies_before(name: str) -> bool:
    """Whether a tensor outside the layers is used before them (embeddings), not behind."""
    return bool(_BEFORE.search(name))


def is_placed(name: str) -> bool:
    """Whether the name says on which side of the layers the tensor is used."""
    return bool(_BEFORE.search(name) or _BEHIND.search(name))


@dataclass(frozen=True)
class Vocabulary:
    """The tensors whose first axis are the tokens; empty: there is none."""

    embedding: str = ""
    head: str = ""
    others: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        return bool(name) and name in (self.embedding, self.head, *self.others)


def find_vocabulary(
    shapes: Mapping[str, tuple[int, ...]], size: int | None, stack: Stack | None
) -> Vocabulary:
    """The input embedding, the output head, and their biases.

    Args:
        shapes: of all tensors of a checkpoint.
        size: of the vocabulary, as the configuration says; None: it does not say, so it is told
            from the embedding.
        stack: the main layers, where no such tensor lies.
    """
    if size is None:
        tables = [n for n, shape in shapes.items() if len(shape) == 2 and _TABLES.search(n)]
        size = shapes[min(tables, key=natural)][0] if tables else None
    embedding, head, others = "", "", []
    for name, shape in sorted(shapes.items(), key=lambda item: natural(item[0])):
        if not shape or shape[0] != size or (stack and stack.place(name)):
            continue
        is_head = bool(_HEADS.search(name))
        if _NOT_TOKENS.search(name) and not is_head:
            continue
        if len(shape) == 2 and is_head and not head:
            head = name
        elif len(shape) == 2 and not is_head and not embedding and lies_before(name):
            embedding = name
        elif len(shape) == 2 or (len(shape) == 1 and is_head):
            others.append(name)
    return Vocabulary(embedding, head, tuple(others))


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """How many tokens a configuration says that the model knows."""
    for part in ("", *_TEXT_PARTS):
        inner = config.get(part) if part else config
        if isinstance(inner, Mapping) and type(size := inner.get("vocab_size")) is int:
            return size
    return None
