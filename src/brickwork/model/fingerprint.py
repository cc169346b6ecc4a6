"""What identifies a base model: hashes of its shapes, its weights and its tokenizer.

The weights are hashed as bfloat16, rounded to the nearest even: one checkpoint has one fingerprint,
whether it is loaded in float32 or bfloat16, on any device. float16 keeps that promise only for
values that it can hold, so the fingerprint of a model loaded in float16 may differ.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from brickwork.brick.base import Fingerprint
from brickwork.brick.brick import canonical_json
from brickwork.errors import ModelError

# Values converted at a time, so that a large matrix is never copied whole.
_CHUNK = 1 << 22
_MOST_THREADS = 8


def fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str
) -> Fingerprint:
    """What identifies the model as a base.

    Raises:
        ModelError: if the model is an outline without weights.
    """
    tensors = named_tensors(model)
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise ModelError(
            f"{name or model.config.model_type!r} has no weights to fingerprint "
            f"({len(empty)} of {len(tensors)} tensors are outlines); load it with load_model."
        )
    return Fingerprint(
        name=name,
        architecture=model.config.model_type,
        shapes=shapes_hash(tensors),
        weights=weights_hash(tensors),
        tokenizer=None if tokenizer is None else tokenizer_hash(tokenizer),
    )


def named_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers in the order of their names, tied ones once.

    Rotary frequencies are left out: they follow from the configuration, and only old versions
    of transformers save them.
    """
    parameters = dict(model.named_parameters())
    saved = set(model.state_dict())
    buffers = {
        name: buffer
        for name, buffer in model.named_buffers()
        if name in saved and not name.endswith("inv_freq")
    }
    return dict(sorted((parameters | buffers).items()))


def shapes_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 over all names with their shapes."""
    shapes = [[name, list(tensor.shape)] for name, tensor in sorted(tensors.items())]
    return hashlib.sha256(canonical_json(shapes).encode()).hexdigest()


def weights_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 over all names with the sha256 of their values, rounded to bfloat16."""
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        digests = dict(zip(tensors, pool.map(_values_hash, tensors.values()), strict=True))
    return hashlib.sha256(canonical_json(digests).encode()).hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over what turns text into tokens, without the state of padding and truncation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    else:
        content = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _values_hash(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    flat = tensor.detach().reshape(-1)
    for chunk in flat.split(_CHUNK):
        rounded = chunk.to(torch.bfloat16) if chunk.is_floating_point() else chunk
        digest.update(rounded.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
