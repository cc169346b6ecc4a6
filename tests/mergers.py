"""Checkpoints in folders, as merges read them, and recipes that name them by letters."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from brickwork.combine.plan import MergePlan, ModelRef
from brickwork.combine.planner import plan_merge
from brickwork.combine.recipe import parse_recipe
from tests.tiny import FAMILIES


@cache
def _model(family: str, layers: int | None, changes: tuple[tuple[str, Any], ...]) -> Any:
    config = FAMILIES[family]()
    if layers is not None:
        config.num_hidden_layers = layers
    for key, value in changes:
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(config)


def save_tiny(
    folder: Path, family: str = "llama", layers: int | None = None, **changes: Any
) -> Path:
    """A checkpoint of a tiny model; its values do not matter."""
    _model(family, layers, tuple(changes.items())).save_pretrained(folder)
    return folder


def plan_letters(folder: Path, document: dict[str, Any]) -> MergePlan:
    """The plan of a recipe whose models are folders below this one."""
    return plan_merge(parse_recipe(document), lambda ref: folder / ref.model)


def edit_tensors(folder: Path, **changes: Tensor | None) -> None:
    """Replace, add or (None) remove tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "model.safetensors")


def edit_config(folder: Path, **changes: Any) -> None:
    """Replace, add or (None) remove settings of a checkpoint."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in config.items() if v is not None}))


A, B, BASE = ModelRef("A"), ModelRef("B"), ModelRef("BASE")
