"""Train a carved model for a while, so that what is left makes up for what is gone.

``lora`` trains low-rank updates of all linear maps with PEFT and merges them afterwards (Ma et al.
2023, LLM-Pruner, arXiv:2305.11627); ``full`` trains every weight.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from brickwork.errors import ConfigurationError, DataError
from brickwork.model.fit import FitRecipe, Report, fit, training_batches
from brickwork.model.parts import row_of
from brickwork.model.train import Encoded

Method = Literal["lora", "full"]
_RATES = {"lora": 1e-3, "full": 2e-4}


@dataclass(frozen=True)
class HealRecipe:
    """How a carved model is trained.

    Attributes:
        steps: batches.
        rate: learning rate at most; None for the method's own.
        rank: of the low-rank updates.
    """

    method: Method = "lora"
    steps: int = 200
    rate: float | None = None
    rank: int = 16
    tokens_per_batch: int = 2048
    warm_up: int = 20


def heal(
    carved: PreTrainedModel,
    sequences: Sequence[Encoded],
    recipe: HealRecipe,
    *,
    generator: torch.Generator,
    report: Report = lambda step, steps, loss: None,
) -> PreTrainedModel:
    """Train a carved model on responses, in place; the same model, ready to evaluate.

    It computes in float32 meanwhile and gets its own number format back. Padding of zeros stays
    zero under ``full``, for no gradient reaches it, but not under ``lora``.

    Args:
        carved: of ``carve_model``, and nobody else's.
        sequences: prompts with responses, none that losses are measured on.
        recipe: how it is trained.
        generator: on the CPU; decides the order and what LoRA starts from.
        report: called after each step with the step, the number of steps, and the loss.

    Raises:
        DataError: if there is nothing to train on.
        ConfigurationError: if there is no such method, or no step.
    """
    if recipe.method not in _RATES or recipe.steps < 1:
        raise ConfigurationError(
            f"healing by {recipe.method!r} in {recipe.steps} steps was asked for; the methods are "
            f"{', '.join(_RATES)}, and there is at least one step."
        )
    if not sequences:
        raise DataError("a model was to be healed on no instance; give at least one.")
    seed = int(torch.randint(1 << 31, (), generator=generator))
    dtype = next(carved.parameters()).dtype
    carved.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipe.method == "lora":
            _heal_lora(carved, sequences, recipe, seed, report)
        else:
            _train(carved, sequences, recipe, seed, report)
    torch.nn.Module.to(carved, dtype=dtype)
    carved.eval()
    return carved


def _heal_lora(
    carved: PreTrainedModel,
    sequences: Sequence[Encoded],
    recipe: HealRecipe,
    seed: int,
    report: Report,
) -> None:
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules="all-linear",
        fan_in_fan_out=row_of(carved).orientation == "in out",
        task_type="CAUSAL_LM",
    )
    with _asking(carved):
        with warnings.catch_warnings():
            # PEFT 0.21 gives experts a rank by a pattern, and looks for it among modules.
            warnings.filterwarnings("ignore", "The following rank_pattern keys", RuntimeWarning)
            warnings.filterwarnings("ignore", "The following alpha_pattern keys", RuntimeWarning)
            # It also asks transformers by an old name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            model: Any = get_peft_model(carved, config)
        _train(model, sequences, recipe, seed, report)
        model.merge_and_unload()


@contextmanager
def _asking(carved: PreTrainedModel) -> Iterator[None]:
    """Which weights are trained by others stays as it was: PEFT freezes all."""
    before = {parameter: parameter.requires_grad for parameter in carved.parameters()}
    try:
        yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)


def _train(
    model: Any,
    sequences: Sequence[Encoded],
    recipe: HealRecipe,
    seed: int,
    report: Report,
) -> None:
    how = FitRecipe(
        recipe.rate or _RATES[recipe.method],
        recipe.steps,
        recipe.tokens_per_batch,
        min(recipe.warm_up, recipe.steps),
        seed=seed,
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    fit(model, trained, training_batches(sequences, how), how, report=report)
