"""Values: learned vectors make answers likely, alike in every family, and leave no trace."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from brickwork.model.parts import CausalModel, part_of
from brickwork.update.continuation import Continuation
from brickwork.update.values import Descent, Rewriting, Where, learn_values
from tests.tiny import FAMILIES, tiny_model
from tests.world import world

SEQUENCES = ((5, 9, 13, 7, 21, 3, 40, 2, 8), (17, 6, 30, 11), (3, 90, 44, 50, 61, 7, 12))
STARTS = (3, 0, 6)  # of the second nothing is computed before
WIDE = Descent(steps=60, clamp=20.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_a_sequence_gives_the_logits_of_the_whole(family: str) -> None:
    model = tiny_model(family)
    row, position = torch.tensor([0, 0, 1, 2]), torch.tensor([5, 0, 3, 0])
    for first in (0, 1, 2):
        ends = Continuation(model, SEQUENCES, STARTS, first)
        with torch.no_grad():
            found = ends.logits(ends.states, row, position)
            for one, r, p in zip(found, row.tolist(), position.tolist(), strict=True):
                whole = model(torch.tensor([SEQUENCES[r]])).logits[0, STARTS[r] + p]
                # The same sums in another order, in float32.
                torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-5)


def slow_nats(
    model: CausalModel, where: Where, layer: int, rewriting: Rewriting, delta: Tensor
) -> float:
    """The loss on the target, with plain hooks and one pass without padding."""

    def add(_module: object, _args: object, output: Tensor) -> Tensor:
        changed = output.view(1, -1, output.shape[-1]).clone()
        changed[0, rewriting.position] += delta
        return changed.view_as(output)

    path = part_of(model, "mlp.down", layer).module
    block = model.get_submodule(path.rpartition(f".{layer}.")[0] + f".{layer}")
    hook = (model.get_submodule(path) if where == "ffn" else block).register_forward_hook(add)
    try:
        with torch.no_grad():
            ids = torch.tensor([[*rewriting.ids, *rewriting.target[:-1]]])
            logs = model(ids).logits[0, len(rewriting.ids) - 1 :].log_softmax(-1)
    finally:
        hook.remove()
    return -float(logs.gather(1, torch.tensor(rewriting.target)[:, None]).mean())


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("where", ["ffn", "block"])
def test_what_is_learned_does_what_it_says_when_plain_hooks_add_it(
    family: str, where: Where
) -> None:
    model = tiny_model(family)
    prompts = [
        Rewriting(0, SEQUENCES[0], 3, (5, 6)),
        Rewriting(0, SEQUENCES[2], 2),
        Rewriting(1, SEQUENCES[1], 0, (44,)),
        Rewriting(1, SEQUENCES[2], 6, (44,)),
    ]
    learned = learn_values(model, 0, where, prompts, WIDE)
    zero = torch.zeros(learned.delta.shape[1])
    for fact, own in enumerate(([prompts[0]], prompts[2:])):
        after = [slow_nats(model, where, 0, one, learned.delta[fact]) for one in own]
        before = [slow_nats(model, where, 0, one, zero) for one in own]
        # Float32 losses of two passes that sum in different orders.
        assert sum(after) / len(own) == pytest.approx(float(learned.nats[fact]), abs=1e-4)
        assert sum(after) < sum(before)


def test_each_fact_is_learned_as_if_it_were_alone() -> None:
    model = world().loaded.model
    prompts = [Rewriting(n, SEQUENCES[n], 2, (n + 5, n + 9)) for n in (0, 1, 2)]
    together = learn_values(model, 2, "block", prompts, Descent(steps=5))
    for number, one in enumerate(prompts):
        alone = learn_values(
            model, 2, "block", [Rewriting(0, one.ids, 2, one.target)], Descent(steps=5)
        )
        # Five steps of Adam, which divides by the gradients' sizes, amplify rounding.
        torch.testing.assert_close(alone.delta[0], together.delta[number], rtol=1e-2, atol=1e-2)


def test_a_value_is_never_longer_than_the_clamp_and_a_learned_fact_rests() -> None:
    model = world().loaded.model
    prompts = [Rewriting(0, SEQUENCES[0], 2, (9,))]
    short = learn_values(model, 2, "block", prompts, Descent(steps=10, clamp=0.1))
    # Clamped in float32.
    assert short.delta.norm() <= 0.1 * short.said.norm() * (1 + 1e-5)
    easy = learn_values(model, 2, "block", prompts, Descent(enough=100.0))
    assert not easy.delta.any()


def test_a_weight_on_the_divergence_keeps_what_other_prompts_say() -> None:
    model = world().loaded.model
    kept = Rewriting(0, SEQUENCES[0], 8)
    prompts = [Rewriting(0, SEQUENCES[0], 8, (9,)), kept]
    apart = []
    for preserve in (0.0, 100.0):
        learned = learn_values(model, 2, "block", prompts, Descent(preserve=preserve))
        apart.append(float(learned.nats))
    # The two prompts are one and the same, so the answer cannot win while the other is kept.
    assert apart[0] < 1.0 < apart[1]


@pytest.fixture
def watched() -> Iterator[CausalModel]:
    model = tiny_model("llama")
    model.model.norm.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield model
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.model.norm.weight.requires_grad
    assert model.lm_head.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_model_is_left_as_it_was(watched: CausalModel) -> None:
    prompts = [Rewriting(0, SEQUENCES[0], 3, (5, 6)), Rewriting(0, SEQUENCES[1], 1)]
    for where in ("ffn", "block"):
        learn_values(watched, 1, where, prompts, Descent(steps=2))


def test_the_model_is_left_as_it_was_when_a_pass_fails(watched: CausalModel) -> None:
    with pytest.raises(IndexError):
        learn_values(watched, 1, "block", [Rewriting(0, SEQUENCES[0], 3, (5, 600, 7))], Descent())
