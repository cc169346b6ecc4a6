"""fit: the textbook loop to the bit, what it trains and what it leaves, and refusals."""

import itertools
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn.functional import cross_entropy

from brickwork.errors import ConfigurationError, DataError, ModelError
from brickwork.model.fit import FitRecipe, fit, training_batches
from brickwork.model.train import Encoded
from tests.tiny import FAMILIES, tiny_model

RECIPE = FitRecipe(1e-2, steps=6, tokens_per_batch=40, warm_up=3, weight_decay=0.1)


def copying(count: int = 20) -> list[Encoded]:
    chance = torch.Generator().manual_seed(0)
    words = torch.randint(4, 90, (count, 3), generator=chance).tolist()
    return [Encoded([*w, 3, *w], 4) for w in words]


def test_it_is_adamw_written_out_in_float64() -> None:
    model, other = tiny_model("llama").double(), tiny_model("llama").double()
    losses = fit(model, model.parameters(), training_batches(copying(), RECIPE), RECIPE)
    first = {name: torch.zeros_like(p) for name, p in other.named_parameters()}
    second = {name: torch.zeros_like(p) for name, p in other.named_parameters()}
    groups = itertools.islice(training_batches(copying(), RECIPE), 6)
    for step, (group, found) in enumerate(zip(groups, losses, strict=True)):
        ids = torch.tensor([s.ids for s in group])
        # The loop takes the loss of logits in float32; so does this.
        logits = other(ids).logits[:, 3:6].float()
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten())
        assert found == pytest.approx(loss.item(), abs=1e-5)
        named = dict(other.named_parameters())
        grads = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        rate = 1e-2 * min((step + 1) / 3, (6 - step) / 6)
        with torch.no_grad():
            for name, p in named.items():
                g = grads[name] * min(1.0, 1.0 / norm.item())
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.98 * second[name] + 0.02 * g * g
                mean = first[name] / (1 - 0.9 ** (step + 1))
                spread = (second[name] / (1 - 0.98 ** (step + 1))).sqrt()
                p.mul_(1 - rate * 0.1).sub_(rate * mean / (spread + 1e-8))
    for p, expected in zip(model.parameters(), other.parameters(), strict=True):
        # An element whose gradient is near 0 has a step that depends on its float32 rounding.
        torch.testing.assert_close(p, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_is_named_is_trained(family: str) -> None:
    model = tiny_model(family)
    named = dict(model.named_parameters())
    chosen = list(named)[-1]
    named[chosen].requires_grad_(False)  # it is trained all the same, and then asks as before
    before = {name: p.clone() for name, p in named.items()}
    fit(model, [named[chosen]], training_batches(copying(), RECIPE), RECIPE)
    changed = [name for name, p in named.items() if not torch.equal(p, before[name])]
    assert changed == [chosen]
    assert all(p.requires_grad == (name != chosen) for name, p in named.items())
    assert all(p.grad is None for p in named.values())


def test_what_is_frozen_gets_no_gradient_meanwhile() -> None:
    model = tiny_model("llama")
    seen: list[int] = []

    def penalty() -> torch.Tensor:
        seen.append(sum(p.requires_grad for p in model.parameters()))
        return torch.zeros(())

    fit(
        model,
        [model.lm_head.weight],
        training_batches(copying(), RECIPE),
        RECIPE,
        penalty=penalty,
    )
    assert seen == [1] * 6


def test_a_penalty_pulls() -> None:
    model, plain = tiny_model("llama"), tiny_model("llama")
    weight = model.lm_head.weight
    losses = fit(
        model,
        [weight],
        training_batches(copying(), RECIPE),
        RECIPE,
        penalty=lambda: 100 * weight.square().mean(),
    )
    without = fit(plain, [plain.lm_head.weight], training_batches(copying(), RECIPE), RECIPE)
    assert losses[0] == without[0]  # the losses tell nothing of the penalty
    assert weight.norm() < plain.lm_head.weight.norm()


def test_equal_seeds_give_equal_models_with_dropout_and_leave_chance_alone() -> None:
    models = [tiny_model("gpt2").train() for _ in range(2)]
    before = torch.get_rng_state()
    for number, model in enumerate(models):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)  # what others draw does not matter
            fit(model, model.parameters(), training_batches(copying(), RECIPE), RECIPE)
    first, second = (list(m.parameters()) for m in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    fit(models[0], models[0].parameters(), training_batches(copying(), RECIPE), RECIPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_accelerator_of_the_caller_stays_as_it_was() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    theirs = Accelerator(cpu=True, mixed_precision="bf16")
    model = tiny_model("llama")
    fit(model, model.parameters(), training_batches(copying(), RECIPE), RECIPE)
    assert theirs.mixed_precision == "bf16"
    assert theirs.device.type == "cpu"
    AcceleratorState._reset_state(reset_partial_state=True)
    fit(model, model.parameters(), training_batches(copying(), RECIPE), RECIPE)
    assert not AcceleratorState._shared_state


def test_mixed_precision_rounds_products_but_not_weights() -> None:
    kinds: list[torch.dtype] = []
    model = tiny_model("llama")
    hook = model.lm_head.register_forward_hook(lambda _m, _a, out: kinds.append(out.dtype))
    mixed = FitRecipe(1e-2, steps=2, tokens_per_batch=40, mixed=True)
    losses = fit(model, model.parameters(), training_batches(copying(), mixed), mixed)
    hook.remove()
    assert kinds == [torch.bfloat16] * 2
    assert model.dtype == torch.float32
    plain, recipe = tiny_model("llama"), replace(mixed, mixed=False)
    exact = fit(plain, plain.parameters(), training_batches(copying(), recipe), recipe)
    assert losses[0] != exact[0]
    assert losses[0] == pytest.approx(exact[0], rel=0.02)  # bfloat16 has 8 bits


def test_refuses_what_cannot_be_trained() -> None:
    model = tiny_model("llama")
    with pytest.raises(ConfigurationError, match="training 0 parameters in 6 steps"):
        fit(model, [], training_batches(copying(), RECIPE), RECIPE)
    with pytest.raises(DataError, match="6 steps were to be trained, but only 2 batches came"):
        fit(model, [model.lm_head.weight], [copying(2)] * 2, RECIPE)
    with pytest.raises(DataError, match="a batch of 1 sequences has no token to predict"):
        fit(model, [model.lm_head.weight], [[Encoded([5, 6, 7], 3)]] * 6, RECIPE)
    with pytest.raises(DataError, match="0 sequences; give at least one"):
        next(training_batches([], RECIPE))


def test_refuses_to_go_on_when_the_loss_is_no_number() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = float("inf")
    with pytest.raises(ModelError, match="at step 1 of the training the loss is nan"):
        fit(model, [model.lm_head.weight], training_batches(copying(), RECIPE), RECIPE)
    assert model.lm_head.weight.grad is None
