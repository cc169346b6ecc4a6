"""A model that takes part in a merge, as far as its configuration and headers show it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from brickwork.combine.names import (
    Stack,
    Vocabulary,
    find_stacks,
    find_vocabulary,
    main_stack,
    vocabulary_size,
)
from brickwork.combine.plan import ModelRef
from brickwork.errors import MergeError
from brickwork.model.checkpoint import CONFIG
from brickwork.model.shards import Held, Shards


@dataclass(frozen=True)
class Checkpoint:
    """A model's headers.

    Attributes:
        ref: the model, as the recipe names it.
        folder: where it lies.
        config: its ``config.json``.
        held: its tensors.
        stacks: all its layers, by prefix.
        stack: those of the text part; None: it has none that can be found.
        vocabulary: its embedding and output head.
        tied: whether its head is its embedding; so it is for a model that has no head, too.
    """

    ref: ModelRef
    folder: Path
    config: Mapping[str, Any]
    held: Mapping[str, Held]
    stacks: tuple[Stack, ...]
    stack: Stack | None
    vocabulary: Vocabulary
    tied: bool

    @cached_property
    def layers(self) -> Mapping[int, list[str]]:
        """The tensors of each layer, without the part of the name that says which."""
        found: dict[int, list[str]] = {}
        for name in self.held:
            if self.stack and (place := self.stack.place(name)):
                found.setdefault(place[0], []).append(place[1])
        return found

    @cached_property
    def loose(self) -> list[str]:
        """The tensors that lie in no layer of the text part."""
        return [name for name in self.held if not (self.stack and self.stack.place(name))]

    @property
    def quantised(self) -> str:
        """What shows that its weights are not plain numbers; empty: they are."""
        if self.config.get("quantization_config"):
            return "its configuration has a quantization_config"
        packed = [name for name, held in self.held.items() if held.dtype.itemsize == 1
                  and held.dtype not in (torch.bool, torch.uint8, torch.int8)]  # fmt: skip
        return f"{packed[0]!r} is kept in {self.held[packed[0]].dtype}" if packed else ""


def open_checkpoint(ref: ModelRef, folder: Path) -> Checkpoint:
    """The headers of a model's files.

    Raises:
        MergeError: if its configuration cannot be read.
        ModelError: if its files are damaged.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MergeError(f"{CONFIG} of {ref} is damaged ({error}); fetch it again.") from None
    if not isinstance(config, dict):
        raise MergeError(f"{CONFIG} of {ref} is no mapping of settings; fetch it again.")
    shards = Shards(folder)
    stacks = tuple(find_stacks(shards.tensors))
    stack = main_stack(config, stacks)
    shapes = {name: held.shape for name, held in shards.tensors.items()}
    vocabulary = find_vocabulary(shapes, vocabulary_size(config), stack)
    tied = _is_tied(shards, vocabulary, config)
    return Checkpoint(ref, folder, config, shards.tensors, stacks, stack, vocabulary, tied)


def _is_tied(shards: Shards, vocabulary: Vocabulary, config: Mapping[str, Any]) -> bool:
    """As transformers sees it: a head that was saved and differs is never tied."""
    if not vocabulary.head or not vocabulary.embedding:
        return not vocabulary.head
    if not config.get("tie_word_embeddings"):
        return False
    head, embedding = shards.tensor(vocabulary.head), shards.tensor(vocabulary.embedding)
    return head.shape == embedding.shape and torch.equal(head, embedding)
