"""How well a model predicts responses, or whole sequences: nats, for each instance."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from brickwork.measure.batch import RunningBatch
from brickwork.model.parts import CausalModel
from brickwork.model.train import Encoded, groups_by_length, pack

TOKENS_PER_BATCH = 2048
_LOGITS_PER_BATCH = 1 << 27  # at most half a gigabyte of float32 logits at once


@dataclass(frozen=True, eq=False)
class Losses:
    """Summed losses in nats, and the tokens that they are sums over.

    Attributes:
        whole: over prompt and response without the first token; None if it was not asked for.
    """

    response: Float[Tensor, " samples"]
    response_tokens: Int[Tensor, " samples"]
    whole: Float[Tensor, " samples"] | None
    whole_tokens: Int[Tensor, " samples"]


@torch.inference_mode()
def instance_losses(
    model: CausalModel,
    sequences: Sequence[Encoded],
    *,
    whole: bool = False,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    running: RunningBatch | None = None,
    advance: Callable[[float], None] = lambda _steps: None,
) -> Losses:
    """The losses of every sequence, in float64 on the CPU.

    Logits are computed for the tokens that count alone.

    Args:
        model: any causal language model of transformers; it is left as it is.
        sequences: prompts with responses, at least one token before the response.
        whole: whether the loss on prompts is wanted, too.
        tokens_per_batch: padded tokens at once; fewer if the vocabulary is large.
        running: told of each batch, for taps.
        advance: told the number of sequences that have just been done.
    """
    budget = min(tokens_per_batch, _LOGITS_PER_BATCH // model.config.get_text_config().vocab_size)
    response = torch.zeros(len(sequences), dtype=torch.float64)
    everything = torch.zeros(len(sequences), dtype=torch.float64)
    for group in groups_by_length([len(s.ids) for s in sequences], budget):
        batch = [sequences[i] for i in group]
        if running is not None:
            running.tokens = token_mask(batch).to(next(model.parameters()).device)
        nats, answers = token_losses(model, batch, whole=whole)
        everything[group] = nats.sum(1).double().cpu()
        response[group] = (nats * answers).sum(1).double().cpu()
        advance(len(group))
    starts = torch.tensor([max(s.response_start, 1) for s in sequences])
    ends = torch.tensor([len(s.ids) for s in sequences])
    return Losses(response, ends - starts, everything if whole else None, ends - 1)


def token_losses(
    model: CausalModel, batch: Sequence[Encoded], *, whole: bool
) -> tuple[Float[Tensor, "rows predictions"], Float[Tensor, "rows predictions"]]:
    """Nats of predicting each token after the first, and 1 where it is one of the response.

    What is padding, or prompt where ``whole`` is not asked for, has 0 nats.
    """
    packed = pack(batch, pad=0, prompt_weight=0.5)
    device = next(model.parameters()).device
    ids, weight = packed.ids.to(device), packed.weight[:, 1:].to(device)
    wanted = weight > 0 if whole else weight == 1
    row, position = torch.where(wanted)
    with only_logits_of(model, row, position):
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
    found = logits.logsumexp(-1) - logits.gather(1, ids[row, position + 1, None]).squeeze(1)
    nats = torch.zeros_like(weight, dtype=found.dtype).index_put((row, position), found)
    return nats, (weight == 1).float()


def token_mask(batch: Sequence[Encoded]) -> Bool[Tensor, "rows tokens"]:
    """True where the packed batch has a token, and not padding."""
    lengths = torch.tensor([len(s.ids) for s in batch])
    return torch.arange(int(lengths.max())) < lengths.unsqueeze(1)


@contextmanager
def only_logits_of(
    model: CausalModel, row: Int[Tensor, " chosen"], position: Int[Tensor, " chosen"]
) -> Iterator[None]:
    """Let the model compute the logits of some positions only, as ``1 chosen vocabulary``.

    What a family does to its logits afterwards (a soft cap, a scale) is done all the same.
    """

    def choose(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][row, position].unsqueeze(0), *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def response_losses(
    model: CausalModel,
    sequences: Sequence[Encoded],
    labels: Sequence[str],
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> dict[str, float]:
    """Mean loss in nats per response token, for each label.

    Args:
        model: any causal language model of transformers; its mode and weights stay as they are.
        sequences: prompts with responses; the loss is taken on the responses alone.
        labels: the group of each sequence.
        tokens_per_batch: padded tokens at once.
    """
    losses = instance_losses(model, sequences, tokens_per_batch=tokens_per_batch)
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for label, nats, tokens in zip(labels, losses.response, losses.response_tokens, strict=True):
        totals[label][0] += nats.item()
        totals[label][1] += tokens.item()
    return {label: nats / tokens for label, (nats, tokens) in sorted(totals.items())}
