"""Tiny models of every family, with random weights: the smallest that have all of its parts."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    StableLmConfig,
)

from brickwork.model.parts import Slice

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 112,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2}
WIDE_HEADS: dict[str, Any] = GROUPED | {"head_dim": 16}  # heads * head_dim is not hidden
# One layer that sees only the last 4 tokens, one that sees all, as in the real ones.
WINDOWS = ["sliding_attention", "full_attention"]
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "mistral": lambda: MistralConfig(**WIDE_HEADS, sliding_window=4),
    "qwen2": lambda: Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**WIDE_HEADS),
    "gemma2": lambda: Gemma2Config(
        **WIDE_HEADS,
        sliding_window=4,
        layer_types=WINDOWS,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    "gemma3_text": lambda: Gemma3TextConfig(
        **WIDE_HEADS, sliding_window=4, layer_types=WINDOWS, query_pre_attn_scalar=16
    ),
    "phi3": lambda: Phi3Config(**GROUPED, sliding_window=4),
    "gpt2": lambda: GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=48, vocab_size=112,
        bos_token_id=None, eos_token_id=1,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
    "opt": lambda: OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2,
        num_attention_heads=4, vocab_size=112, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=None, eos_token_id=1,
    ),
    "mixtral": lambda: MixtralConfig(**GROUPED, **EXPERTS, num_local_experts=4),
    # The first layer is dense.
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **WIDE_HEADS, **EXPERTS, num_experts=4, moe_intermediate_size=24, mlp_only_layers=[0],
        norm_topk_prob=True,
    ),
    "olmo2": lambda: Olmo2Config(**GROUPED),
}  # fmt: skip


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family, float32, ready to evaluate; equal seeds give equal weights.

    Every parameter is random, biases and norms too, so that a part read from the wrong place
    shows in the result.
    """
    return _random_weights(FAMILIES[family](), seed)


def unknown_model() -> PreTrainedModel:
    """A model of a family that no row describes."""
    return _random_weights(StableLmConfig(**SIZES), seed=0)


def _random_weights(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise / min(parameter.shape[-2:]) ** 0.5)
    return model.eval()


def silence(model: PreTrainedModel, slices: Iterable[Slice]) -> None:
    """Set the entries that the slices name to zero, in place."""
    for part in slices:
        parameter = model.get_parameter(part.parameter).data
        matrix = parameter if part.expert is None else parameter[part.expert]
        axis = part.axis - (part.expert is not None)
        matrix.index_fill_(axis, torch.tensor(part.indices or range(matrix.shape[axis])), 0.0)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer for printable ASCII with a few merges; 0 pads, 1 ends a text."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ"]
    merges = [("t", "h"), ("th", "e"), ("a", "n"), ("Ġ", "a")]
    tokens = ["<pad>", "<eos>", *letters, *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", model_max_length=64
    )
