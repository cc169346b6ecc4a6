"""Build a task brick: a LoRA trained with PEFT on prompts and responses.

The base is not changed: PEFT's layers are put in for the training and taken out again.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from brickwork.brick.brick import Brick
from brickwork.brick.folder import read_peft
from brickwork.brick.spec import Function, Lineage
from brickwork.errors import DataError
from brickwork.model.load import LoadedModel
from brickwork.model.train import Batch, Encoded, batches_by_length, pack


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


Report = Callable[[int, int, float], None]


def build_task(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    recipe: LoraRecipe,
    about: About,
    report: Report = lambda step, steps, loss: None,
) -> Brick:
    """A LoRA brick trained on the responses of ``sequences``, its tensors in the base's dtype.

    Args:
        loaded: the base, in the dtype to train in.
        sequences: prompts with responses.
        recipe: form and training of the LoRA.
        about: what the brick says of itself.
        report: called after each step with the step, the number of steps, and the loss.

    Raises:
        DataError: if there is nothing to train on.
    """
    if not sequences:
        raise DataError(f"no training data for brick {about.name!r}; give at least one example.")
    base = loaded.base  # taken before PEFT's layers are in the way
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.targets),
        use_rslora=recipe.rslora,
        task_type="CAUSAL_LM",
    )
    base_grads = {p: p.requires_grad for p in loaded.model.parameters()}
    model = get_peft_model(loaded.model, config)
    try:
        _train(model, sequences, recipe, report)
        model.peft_config["default"].base_model_name_or_path = loaded.name
        with tempfile.TemporaryDirectory() as folder:
            # False: left to find out, PEFT would ask the Hub for the base's vocabulary.
            model.save_pretrained(folder, save_embedding_layers=False)
            brick = read_peft(
                Path(folder),
                base,
                about.name,
                function=about.function,
                licence=about.licence,
            )
    finally:
        model.unload()
        for parameter, wanted in base_grads.items():
            parameter.requires_grad_(wanted)
    arguments = {**asdict(recipe), "targets": list(recipe.targets)}
    lineage = Lineage(method="LoRA, trained with PEFT", arguments=arguments, data=about.data)
    return Brick(brick.spec.model_copy(update={"lineage": lineage}), brick.tensors)


def _train(
    model: torch.nn.Module,
    sequences: Sequence[Encoded],
    recipe: LoraRecipe,
    report: Report,
) -> None:
    shuffle = random.Random(recipe.seed)
    groups = [
        group
        for _ in range(recipe.epochs)
        for group in batches_by_length(sequences, recipe.tokens_per_batch, shuffle)
    ]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / recipe.warm_up, (len(groups) - s) / len(groups))
    )
    for step, group in enumerate(groups, start=1):
        loss = response_loss(model, pack(group, pad=0, prompt_weight=0.0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report(step, len(groups), loss.item())


def response_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The mean loss over the weighted tokens of a batch, with gradients."""
    device = next(model.parameters()).device
    ids, weight = batch.ids.to(device), batch.weight.to(device)
    first = int((weight.sum(0) > 0).nonzero()[0])
    kept = ids.shape[1] - first + 1
    logits = model(input_ids=ids, logits_to_keep=kept).logits[:, :-1].float()
    losses = cross_entropy(logits.transpose(1, 2), ids[:, first:], reduction="none")
    return (losses * weight[:, first:]).sum() / weight[:, first:].sum()
