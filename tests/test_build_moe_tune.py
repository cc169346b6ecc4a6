"""Training of a mixture of experts: it learns, and what it promises to keep holds afterwards."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from brickwork.build.moe import export_moe
from brickwork.build.moe_tune import (
    MoeRecipe,
    balance_loss,
    soft_routers,
    standardised,
    tune_moe,
)
from brickwork.errors import ConfigurationError, DataError
from brickwork.measure.perplexity import instance_losses
from brickwork.model.train import Encoded
from tests.moe import choices, dense, divide, masked, said, tokens


def sequences(count: int = 24) -> list[Encoded]:
    """Texts that repeat two tokens, so that there is something to learn."""
    generator = torch.Generator().manual_seed(3)
    pairs = torch.randint(2, 112, (count, 2), generator=generator).tolist()
    return [Encoded(pair * (4 + i % 3), 2) for i, pair in enumerate(pairs)]


def loss(model: nn.Module) -> float:
    found = instance_losses(model, sequences())  # type: ignore[arg-type]
    return float(found.response.sum() / found.response_tokens.sum())


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_trained_routers_lower_the_loss_and_experts_go_on_weighing_one() -> None:
    loaded = dense("llama")
    partition = divide(loaded)
    model = export_moe(loaded, partition, top_k=1)
    before, weights = loss(model), {n: p.clone() for n, p in model.named_parameters()}
    steps: list[int] = []
    tune_moe(
        model, sequences(), MoeRecipe(steps=20, tokens_per_batch=128), generator=seed(),
        report=lambda step, _loss, _balance: steps.append(step),
    )  # fmt: skip
    assert steps == list(range(1, 21))
    assert loss(model) < before - 0.01
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, weights[n])}
    assert changed == {f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)}
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    with choices(model) as chosen:
        found = said(model)
    torch.testing.assert_close(found, masked(loaded, partition, chosen), atol=1e-4, rtol=0)


def test_trained_experts_lower_it_further() -> None:
    loaded = dense("llama")
    losses = []
    for rate in (0.0, 0.02):
        model = export_moe(loaded, divide(loaded), top_k=1)
        recipe = MoeRecipe(steps=10, expert_rate=rate, tokens_per_batch=128)
        tune_moe(model, sequences(), recipe, generator=seed())
        losses.append(loss(model))
    assert losses[1] < losses[0] - 0.02


@pytest.mark.parametrize(("family", "shared"), [("qwen3", 0), ("qwen3", 16), ("olmo2", 0)])
def test_every_kind_of_routing_can_be_trained(family: str, shared: int) -> None:
    loaded = dense(family)
    partition = divide(loaded, shared=shared)
    model = export_moe(loaded, partition, top_k=2)
    routers = [p.clone() for n, p in model.named_parameters() if n.endswith("mlp.gate.weight")]
    tune_moe(model, sequences(), MoeRecipe(steps=3, tokens_per_batch=128), generator=seed())
    after = [p for n, p in model.named_parameters() if n.endswith("mlp.gate.weight")]
    assert not any(torch.equal(a, b) for a, b in zip(routers, after, strict=True))
    with choices(model) as chosen:
        found = said(model)
    torch.testing.assert_close(found, masked(loaded, partition, chosen), atol=1e-4, rtol=0)


def test_equal_seeds_train_alike() -> None:
    loaded = dense("llama")
    models = [export_moe(loaded, divide(loaded), top_k=1) for _ in range(2)]
    for model in models:
        tune_moe(model, sequences(), MoeRecipe(steps=3, tokens_per_batch=64), generator=seed())
    assert all(
        torch.equal(a, b)
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True)
    )


def test_soft_routers_change_no_output_and_leave_no_trace() -> None:
    loaded = dense("llama")
    model = export_moe(loaded, divide(loaded), top_k=2)
    plain = said(model)
    with soft_routers(model) as seen:
        soft = said(model)
    # The same sum with zeros in it, weights averaged over tokens.
    torch.testing.assert_close(soft, plain, atol=1e-4, rtol=0)
    assert [hard.sum(1).unique().tolist() for _, hard in seen] == [[2], [2]]
    assert torch.equal(said(model), plain)


def test_an_expert_that_was_not_chosen_gets_a_gradient() -> None:
    loaded = dense("llama")
    model = export_moe(loaded, divide(loaded), top_k=1, routers={0: BIASED, 1: BIASED})
    with soft_routers(model) as seen:
        model(tokens()).logits.logsumexp(-1).sum().backward()
    idle = ~seen[0][1].any(0)
    assert idle.any()
    grad = model.get_parameter("model.layers.0.mlp.gate.weight").grad
    assert grad is not None
    assert bool((grad[idle].abs().sum(1) > 0).all())


# Two groups that no token of the tests chooses: their scores are the negatives of each other's
# and a hundredth of the first two groups' in size.
BIASED = torch.cat([torch.eye(32)[:1], -torch.eye(32)[:1], torch.eye(32)[1:3] * 1e-6])


def test_balance_is_as_in_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = standardised(torch.randn(50, 8, generator=generator))
    hard = nn.functional.one_hot(logits.topk(2).indices, 8).sum(1).bool()
    mask = torch.rand(50, generator=generator) < 0.7
    expected = load_balancing_loss_func((logits,), 8, 2, mask[None].float())
    assert balance_loss(logits, hard, mask) == pytest.approx(float(expected), rel=1e-5)


def test_balance_is_least_where_use_is_even() -> None:
    even = torch.eye(4).repeat(3, 1) * 9
    uneven = torch.eye(4)[:1].repeat(12, 1) * 9
    found = [
        balance_loss(x, x.bool(), torch.ones(12, dtype=torch.bool)).item() for x in (even, uneven)
    ]
    assert found[0] == pytest.approx(1.0)
    assert found[1] > 3.9


def test_standardised_logits_have_spread_one_also_where_they_are_tiny() -> None:
    logits: Tensor = torch.randn(20, 6) * 2.0**-17 + 1e-3
    found = standardised(logits)
    # Logits of 1e-3 are known to 2^-33 of float32, a 2^-16th of their spread.
    torch.testing.assert_close(found.square().mean(1), torch.ones(20), atol=1e-3, rtol=0)
    assert torch.equal(standardised(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_what_cannot_be_trained_is_refused() -> None:
    loaded = dense("llama")
    recipe = MoeRecipe(steps=1)
    model = export_moe(loaded, divide(loaded), top_k=1)
    with pytest.raises(DataError, match="no training data"):
        tune_moe(model, [], recipe, generator=seed())
    with pytest.raises(ConfigurationError, match="has 0 routers"):
        tune_moe(loaded.model, sequences(), recipe, generator=seed())
    with pytest.raises(ConfigurationError, match="all 4 experts are chosen"):
        tune_moe(export_moe(loaded, divide(loaded)), sequences(), recipe, generator=seed())
    with pytest.raises(ConfigurationError, match="bfloat16 model"):
        tune_moe(model.to(torch.bfloat16), sequences(), recipe, generator=seed())  # type: ignore[arg-type]
