"""response_losses: equal to the loss that transformers computes with labels, one by one."""

import pytest
import torch

from brickwork.measure.perplexity import response_losses
from brickwork.model.train import Encoded
from tests.tiny import tiny_model


def one_by_one(model: torch.nn.Module, sequences: list[Encoded]) -> float:
    total, tokens = 0.0, 0
    for sequence in sequences:
        labels = torch.tensor([sequence.ids])
        labels[:, : sequence.response_start] = -100
        count = len(sequence.ids) - sequence.response_start
        loss = model(input_ids=torch.tensor([sequence.ids]), labels=labels).loss
        total, tokens = total + loss.item() * count, tokens + count
    return total / tokens


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_equals_the_loss_of_transformers_whatever_the_batch(family: str) -> None:
    model = tiny_model(family)
    chance = torch.Generator().manual_seed(0)
    lengths = [(5, 3), (9, 1), (4, 6), (12, 2), (7, 7)]
    sequences = [
        Encoded(torch.randint(4, 90, (p + r,), generator=chance).tolist(), p) for p, r in lengths
    ]
    found = response_losses(model, sequences, ["a", "b", "a", "b", "a"], rows=3)
    with torch.inference_mode():
        for label, chosen in (("a", (0, 2, 4)), ("b", (1, 3))):
            # float32 sums in another order, over padded batches
            assert found[label] == pytest.approx(
                one_by_one(model, [sequences[i] for i in chosen]), abs=1e-4
            )
