"""Routers before any training: an expert's row is what the base says about prompts for it.

The row is the mean state of the positive prompts less that of the negative ones, of length 1.
Each prompt is read by itself, so no padding takes part; mergekit 0.1.5 counts it in its means.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from brickwork.errors import MergeError
from brickwork.model.load import load_model, outline_model
from brickwork.model.shards import Shards

EMBEDDING = "model.embed_tokens.weight"  # in the families that become a mixture

# What each layer says about a prompt.
Hear = Callable[[str], Float[Tensor, "layers hidden"]]


@dataclass(frozen=True)
class ExpertPrompts:
    """What an expert is to be chosen for, and what not."""

    positive: Sequence[str]
    negative: Sequence[str] = ()


def prompted_rows(
    experts: Sequence[ExpertPrompts], mode: str, folder: Path, *, device: str = "auto"
) -> Float[Tensor, "layers experts hidden"]:
    """The routers of all layers.

    Args:
        experts: their prompts, at least one positive one each.
        mode: ``hidden`` (``hidden_last``), ``hidden_avg`` or ``cheap_embed``, as recipes mean it.
        folder: of the base model; ``cheap_embed`` reads its embedding alone.
        device: where it runs.

    Raises:
        MergeError: if the base has no tokenizer, or a prompt has no tokens.
    """
    hear = _embedded(folder) if mode == "cheap_embed" else _heard(folder, mode, device)
    total = mode == "cheap_embed"
    rows = []
    for expert in experts:
        row = _spoken(expert.positive, hear, total=total)
        if expert.negative:
            row = row - _spoken(expert.negative, hear, total=total)
        rows.append(_unit(row))
    return torch.stack(rows, dim=1)


def random_rows(
    layers: int, experts: int, hidden: int, *, uniform: bool, generator: torch.Generator
) -> Float[Tensor, "layers experts hidden"]:
    """Random routers: normal, or uniform as a new linear map of torch has them."""
    if not uniform:
        return torch.randn(layers, experts, hidden, generator=generator)
    rows = torch.empty(layers, experts, hidden)
    return rows.uniform_(-(hidden**-0.5), hidden**-0.5, generator=generator)


def _spoken(prompts: Sequence[str], hear: Hear, *, total: bool) -> Float[Tensor, "layers hidden"]:
    said = torch.stack([hear(prompt) for prompt in prompts])  # prompts layers hidden
    if not total:
        return said.mean(0)
    # Sums of embeddings grow with the text, so that their length says nothing.
    return _unit(said.sum(0))


def _unit(rows: Float[Tensor, "layers hidden"]) -> Float[Tensor, "layers hidden"]:
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / length.clamp(min=1e-8)


def _heard(folder: Path, mode: str, device: str) -> Hear:
    """The state before each layer, of the last token or the mean over all."""
    loaded = load_model(str(folder), device=device)
    tokenizer, decoder = _tokenizer(loaded.tokenizer, folder), loaded.model.base_model

    @torch.no_grad()
    def hear(prompt: str) -> Float[Tensor, "layers hidden"]:
        tokens = torch.tensor([_tokens(tokenizer, prompt)], device=loaded.device)
        out: Any = decoder(tokens, output_hidden_states=True, use_cache=False)
        states = torch.stack(out.hidden_states[:-1])[:, 0].float()  # layers tokens hidden
        return (states.mean(1) if mode == "hidden_avg" else states[:, -1]).cpu()

    return hear


def _embedded(folder: Path) -> Hear:
    """The sum of a prompt's embeddings, the same for all layers."""
    outline = outline_model(str(folder), tokenizer=True)
    tokenizer = _tokenizer(outline.tokenizer, folder)
    embedding, layers = Shards(folder).tensor(EMBEDDING), outline.model.config.num_hidden_layers

    def hear(prompt: str) -> Float[Tensor, "layers hidden"]:
        rows = embedding[torch.tensor(_tokens(tokenizer, prompt))].float()
        return rows.sum(0).expand(layers, -1)

    return hear


def _tokenizer(found: PreTrainedTokenizerBase | None, folder: Path) -> PreTrainedTokenizerBase:
    if found is None:
        raise MergeError(
            f"prompts were to be read by the base in {folder}, which has no tokenizer; add one, "
            "or set gate_mode: random."
        )
    return found


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    text = f"{tokenizer.bos_token or ''}{prompt}"
    tokens: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    if not tokens:
        raise MergeError(f"the prompt {prompt!r} has no tokens for the base; write another.")
    return tokens
