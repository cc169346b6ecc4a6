"""Train the maps of a family on the next token; the two models stay as they are.

Each step trains one point, drawn at random, on one batch.

Source: SN-Net, arXiv:2302.06586, section 3.3, which trains the blocks, too; here only the maps
are trained, so that the two models can be kept once for the whole family.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from brickwork.combine.stitching import Stitch, StitchedFamily
from brickwork.errors import ConfigurationError, DataError
from brickwork.measure.perplexity import token_losses
from brickwork.model.stitched import StitchedModel
from brickwork.model.train import Encoded, batches_by_length


@dataclass(frozen=True)
class TuneRecipe:
    """How maps are trained.

    Attributes:
        steps: batches, each for one point.
        rate: learning rate at most.
        seed: decides points and order.
    """

    steps: int = 200
    rate: float = 3e-3
    tokens_per_batch: int = 2048
    warm_up: int = 20
    seed: int = 0


Report = Callable[[int, int, float], None]


def tune_stitches(
    family: StitchedFamily,
    sequences: Sequence[Encoded],
    recipe: TuneRecipe,
    *,
    report: Report = lambda step, steps, loss: None,
) -> StitchedFamily:
    """The family with maps that were trained on responses; the given one stays as it is.

    Args:
        family: with maps as they were fitted.
        sequences: prompts with responses, none that losses are measured on.
        recipe: how they are trained.
        report: called after each step with the step, the number of steps, and the loss.

    Raises:
        DataError: if there is nothing to train on.
        ConfigurationError: if there is no step.
    """
    if recipe.steps < 1:
        raise ConfigurationError(
            f"stitches were to be tuned in {recipe.steps} steps; give at least one, or do not tune."
        )
    if not sequences:
        raise DataError("stitches were to be tuned on no instance; give at least one.")
    models = [_trained(family, stitch) for stitch in family.stitches]
    parameters = [p for model in models for p in model.stitch.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
    warm_up = min(recipe.warm_up, recipe.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm_up, (recipe.steps - s) / recipe.steps)
    )
    chance = random.Random(recipe.seed)
    for step, group in enumerate(_groups(sequences, recipe, chance), start=1):
        nats, answers = token_losses(chance.choice(models), group, whole=False)
        loss = (nats * answers).sum() / answers.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report(step, recipe.steps, loss.item())
    tuned = [_stitch_of(*pair) for pair in zip(family.stitches, models, strict=True)]
    return StitchedFamily(family.front, family.back, tuple(tuned))


def _trained(family: StitchedFamily, stitch: Stitch) -> StitchedModel:
    model = family.model(stitch.point)
    assert isinstance(model, StitchedModel), "no stitch is at an end"
    for name, parameter in list(model.stitch.named_parameters()):
        model.stitch.register_parameter(name, nn.Parameter(parameter.detach().clone()))
    return model


def _stitch_of(stitch: Stitch, model: StitchedModel) -> Stitch:
    weight, bias = model.stitch.weight.detach(), model.stitch.bias.detach()
    return replace(stitch, weight=weight.cpu(), bias=bias.cpu())


def _groups(
    sequences: Sequence[Encoded], recipe: TuneRecipe, chance: random.Random
) -> Iterator[list[Encoded]]:
    """Batches, going through the instances as often as the steps need."""
    left = recipe.steps
    while left:
        for group in batches_by_length(sequences, recipe.tokens_per_batch, chance)[:left]:
            left -= 1
            yield group
