"""A model's parameters one at a time, under the names that they have in memory.

So a model larger than memory can be read, and changed, parameter by parameter.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from brickwork.errors import ModelError
from brickwork.model.config import transformers_at
from brickwork.model.load import outline_model
from brickwork.model.saved import as_saved
from brickwork.model.shards import Shards


class Weights(Protocol):
    """What growth reads: an outline, and its parameters when asked for."""

    @property
    def outline(self) -> PreTrainedModel:
        """Modules and shapes; only those of a model in memory have values."""

    def tensor(self, path: str) -> Tensor:
        """The parameter at a path, on the CPU; not to be written to."""

    def dtype_of(self, path: str) -> torch.dtype:
        """Its number format."""


class ModelWeights:
    """The parameters of a model in memory, as they are."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.outline = model

    def tensor(self, path: str) -> Tensor:
        """The parameter itself, without gradients."""
        return self.outline.get_parameter(path).detach().cpu()

    def dtype_of(self, path: str) -> torch.dtype:
        """Its number format."""
        return self.outline.get_parameter(path).dtype


class CheckpointWeights:
    """The parameters of a checkpoint on disk; each is read when it is asked for.

    Raises:
        ModelError: if the folder is no checkpoint, or its tensors are not those of its
            configuration, under the names that transformers would give them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outline = outline_model(str(folder)).model
        self._shards = Shards(folder)
        paths = [path for path, _ in self.outline.named_parameters()]
        self._pieces = {path: self._found(path) for path in paths}

    def tensor(self, path: str) -> Tensor:
        """The parameter: behind a memory map, or put together where a file has it in pieces."""
        pieces = self._pieces[path]
        shape = tuple(self.outline.get_parameter(path).shape)
        if len(pieces) == 1:
            return self._shards.tensor(next(iter(pieces))).view(shape)
        first = self._shards.tensors[next(iter(pieces))]
        whole = torch.empty(shape, dtype=first.dtype)
        lines = whole.view(-1, shape[-1])
        for name, line in pieces.items():
            piece = self._shards.tensor(name).view(-1, shape[-1])
            lines[line : line + len(piece)] = piece
        return whole

    def dtype_of(self, path: str) -> torch.dtype:
        """The number format that it has on disk."""
        return self._shards.tensors[next(iter(self._pieces[path]))].dtype

    @property
    def bytes(self) -> int:
        """Of all parameters."""
        pieces = [name for own in self._pieces.values() for name in own]
        return sum(self._shards.tensors[name].bytes for name in pieces)

    def _found(self, path: str) -> dict[str, int]:
        """The tensors on disk that a parameter is made of, and where each begins in it."""
        pieces = saved_pieces(self.outline, path)
        prefix = f"{self.outline.base_model_prefix}."
        if not all(name in self._shards.tensors for name in pieces):
            # Bare models are saved without the prefix of the head's model.
            pieces = {name.removeprefix(prefix): piece for name, piece in pieces.items()}
        for name, piece in pieces.items():
            held = self._shards.tensors.get(name)
            if held is None or held.shape != piece.shape:
                raise ModelError(
                    f"{name!r} of shape {list(piece.shape)} was looked for in "
                    f"{self.folder.name!r} for the parameter {path!r}, and what is there is "
                    f"{list(held.shape) if held else 'no such tensor'}; load the model with "
                    "transformers and save it again."
                )
        return {name: piece.line for name, piece in pieces.items()}


class Piece(NamedTuple):
    """A tensor on disk: its shape, and the line of its parameter where it begins."""

    shape: tuple[int, ...]
    line: int


def saved_pieces(model: PreTrainedModel, path: str) -> dict[str, Piece]:
    """The tensors that a checkpoint has for a parameter.

    Lines count along all axes but the last. Mixtures keep their experts stacked in memory and
    apart on disk; every other parameter is one tensor.
    """
    shape = model.get_parameter(path).shape
    if len(shape) < 3:
        (saved,) = as_saved(model, {path: torch.empty(shape, device="meta")}).items()
        return {saved[0]: Piece(tuple(saved[1].shape), 0)}
    lines = shape[:-1].numel()
    # Numbers in place of the lines show where each goes, at a fraction of the size.
    numbered = torch.arange(lines).view(*shape[:-1], 1)
    with transformers_at(f"tell where {path} is saved"):
        pieces = as_saved(model, {path: numbered})
    return {
        name: Piece((*piece.shape[:-1], shape[-1]), int(piece.flatten()[0]))
        for name, piece in pieces.items()
    }


def in_memory(weights: Weights, dtype: torch.dtype | None = None) -> Mapping[str, Tensor]:
    """Copies of all parameters by path, each in its own dtype or all in the given one."""
    paths = [path for path, _ in weights.outline.named_parameters()]
    return {path: weights.tensor(path).to(dtype=dtype, copy=True) for path in paths}
