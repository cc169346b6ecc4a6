"""How well a model predicts responses: mean loss in nats per response token."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from brickwork.model.train import Encoded, pack


@torch.inference_mode()
def response_losses(
    model: torch.nn.Module, sequences: Sequence[Encoded], labels: Sequence[str], rows: int = 16
) -> dict[str, float]:
    """Mean loss in nats per response token, for each label.

    Args:
        model: any causal language model of transformers; its mode and weights stay as they are.
        sequences: prompts with responses; the loss is taken on the responses alone.
        labels: the group of each sequence.
        rows: sequences per batch; they are batched by length.
    """
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    device = next(model.parameters()).device
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        batch = pack([sequences[i] for i in chosen], pad=0, prompt_weight=0.0)
        ids, weight = batch.ids.to(device), batch.weight[:, 1:].to(device)
        first = min(sequences[i].response_start for i in chosen)
        kept = ids.shape[1] - first + 1  # logits from just before the first response on
        logits = model(input_ids=ids, logits_to_keep=kept).logits[:, :-1].float()
        loss = cross_entropy(logits.transpose(1, 2), ids[:, first:], reduction="none")
        loss = loss * weight[:, first - 1 :]
        for i, row_loss, row_tokens in zip(chosen, loss.sum(1), weight.sum(1), strict=True):
            totals[labels[i]][0] += row_loss.item()
            totals[labels[i]][1] += row_tokens.item()
    return {label: loss / tokens for label, (loss, tokens) in sorted(totals.items())}
