"""Prompt and prefix tuning as PEFT writes them: one matrix ``prompt_embeddings``.

Sources: Lester et al. 2021, arXiv:2104.08691; Li and Liang 2021, arXiv:2101.00190.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, PositiveInt, ValidationError
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.peft_adapter import Config, Decoded, Tensors, refuse_more
from brickwork.brick.spec import explain
from brickwork.errors import BrickFormatError

_KNOWN = frozenset({
    "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads",
    "num_layers", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path",
    "tokenizer_kwargs", "init_weights", "encoder_hidden_size", "prefix_projection",
})  # fmt: skip


class _Sizes(BaseModel):
    num_virtual_tokens: PositiveInt
    token_dim: PositiveInt
    num_transformer_submodules: int | None = 1
    num_attention_heads: PositiveInt | None = None
    num_layers: PositiveInt | None = None


def encode_prompt(brick: Brick) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A configuration with the sizes, and the vectors as they are."""
    ((_, slots),) = brick.by_site.items()
    tokens, hidden = slots["vectors"].shape
    return {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": tokens,
        "token_dim": hidden,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }, {"prompt_embeddings": slots["vectors"]}


def decode_prompt(
    config: Config, tensors: Tensors, attention: Sequence[str], embedding: str
) -> Decoded:
    """The brick content of a prompt; see ``brickwork.brick.peft.from_peft``."""
    _, matrix = _read(config, tensors, "prompt", layers=None)
    return Decoded("prompt", {}, {f"{embedding}/vectors": matrix})


def encode_prefix(brick: Brick) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A configuration with the sizes, and all keys and values side by side.

    PEFT gives the first pair to the first layer, and so on: the brick must sit at every attention
    of its base, in order, which only ``misfits`` can tell.
    """
    pairs = [brick.by_site[site][slot] for site in brick.spec.sites for slot in ("key", "value")]
    stacked = torch.stack(pairs)  # layers*2 kv_heads tokens head_dim
    count, kv_heads, tokens, head_dim = stacked.shape
    return {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": tokens,
        "token_dim": kv_heads * head_dim,
        "num_transformer_submodules": 1,
        "num_attention_heads": kv_heads,
        "num_layers": count // 2,
        "prefix_projection": False,
    }, {"prompt_embeddings": stacked.permute(2, 0, 1, 3).reshape(tokens, -1)}


def decode_prefix(
    config: Config, tensors: Tensors, attention: Sequence[str], embedding: str
) -> Decoded:
    """The brick content of a prefix; see ``brickwork.brick.peft.from_peft``."""
    sizes, matrix = _read(config, tensors, "prefix", layers=len(attention))
    kv_heads = sizes.num_attention_heads
    if kv_heads is None or sizes.token_dim % kv_heads:
        raise BrickFormatError(
            f"a prefix of token_dim {sizes.token_dim} does not divide into {kv_heads} "
            "num_attention_heads."
        )
    split = matrix.reshape(len(matrix), 2 * len(attention), kv_heads, -1)
    pairs = split.permute(1, 2, 0, 3).contiguous()  # layers*2 kv_heads tokens head_dim
    named = {}
    for layer, site in enumerate(attention):
        named[f"{site}/key"], named[f"{site}/value"] = pairs[2 * layer], pairs[2 * layer + 1]
    return Decoded("prefix", {}, named)


def _read(
    config: Config, tensors: Tensors, form: str, *, layers: int | None
) -> tuple[_Sizes, Tensor]:
    """The sizes and the one matrix, which must have them."""
    refuse_more(config, form, _KNOWN)
    try:
        sizes = _Sizes.model_validate(dict(config))
    except ValidationError as error:
        raise BrickFormatError(f"the {form}'s configuration is wrong: {explain(error)}.") from None
    if set(tensors) != {"prompt_embeddings"}:
        raise BrickFormatError(
            f"the adapter holds {', '.join(sorted(tensors)[:5]) or 'nothing'}; a {form} is one "
            "matrix 'prompt_embeddings'."
        )
    if sizes.num_transformer_submodules not in (None, 1):
        raise BrickFormatError(
            f"the adapter is made for {sizes.num_transformer_submodules} stacks of layers "
            "(num_transformer_submodules); a decoder has 1."
        )
    if layers is not None and sizes.num_layers != layers:
        raise BrickFormatError(
            f"the prefix was made for {sizes.num_layers} layers; the base has {layers} attentions."
        )
    width = sizes.token_dim if layers is None else sizes.token_dim * 2 * layers
    expected = [sizes.num_virtual_tokens, width]
    matrix = tensors["prompt_embeddings"]
    if list(matrix.shape) != expected:
        raise BrickFormatError(
            f"the {form} has shape {list(matrix.shape)}, its configuration says {expected}."
        )
    return sizes, matrix
