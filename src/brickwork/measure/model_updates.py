"""What fine-tuned models changed of their base, tensor by tensor from the disk."""

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from brickwork.errors import MergeError
from brickwork.measure.updates import SiteUpdates, site_seed, whole_updates
from brickwork.model.shards import Shards


class ModelUpdates:
    """The task vectors of models, one tensor at a time.

    Args:
        base: folder of the checkpoint that all were fine-tuned from.
        models: folders of their checkpoints, at least one.
        names: of the models, for errors.

    Raises:
        MergeError: if a model lacks a tensor of the base, or has one of another shape.
    """

    def __init__(self, base: Path, models: Sequence[Path], names: Sequence[str]) -> None:
        self._base, self._models = Shards(base), [Shards(folder) for folder in models]
        self.names = list(names)
        held = self._base.tensors
        self.tensors = sorted(name for name in held if held[name].dtype.is_floating_point)
        for name, model in zip(names, self._models, strict=True):
            for tensor in self.tensors:
                found = model.tensors.get(tensor)
                if found is None or found.shape != held[tensor].shape:
                    raise MergeError(
                        f"{name!r} cannot be compared with its base: the tensor {tensor!r} is "
                        f"{'missing' if found is None else list(found.shape)}, the base has "
                        f"{list(held[tensor].shape)}; name the base that it was made from."
                    )

    @property
    def values(self) -> int:
        """Of one model, all tensors together."""
        return sum(prod(self._base.tensors[name].shape) for name in self.tensors)

    def sites(self, rank: int, seed: int = 0) -> Iterator[SiteUpdates]:
        """Every tensor that a model changed.

        Args:
            rank: principal directions found of each.
            seed: of the search for them.

        Raises:
            MergeError: if a value is not finite.
        """
        for name in self.tensors:
            base = _matrix(self._base.tensor(name))
            updates = [_matrix(model.tensor(name)) - base for model in self._models]
            for model, update in zip(self.names, updates, strict=True):
                if not update.isfinite().all():
                    raise MergeError(
                        f"the tensor {name!r} of {model!r} or of its base holds NaN or infinity; "
                        "mend that model or leave it out."
                    )
            if any(update.any() for update in updates):
                chance = torch.Generator().manual_seed(site_seed(seed, name))
                yield whole_updates(name, updates, rank, chance)


def _matrix(tensor: Tensor) -> Tensor:
    rows = tensor.float()
    return rows.reshape(-1, rows.shape[-1]) if rows.dim() > 1 else rows.reshape(1, -1)
