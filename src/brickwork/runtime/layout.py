"""Where everything stands in a batch whose rows differ in prompt, soft prompt and prefix.

A row reads ``[prefix keys and values | soft prompt vectors | tokens]``. Prefixes fill the cache
from the right, vectors and tokens fill the input from the right; what is left over is masked, and
positions count only what is not. So a row sees exactly what it would see alone.

A sliding window counts what is masked, too, so there no gap may come between a prefix and what
follows it. If the rows would leave one, the prefixes take the last free columns of the input
instead, and the cache is given their keys and values in place of those computed there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from brickwork.errors import ConfigurationError
from brickwork.model.architecture import architectures
from brickwork.runtime.bank import Resident
from brickwork.runtime.exits import Exits
from brickwork.runtime.gather import Rows
from brickwork.runtime.prefixes import fill

_FILLER = 0  # any token: the mask hides it


@dataclass
class Layout:
    """The inputs of the first forward pass of a batch.

    Attributes:
        inputs: ``input_ids`` or ``inputs_embeds``, and the cache if any row has a prefix.
        mask: 1 where a row has something, for cache and input together.
        lengths: tokens of each row's prompt; they are the last ones of its input.
        room: positions that the model has learned; None if it can count on.
        exits: the early exits at work, if a row has any.
    """

    inputs: dict[str, Any]
    mask: Int[Tensor, "rows positions"]
    lengths: list[int]
    room: int | None = None
    exits: Exits | None = None

    @property
    def width(self) -> int:
        """Input positions of the first pass (cached ones not counted)."""
        name = "input_ids" if "input_ids" in self.inputs else "inputs_embeds"
        return int(self.inputs[name].shape[1])

    @property
    def positions(self) -> Int[Tensor, "rows width"]:
        """The position of each input, counted over what is not masked."""
        counted = (self.mask.cumsum(1) - 1).clamp_min(0)
        return counted[:, -self.width :]

    @property
    def mask_or_none(self) -> Tensor | None:
        """The mask, or None where nothing is masked (the attention is faster without)."""
        return None if bool(self.mask.all()) else self.mask


def lay_out(model: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: Rows) -> Layout:
    """The layout of a batch: prompts as token ids, and the loaded bricks of each row.

    Args:
        model: the base.
        prompts: token ids, at least one per row.
        rows: the bricks of each row; prefixes and soft prompts act in the given order.

    Raises:
        ConfigurationError: if there is no row, a prompt is empty or not of the model's tokens,
            or a row needs more positions than the model has learned.
    """
    acting = [[use.resident for use in row if use.weight != 0] for row in rows]
    prefix = [sum(r.prefix_tokens for r in row) for row in acting]
    soft = [sum(r.embed_tokens for r in row) for row in acting]
    _require_tokens(model, prompts)
    own = [s + len(prompt) for s, prompt in zip(soft, prompts, strict=True)]
    room = _require_room(model, [p + o for p, o in zip(prefix, own, strict=True)])
    cache = DynamicCache(config=model.config) if any(prefix) else None
    windowed = cache is not None and any(cache.is_sliding)
    before, width, ends = _columns(prefix, own, windowed=windowed)
    ids = torch.full((len(prompts), width), _FILLER)
    mask = torch.zeros(len(prompts), before + width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, ends[row] - prefix[row] : ends[row]] = 1
        mask[row, before + width - own[row] :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    inputs: dict[str, Any] = {"input_ids": ids}
    if any(soft):
        inputs = {"inputs_embeds": _with_vectors(model, ids, [len(p) for p in prompts], acting)}
    if cache is not None:
        fill(cache, acting, ends=ends, columns=before)
        inputs["past_key_values"] = cache
    return Layout(inputs, mask, [len(p) for p in prompts], room)


def _columns(prefix: list[int], own: list[int], *, windowed: bool) -> tuple[int, int, list[int]]:
    """How many columns the cache and the input have, and before which each row's prefix ends."""
    gap = any(p and o < max(own) for p, o in zip(prefix, own, strict=True))
    if not (windowed and gap):
        return max(prefix), max(own), [max(prefix)] * len(own)
    width = max(p + o for p, o in zip(prefix, own, strict=True))
    return 0, width, [width - o for o in own]


def _require_tokens(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
    if not prompts:
        raise ConfigurationError("the batch has no rows; give at least one prompt.")
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    known = weight.shape[0]
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigurationError(f"prompt {row} has no tokens; give every row at least one.")
        if not 0 <= min(prompt) <= max(prompt) < known:
            raise ConfigurationError(
                f"prompt {row} has token ids from {min(prompt)} to {max(prompt)}; the model knows "
                f"0 to {known - 1}. Encode the prompt with the model's own tokenizer."
            )


def _require_room(model: PreTrainedModel, needed: list[int]) -> int | None:
    """How many positions the model has learned, None if it can count on."""
    family = architectures().get(model.config.model_type)
    if family is None or "positions" not in family.roles:
        return None
    room: int = model.config.max_position_embeddings
    if max(needed) > room:
        raise ConfigurationError(
            f"row {needed.index(max(needed))} takes {max(needed)} positions (with its prefix and "
            f"soft prompt); the model has learned {room}. Shorten the prompt."
        )
    return room


def _with_vectors(
    model: PreTrainedModel, ids: Tensor, lengths: list[int], rows: list[list[Resident]]
) -> Tensor:
    embeds: Tensor = model.get_input_embeddings()(ids).clone()
    for row, (length, residents) in enumerate(zip(lengths, rows, strict=True)):
        vectors = [vector for resident in residents for vector in resident.vectors]
        if vectors:
            joined = torch.cat(vectors)
            end = ids.shape[1] - length
            embeds[row, end - len(joined) : end] = joined
    return embeds
