"""Checkpoints and hand-made plans for the tests of merges."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from brickwork.combine.plan import MergePlan, ModelRef, Operand, TensorPlan


def write_model(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> ModelRef:
    """A checkpoint of any tensors."""
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return ModelRef(str(folder))


def plan_of(
    refs: Sequence[ModelRef], shapes: Mapping[str, tuple[int, ...]], method: str, **fields: Any
) -> MergePlan:
    """A plan that merges all tensors of the models alike; ``fields`` are those of TensorPlan."""
    base = fields.pop("base", None)
    fields = {"dtype": torch.float32, **fields}
    tensors = [
        TensorPlan(
            name, shape, method=method, base=base and Operand(base, name, "base"),
            operands=tuple(Operand(ref, name, Path(ref.model).name) for ref in refs), **fields,
        )
        for name, shape in shapes.items()
    ]  # fmt: skip
    every = [*refs, *([base] if base else [])]
    folders = {ref: Path(ref.model) for ref in every}
    return MergePlan(tensors, folders, {"model_type": "llama"}, every[0])
