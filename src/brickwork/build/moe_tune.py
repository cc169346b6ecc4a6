"""Train the routers of a mixture of experts made by ``export_moe``, and its experts if wished.

The routers are trained on the mixture's own loss: an expert that lowers the loss of a token, or
would have, is chosen by more tokens like it. A second loss keeps the experts evenly used.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from brickwork.errors import ConfigurationError, DataError
from brickwork.measure.balance import balance_loss
from brickwork.measure.perplexity import token_mask
from brickwork.model.fit import response_loss, rise_and_fall
from brickwork.model.train import Encoded, batches_by_length, pack

_ROUTER, _EXPERTS = ".mlp.gate.weight", (".mlp.experts.", ".mlp.shared_expert")

EXPERT_RATE = 0.01  # what experts are trained with, if at all


@dataclass(frozen=True)
class MoeRecipe:
    """How a mixture of experts is trained.

    Attributes:
        steps: batches, at least 1; the data is gone through as often as needed.
        rate: step of a router's weights, as a share of their root mean square.
        expert_rate: the same for the experts; 0 leaves them as they are.
        balance: weight of the loss on uneven use.
        tokens_per_batch: padded tokens at once.
        warm_up: steps over which the rates rise; then they fall to 0.
    """

    steps: int = 200
    rate: float = 0.02
    expert_rate: float = 0.0
    balance: float = 0.01
    tokens_per_batch: int = 2048
    warm_up: int = 20


Report = Callable[[int, float, float], None]


def tune_moe(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    recipe: MoeRecipe,
    *,
    generator: torch.Generator,
    report: Report = lambda step, loss, balance: None,
) -> None:
    """Train the mixture on the responses, at its own ``top_k``, in place and for good.

    The routers come back centred, and of the size that they had: experts go on weighing 1, so a
    model whose routers alone were trained still says what the dense model says with the neurons
    of the other groups silent, for the same ``top_k`` as before. Where the experts were trained,
    too, nothing ties it to the dense model any more.

    Args:
        model: as ``export_moe`` makes it, in float32.
        sequences: prompts with responses.
        recipe: form of the training.
        generator: decides the order of the batches.
        report: called after each step with the step from 1, the loss on responses and the
            balance loss, ``top_k`` if use is even.

    Raises:
        ConfigurationError: if the model is no mixture of experts, not in float32, or chooses all
            experts for every token.
        DataError: if there is nothing to train on.

    Source:
        Balance: Switch Transformer (Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6), with
        several experts for each token as in transformers. Unlike there, every layer is balanced
        on its own, and logits are standardised, since those of an export are all but equal. The
        gradient of the choice: ``soft_routers``.
    """
    if not sequences:
        raise DataError("no training data for the routers; give at least one example.")
    routers = {n: p for n, p in model.named_parameters() if n.endswith(_ROUTER)}
    if not routers or model.dtype != torch.float32:
        raise ConfigurationError(
            f"routers are trained in a float32 mixture of experts, but this {model.dtype} model "
            f"has {len(routers)} routers; load the dense model in float32 and export it."
        )
    config: Any = model.config
    if config.num_experts_per_tok >= len(next(iter(routers.values()))):
        raise ConfigurationError(
            f"all {config.num_experts_per_tok} experts are chosen for every token, so routers have "
            "nothing to learn; export the model with a smaller top_k."
        )
    experts = {
        n: p for n, p in model.named_parameters() if any(part in n for part in _EXPERTS)
    } if recipe.expert_rate else {}  # fmt: skip
    sizes = {name: _size(p - p.mean(0)) for name, p in routers.items()}
    rates = {n: recipe.rate * size for n, size in sizes.items()}
    rates |= {n: recipe.expert_rate * _size(p) for n, p in experts.items()}
    with _trainable(model, set(rates)):
        _train(model, sequences, recipe, rates, generator, report)
    for name, router in routers.items():
        _level(router, sizes[name])


@torch.no_grad()
def _level(router: Tensor, size: Tensor) -> None:
    """Centre a router and give it a size again: by a power of two, which leaves mantissas alone."""
    router.sub_(router.mean(0))
    router.mul_(2.0 ** round(torch.log2(size / _size(router)).item()))


def _size(weight: Tensor) -> Tensor:
    """Root mean square; of a weight that is all zeros, the least that can be divided by."""
    return weight.detach().square().mean().sqrt().clamp_min(torch.finfo(weight.dtype).tiny)


@contextmanager
def _trainable(model: nn.Module, names: set[str]) -> Iterator[None]:
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    try:
        yield
    finally:
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
            parameter.grad = None


def _train(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    recipe: MoeRecipe,
    rates: Mapping[str, Any],
    generator: torch.Generator,
    report: Report,
) -> None:
    named = dict(model.named_parameters())
    groups = [{"params": [named[n]], "lr": float(rate)} for n, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = rise_and_fall(optimizer, recipe.steps, recipe.warm_up)
    batches = _batches(sequences, recipe.tokens_per_batch, generator)
    for step in range(1, recipe.steps + 1):
        batch = next(batches)
        kept = token_mask(batch).flatten()
        with soft_routers(model) as seen:
            loss = response_loss(model, pack(batch, pad=0, prompt_weight=0.0))
            uneven = torch.stack([balance_loss(*layer, kept) for layer in seen]).mean()
        (loss + recipe.balance * uneven).backward()
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report(step, loss.item(), uneven.item())


def _batches(
    sequences: Sequence[Encoded], tokens_per_batch: int, generator: torch.Generator
) -> Iterator[list[Encoded]]:
    shuffle = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
    while True:
        yield from batches_by_length(sequences, tokens_per_batch, shuffle)


Routing = tuple[Float[Tensor, "tokens experts"], Bool[Tensor, "tokens experts"]]


@contextmanager
def soft_routers(model: nn.Module) -> Iterator[list[Routing]]:
    """Let every expert be heard by the gradient, and note how each router routes.

    Inside, the model computes what it always does, but by all experts, those that were not chosen
    with weight 0. The gradient sees their weights as soft (a sigmoid around the border between
    chosen and not), so that a router learns what an expert would have done for a token.

    Yields:
        A list that gets the standardised logits and the choice of every router in turn.

    Source:
        Straight-through estimator: Bengio et al. 2013, arXiv:1308.3432.
    """
    seen: list[Routing] = []

    def soften(
        _router: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        raw, weights, chosen = output
        experts, top_k = raw.shape[1], chosen.shape[1]
        logits = standardised(raw)
        hard = nn.functional.one_hot(chosen, experts).sum(1).bool()
        seen.append((logits, hard))
        ranked = logits.detach().sort(1, descending=True).values
        border = ranked[:, top_k - 1 : top_k + 1].mean(1, keepdim=True)
        soft = (logits - border).sigmoid()
        weight = (hard + soft - soft.detach()) * weights.detach().mean()
        every = torch.arange(experts, device=raw.device).expand_as(raw)
        return raw, weight.to(weights.dtype), every

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if f"{name}.weight".endswith(_ROUTER):
                hook = module.register_forward_hook(soften)
                stack.callback(hook.remove)
        yield seen


def standardised(logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
    """Logits of spread 1 for each token; the gradient takes the spread for a constant."""
    logits = logits.float()
    centred = logits - logits.mean(1, keepdim=True)
    spread = centred.detach().square().mean(1, keepdim=True).sqrt()
    return centred / spread.clamp_min(torch.finfo(spread.dtype).tiny)
