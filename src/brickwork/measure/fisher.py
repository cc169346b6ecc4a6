"""The diagonal of the Fisher information: how much each parameter decides what a model answers.

Source: Matena and Raffel 2021, Merging Models with Fisher-Weighted Averaging (arXiv:2111.09832).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.measure.perplexity import only_logits_of
from brickwork.model.parts import CausalModel
from brickwork.model.train import Encoded

Advance = Callable[[float], None]


def add_fisher(
    model: CausalModel,
    sequences: Sequence[Encoded],
    sums: Mapping[str, Tensor],
    *,
    draw: torch.Generator | None = None,
    advance: Advance = lambda _steps: None,
) -> None:
    """Add the squared gradient of every instance's log-likelihood to the sums.

    The log-likelihood of an instance is the sum over its response's tokens. Instances go one by
    one, for a batch's gradient is not the sum of squares; the gradient of a parameter is squared
    and let go as soon as it is there, so that they are never all in memory.

    Args:
        model: it is left as it is.
        sequences: prompts with responses.
        sums: one for each parameter, of its shape, in float32.
        draw: each response token is drawn from what the model expects there, not taken from the
            data (which is the empirical Fisher information); None takes the data's.
        advance: told the number of instances that have just been done.

    Source:
        Matena and Raffel 2021, arXiv:2111.09832, section 3. They draw a whole answer; we draw each
        token after the data's own beginning of the answer.
    """
    with _squares(model, sums):
        for sequence in sequences:
            _log_likelihood(model, sequence, draw).backward()
            advance(1)


@torch.enable_grad()
def _log_likelihood(
    model: CausalModel, sequence: Encoded, draw: torch.Generator | None
) -> Float[Tensor, ""]:
    device = next(model.parameters()).device
    ids = torch.tensor([sequence.ids], device=device)
    start = max(sequence.response_start, 1)
    position = torch.arange(start - 1, ids.shape[1] - 1, device=device)
    with only_logits_of(model, torch.zeros_like(position), position):
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
    answer = ids[0, start:]
    if draw is not None:
        chances = logits.detach().softmax(-1).cpu()
        answer = torch.multinomial(chances, 1, generator=draw)[:, 0].to(device)
    likelihood: Tensor = logits.log_softmax(-1).gather(1, answer[:, None]).sum()
    return likelihood


@contextmanager
def _squares(model: CausalModel, sums: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, gradients of parameters go into the sums; all else is as before afterwards."""
    with ExitStack() as stack:
        for name, parameter in model.named_parameters():
            stack.callback(_restore, parameter, parameter.requires_grad, parameter.grad)
            parameter.requires_grad_()
            parameter.grad = None
            hook = parameter.register_post_accumulate_grad_hook(_into(sums[name]))
            stack.callback(hook.remove)
        yield


def _restore(parameter: Tensor, asked: bool, gradient: Tensor | None) -> None:
    parameter.requires_grad_(asked)
    parameter.grad = gradient


def _into(total: Tensor) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        total.add_(parameter.grad.float().square_().to(total.device))
        parameter.grad = None

    return add
