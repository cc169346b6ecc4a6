"""A LoRA brick trained with PEFT on prompts and responses (Hu et al. 2021, arXiv:2106.09685).

The base is not changed: PEFT's layers are put in for the training and taken out again.
"""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from brickwork.brick.base import Base
from brickwork.brick.brick import Brick
from brickwork.brick.folder import read_peft
from brickwork.brick.spec import Function, Lineage
from brickwork.errors import DataError
from brickwork.model.fit import FitRecipe, Report, fit
from brickwork.model.load import LoadedModel
from brickwork.model.train import Encoded, batches_by_length


@dataclass(frozen=True)
class LoraRecipe:
    """How a LoRA is trained; ``targets`` are module names as PEFT takes them."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    rslora: bool = False
    rate: float = 2e-3
    epochs: int = 2
    tokens_per_batch: int = 2048
    warm_up: int = 20
    seed: int = 0


@dataclass(frozen=True)
class About:
    """What a new brick says of itself: its name, its function, its data and its licence."""

    name: str
    function: Function
    data: str
    licence: str = ""


def train_lora(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    recipe: LoraRecipe,
    about: About,
    *,
    penalty: Callable[[PeftModel], Float[Tensor, ""]] | None = None,
    report: Report = lambda step, steps, loss: None,
) -> Brick:
    """A LoRA brick trained on the responses of ``sequences``, its tensors in the base's dtype.

    Args:
        loaded: the base, in the dtype to train in.
        sequences: prompts with responses.
        recipe: form and training of the LoRA.
        about: what the brick says of itself.
        penalty: what is added to the loss of each batch, given the model with PEFT's layers.
        report: called after each step with the step, the number of steps, and the loss.

    Raises:
        DataError: if there is nothing to train on.
    """
    if not sequences:
        raise DataError(f"no training data for brick {about.name!r}; give at least one example.")
    base = loaded.base  # taken before PEFT's layers are in the way
    shuffle = random.Random(recipe.seed)
    groups = [
        group
        for _ in range(recipe.epochs)
        for group in batches_by_length(sequences, recipe.tokens_per_batch, shuffle)
    ]
    how = FitRecipe(recipe.rate, len(groups), warm_up=recipe.warm_up, seed=recipe.seed)
    with lora_layers(loaded, recipe) as model:
        trained = [p for p in model.parameters() if p.requires_grad]
        added = None if penalty is None else lambda: penalty(model)
        fit(model, trained, groups, how, penalty=added, report=report)
        brick = _taken(model, base, about)
    arguments = {**asdict(recipe), "targets": list(recipe.targets)}
    lineage = Lineage(method="LoRA, trained with PEFT", arguments=arguments, data=about.data)
    return Brick(brick.spec.model_copy(update={"lineage": lineage}), brick.tensors)


@contextmanager
def lora_layers(loaded: LoadedModel, recipe: LoraRecipe) -> Iterator[PeftModel]:
    """Inside, the model has PEFT's layers, ready to train; afterwards it is as it was."""
    row = loaded.architecture
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.targets),
        use_rslora=recipe.rslora,
        fan_in_fan_out=row is not None and row.orientation == "in out",
        task_type="CAUSAL_LM",
    )
    asking = {p: p.requires_grad for p in loaded.model.parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model: Any = get_peft_model(loaded.model, config)
    model.peft_config["default"].base_model_name_or_path = loaded.name
    try:
        yield model
    finally:
        model.unload()
        for parameter, wanted in asking.items():
            parameter.requires_grad_(wanted)


def _taken(model: PeftModel, base: Base, about: About) -> Brick:
    """PEFT's layers as a brick, by the files that PEFT writes."""
    config: Any = model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)  # a set has no order of its own
    with tempfile.TemporaryDirectory() as folder:
        # False: left to find out, PEFT would ask the Hub for the base's vocabulary.
        model.save_pretrained(folder, save_embedding_layers=False)
        return read_peft(
            Path(folder), base, about.name, function=about.function, licence=about.licence
        )
