"""Fine-tuning: within its bound, of low rank, and exactly the gradient's directions."""

import pytest
import torch

from brickwork.errors import EditError
from brickwork.model.load import wrap_model
from brickwork.model.parts import part_of
from brickwork.update.edit import Edit
from brickwork.update.facts import Fact
from brickwork.update.finetune import leading_directions
from brickwork.update.method import EditContext, EditSite
from brickwork.update.plan import Asked, plan_edit
from brickwork.update.words import encode_fact
from tests.edits import edited, scores, tiny_facts
from tests.tiny import tiny_model, tiny_tokenizer
from tests.world import world


def plan(context: EditContext, facts: list[Fact], **options: float) -> Edit:
    return plan_edit(context, facts, Asked("ft", options))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text"])
def test_the_gradient_of_the_weight_lies_in_the_span_of_the_basis(family: str) -> None:
    """What makes the change exactly of low rank: autograd on the weight knows no basis."""
    loaded = wrap_model(tiny_model(family), tiny_tokenizer())
    facts = tiny_facts(loaded, 2)
    edit = plan(EditContext(loaded, EditSite((0,), "last"), raw=True), facts, steps=200, bound=1.0)
    part = part_of(loaded.model, "mlp.down", 0)
    weight = loaded.model.get_parameter(part.weight)
    A = edit.brick.tensors[f"{part.module}/A"].double()
    torch.testing.assert_close(A @ A.T, torch.eye(len(A)).double(), atol=1e-5, rtol=0)  # float32
    for fact in facts:
        one = encode_fact(loaded, fact, raw=True)
        logits = loaded.model(torch.tensor([one.prompt.ids])).logits[0, -1]
        loss = -logits.log_softmax(-1)[one.target[0]]
        (gradient,) = torch.autograd.grad(loss, [weight])
        by_inputs = (gradient if part.out_axis == 0 else gradient.T).double()
        # Float32 activations.
        assert (by_inputs - by_inputs @ A.T @ A).norm() < 1e-4 * by_inputs.norm()


def test_the_change_keeps_its_bound_and_its_rank() -> None:
    loaded = world().loaded
    context = EditContext(loaded, EditSite((0,), "last"))
    facts = world().edits(3, seed=3)
    edit = plan(context, facts, bound=0.3, rank=5)
    (path,) = edit.keys
    A, B = (edit.brick.tensors[f"{path}/{slot}"] for slot in "AB")
    assert len(A) == 5
    weight = loaded.model.get_parameter(f"{path}.weight").detach()
    # Float32 products.
    assert (B @ A).norm() <= 0.3 * float(weight.norm()) * (1 + 1e-4)
    assert edit.record.owners is None
    with pytest.raises(EditError, match="none of 3 facts"):
        plan(context, facts, bound=0.001)


def test_the_world_learns_facts() -> None:
    loaded = world().loaded
    facts = world().edits(4, seed=3)
    edit = plan(EditContext(loaded, EditSite((0,), "last")), facts)
    with edited(loaded, edit.brick):
        assert scores(loaded, facts).s >= 80
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert len(next(iter(edit.keys.values()))) == 4


def test_directions_that_nothing_reads_are_no_directions() -> None:
    inputs = torch.zeros(10, 6)
    inputs[:, 1] = torch.arange(10)
    inputs[0, 4] = 1
    found = leading_directions(inputs, 5)
    assert found.shape == (2, 6)
    assert found[0].abs().argmax() == 1
