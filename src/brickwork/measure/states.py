"""Hidden states of whole texts: one vector per text and layer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from brickwork.errors import ModelError
from brickwork.model.load import LoadedModel

_PADDING = 0  # any token: the mask hides it


def pooled_states(
    loaded: LoadedModel, texts: Sequence[str], batch: int = 16, *, tokens: int = 256
) -> Float[Tensor, "states texts hidden"]:
    """The mean over each text's tokens of the hidden states, on the CPU, in float32.

    Texts are tokenized as they are, in no chat format, and batched by length. A text without
    tokens gives zeros.

    Args:
        loaded: the model and its tokenizer; the model's own blocks run, not its output layer.
        texts: any number, 0 too.
        batch: texts per forward pass.
        tokens: how many of a text are read, from its start; never more than the model can.

    Returns:
        One more state than there are layers: the input embeddings come first. The last has been
        through the final norm.

    Raises:
        ModelError: if the model came without a tokenizer.
    """
    if loaded.tokenizer is None:
        raise ModelError(
            f"hidden states of texts were asked of {loaded.name or 'a model'}, which has no "
            "tokenizer; load it from a folder that holds one."
        )
    ids = [loaded.tokenizer.encode(text) for text in texts]
    return mean_states(loaded, ids, batch, tokens=tokens)


@torch.inference_mode()
def mean_states(
    loaded: LoadedModel, ids: Sequence[Sequence[int]], batch: int = 16, *, tokens: int = 256
) -> Float[Tensor, "states texts hidden"]:
    """The same of texts that are token ids already; the model needs no tokenizer."""
    model, config = loaded.model.base_model, loaded.model.config
    window = min(tokens, getattr(config, "max_position_embeddings", tokens))
    ids = [list(row[:window]) for row in ids]
    order = sorted((row for row in range(len(ids)) if ids[row]), key=lambda row: len(ids[row]))
    pooled = torch.zeros(config.num_hidden_layers + 1, len(ids), config.hidden_size)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        input_ids, mask = _padded([list(ids[row]) for row in rows])
        states = model(
            input_ids=input_ids.to(loaded.device),
            attention_mask=mask.to(loaded.device),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        pooled[:, rows] = torch.stack([_mean(state, mask) for state in states])
    return pooled


def _padded(
    ids: list[list[int]],
) -> tuple[Int[Tensor, "texts tokens"], Int[Tensor, "texts tokens"]]:
    longest = max(map(len, ids))
    rows = [row + [_PADDING] * (longest - len(row)) for row in ids]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
    return torch.tensor(rows), torch.tensor(mask)


def _mean(
    state: Float[Tensor, "texts tokens hidden"], mask: Int[Tensor, "texts tokens"]
) -> Float[Tensor, "texts hidden"]:
    kept = mask.to(state.device).unsqueeze(-1)
    return ((state.float() * kept).sum(1) / kept.sum(1)).cpu()
