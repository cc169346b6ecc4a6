"""Pairs of tiny models that stitching can join: of other widths, depths and families."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.train import Encoded
from tests.tiny import GROUPED, WIDE_HEADS, tiny_model, tiny_tokenizer

DEEPER: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 3}
WIDE: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GROUPED | DEEPER),
    "qwen3": Qwen3Config(**WIDE_HEADS | DEEPER, tie_word_embeddings=True),
    "gpt2": GPT2Config(
        n_embd=48, n_layer=3, n_head=4, n_positions=64, vocab_size=112, bos_token_id=None,
        eos_token_id=1,
    ),
}  # fmt: skip


def narrow(family: str, seed: int = 0) -> LoadedModel:
    """A model 32 wide, of 2 layers."""
    return wrap_model(tiny_model(family, seed), tiny_tokenizer(), f"narrow {family}")


def wide(family: str) -> LoadedModel:
    """A model 48 wide, of 3 layers; its weights are large enough for its words to differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(WIDE[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)  # from 0.02 to about 1 / sqrt(48)
    return wrap_model(model.eval(), tiny_tokenizer(), f"wide {family}")


def random_sequences(count: int, seed: int = 0, longest: int = 24) -> list[Encoded]:
    """Random words; the last half of each is its response."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, longest, (count,), generator=generator).tolist()
    rows: list[Sequence[int]] = [
        torch.randint(2, 112, (length,), generator=generator).tolist() for length in lengths
    ]
    return [Encoded(list(row), len(row) // 2) for row in rows]
