"""The training loop: AdamW, a rate that rises and falls in straight lines, clipped gradients."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from brickwork.errors import ConfigurationError, DataError, ModelError
from brickwork.model.train import Batch, Encoded, batches_by_length, pack

Report = Callable[[int, int, float], None]


@dataclass(frozen=True)
class FitRecipe:
    """How parameters are trained.

    Attributes:
        rate: learning rate at most.
        steps: batches, at least 1.
        tokens_per_batch: padded tokens at once, for ``training_batches``.
        warm_up: steps over which the rate rises; it falls to 0 over all steps.
        weight_decay: share of a weight that a step takes away, as a multiple of its rate; of every
            parameter that is trained.
        prompt_weight: of a prompt's token in the loss; one of the response weighs 1.
        clip: norm that the gradients have together at most.
        seed: of the order of the batches, and of dropout.
        mixed: whether matrices are multiplied in bfloat16; weights and steps stay as they are.
    """

    rate: float
    steps: int
    tokens_per_batch: int = 2048
    warm_up: int = 20
    weight_decay: float = 0.0
    prompt_weight: float = 0.0
    clip: float = 1.0
    seed: int = 0
    mixed: bool = False


def fit(
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    batches: Iterable[Sequence[Encoded]],
    recipe: FitRecipe,
    *,
    penalty: Callable[[], Tensor] | None = None,
    report: Report = lambda step, steps, loss: None,
) -> list[float]:
    """Train parameters of a model on responses, in place; the loss of each batch.

    Nothing else of the model is trained or keeps a gradient meanwhile, and afterwards parameters
    ask for gradients as they did. The model computes in the mode it is in (with dropout only
    after ``model.train()``) and where it is. Interrupted, it stays trained as far as it came.

    Args:
        model: a causal language model of transformers, maybe with PEFT's layers in it.
        parameters: what is trained.
        batches: at least as many as there are steps, as ``training_batches`` makes them; more are
            not asked for.
        recipe: how it is trained.
        penalty: what is added to the loss of each batch, computed after the model has run.
        report: called after each step with the step, the number of steps, and the loss without
            the penalty.

    Raises:
        ConfigurationError: if there is no step, or nothing to train.
        DataError: if batches run out, or one has no token to predict.
        ModelError: if the loss is no number any more.

    Source:
        Kingma & Ba 2015 (arXiv:1412.6980), with the weight decay of Loshchilov & Hutter 2019
        (arXiv:1711.05101).
    """
    trained = list(parameters)
    with only_training(model, trained):
        return descend(model, trained, batches, recipe, penalty=penalty, report=report)


def descend(
    model: nn.Module,
    parameters: Sequence[Tensor],
    batches: Iterable[Sequence[Encoded]],
    recipe: FitRecipe,
    *,
    penalty: Callable[[], Tensor] | None = None,
    report: Report = lambda step, steps, loss: None,
) -> list[float]:
    """``fit`` without deciding what asks for gradients: for parameters that are no module's own.

    ``parameters`` get their gradients from the loss of the model, on whatever way.
    """
    if recipe.steps < 1 or not parameters:
        raise ConfigurationError(
            f"training {len(parameters)} parameters in {recipe.steps} steps was asked for; name at "
            "least one parameter and one step."
        )
    optimizer = AdamW(
        parameters, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = rise_and_fall(optimizer, recipe.steps, recipe.warm_up)
    losses: list[float] = []
    with _accelerator(model, recipe) as accelerator:
        for group in islice(batches, recipe.steps):
            batch = pack(group, pad=0, prompt_weight=recipe.prompt_weight)
            with accelerator.autocast():
                loss = response_loss(model, batch)
                whole = loss if penalty is None else loss + penalty()
            losses.append(_number(whole, loss, len(losses) + 1))
            accelerator.backward(whole)
            accelerator.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            report(len(losses), recipe.steps, losses[-1])
    if len(losses) < recipe.steps:
        raise DataError(
            f"{recipe.steps} steps were to be trained, but only {len(losses)} batches came; give "
            "more data, or fewer steps."
        )
    return losses


def _number(whole: Tensor, loss: Tensor, step: int) -> float:
    if not torch.isfinite(whole):
        raise ModelError(
            f"at step {step} of the training the loss is {whole.item()}; train with a lower rate "
            "or a longer warm-up, in float32."
        )
    return loss.item()


def rise_and_fall(optimizer: torch.optim.Optimizer, steps: int, warm_up: int) -> LambdaLR:
    """The rate rises over the first ``warm_up`` steps, and falls to 0 over all ``steps``."""
    return LambdaLR(optimizer, lambda s: min((s + 1) / max(warm_up, 1), (steps - s) / steps))


def training_batches(sequences: Sequence[Encoded], recipe: FitRecipe) -> Iterator[list[Encoded]]:
    """Batches without end, going through the sequences again and again in random order.

    Raises:
        DataError: if there is no sequence.
    """
    if not sequences:
        raise DataError("there is nothing to train on: 0 sequences; give at least one.")
    shuffle = random.Random(recipe.seed)
    while True:
        yield from batches_by_length(sequences, recipe.tokens_per_batch, shuffle)


def response_loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """The mean loss over the weighted tokens of a batch, with gradients.

    Raises:
        DataError: if no token has a weight.
    """
    if not batch.weight.any():
        raise DataError(
            f"a batch of {len(batch.ids)} sequences has no token to predict; give sequences with "
            "responses, or prompts a weight."
        )
    device = next(model.parameters()).device
    ids, weight = batch.ids.to(device), batch.weight.to(device)
    first = int((weight.sum(0) > 0).nonzero()[0])
    kept = ids.shape[1] - first + 1
    logits = model(input_ids=ids, logits_to_keep=kept).logits[:, :-1].float()
    losses = cross_entropy(logits.transpose(1, 2), ids[:, first:], reduction="none")
    return (losses * weight[:, first:]).sum() / weight[:, first:].sum()


@contextmanager
def only_training(model: nn.Module, parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, these parameters alone ask for gradients; afterwards all ask as before, with none."""
    trained = set(parameters)
    before = {p: p.requires_grad for p in (*model.parameters(), *trained)}
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in trained)
        yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)
            parameter.grad = None


@contextmanager
def _accelerator(model: nn.Module, recipe: FitRecipe) -> Iterator[Accelerator]:
    """An accelerator for where the model is, and random numbers of its own.

    Accelerators of a process share their state: ours starts with none, and leaves what was there.
    """
    device = next(model.parameters()).device
    kinds = (AcceleratorState, GradientState, PartialState)
    states = [kind._shared_state for kind in kinds]  # noqa: SLF001 there is no public way
    before = [dict(state) for state in states]
    cards = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=cards, device_type=cards[0].type if cards else "cuda"):
        torch.manual_seed(recipe.seed)
        for state in states:
            state.clear()
        try:
            yield Accelerator(
                mixed_precision="bf16" if recipe.mixed else "no", cpu=device.type == "cpu"
            )
        finally:
            for state, entries in zip(states, before, strict=True):
                state.clear()
                state.update(entries)
