"""instance_losses: equal to the loss that transformers computes with labels, one by one."""

import pytest
import torch

from brickwork.measure.perplexity import instance_losses, response_losses
from brickwork.model.train import Encoded
from tests.tiny import FAMILIES, tiny_model


def alone(model: torch.nn.Module, sequence: Encoded, start: int) -> float:
    """Nats of the tokens from ``start`` on, summed."""
    labels = torch.tensor([sequence.ids])
    labels[:, :start] = -100
    with torch.inference_mode():
        loss = model(input_ids=torch.tensor([sequence.ids]), labels=labels).loss
    return loss.item() * (len(sequence.ids) - start)


def sequences() -> list[Encoded]:
    chance = torch.Generator().manual_seed(0)
    lengths = [(5, 3), (9, 1), (4, 6), (12, 2), (7, 7)]
    return [
        Encoded(torch.randint(4, 90, (p + r,), generator=chance).tolist(), p) for p, r in lengths
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whole", [True, False])
def test_equals_the_loss_of_transformers_whatever_the_batch(family: str, whole: bool) -> None:
    model, given = tiny_model(family), sequences()
    found = instance_losses(model, given, whole=whole, tokens_per_batch=30)
    assert found.response_tokens.tolist() == [3, 1, 6, 2, 7]
    # float32 sums in another order, over padded batches
    expected = [alone(model, s, s.response_start) for s in given]
    assert found.response.tolist() == pytest.approx(expected, abs=1e-4)
    if not whole:
        assert found.whole is None
        return
    assert found.whole is not None
    assert found.whole.tolist() == pytest.approx([alone(model, s, 1) for s in given], abs=2e-4)
    assert found.whole_tokens.tolist() == [7, 9, 9, 13, 13]


def test_means_are_over_the_tokens_of_a_label() -> None:
    model, given = tiny_model("llama"), sequences()
    found = response_losses(model, given, ["a", "b", "a", "b", "a"])
    for label, chosen in (("a", (0, 2, 4)), ("b", (1, 3))):
        nats = sum(alone(model, given[i], given[i].response_start) for i in chosen)
        tokens = sum(len(given[i].ids) - given[i].response_start for i in chosen)
        assert found[label] == pytest.approx(nats / tokens, abs=1e-4)


def test_nothing_is_left_on_the_model() -> None:
    model = tiny_model("gemma2")
    before = model(torch.arange(2, 12)[None]).logits
    instance_losses(model, sequences())
    assert torch.equal(model(torch.arange(2, 12)[None]).logits, before)
