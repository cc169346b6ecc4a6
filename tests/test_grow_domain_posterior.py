"""The ensemble by domain posterior: a slow loop, laws, refusals."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from brickwork.errors import BrickworkError, ConfigurationError, DataError, GrowthError
from brickwork.grow.domain_posterior import (
    branch_likelihoods,
    ensemble_losses,
    estimate_prior,
    mix_likelihoods,
    next_token_log_probabilities,
    uniform_prior,
)
from brickwork.measure.perplexity import instance_losses
from brickwork.model.train import Encoded
from tests.tiny import tiny_model

TEXTS = (
    Encoded([5, 40, 70, 99, 12, 30, 8], 3),
    Encoded([9, 3, 77], 2),
    Encoded([60, 61, 62, 63, 64], 0),
    Encoded([21, 100, 4, 4, 4, 50, 51, 52, 53], 8),
)


def branches(count: int, family: str = "llama") -> list[PreTrainedModel]:
    return [tiny_model(family, seed) for seed in range(count)]


def heard(models: Sequence[PreTrainedModel]) -> Tensor:
    return torch.stack([branch_likelihoods(model, TEXTS) for model in models])


@torch.no_grad()
def slow(
    models: Sequence[PreTrainedModel], prior: Sequence[float], top: int
) -> tuple[list[float], list[list[float]]]:
    """Losses on responses, and the domains' probabilities at their start: plain numbers, float64.

    Nothing is in logarithms, nothing is batched, and the posterior is updated token by token.
    """
    losses, starts = [], []
    for text in TEXTS:
        said = [model.double()(torch.tensor([text.ids])).logits[0].softmax(-1) for model in models]
        posterior, nats = list(prior), 0.0
        for place in range(1, len(text.ids)):
            if place == max(text.response_start, 1):
                starts.append(list(posterior))
            each = [float(s[place - 1, text.ids[place]]) for s in said]
            kept = sorted(range(len(models)), key=lambda d: -posterior[d])[:top]
            total = sum(posterior[d] for d in kept)
            if place >= max(text.response_start, 1):
                nats -= math.log(sum(posterior[d] / total * each[d] for d in kept))
            updated = [p * e for p, e in zip(posterior, each, strict=True)]
            posterior = [u / sum(updated) for u in updated]
        losses.append(nats)
    return losses, starts


@pytest.mark.parametrize("top", [1, 2, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_equals_a_slow_loop_over_tokens(family: str, top: int) -> None:
    prior = [0.5, 0.2, 0.3]
    found = ensemble_losses(
        heard(branches(3, family)), TEXTS, torch.tensor(prior, dtype=torch.float64).log(), top=top
    )
    losses, starts = slow(branches(3, family), prior, top)
    # The models run in float32 here, and in float64 there.
    assert found.response.tolist() == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(found.before.T, torch.tensor(starts).double(), rtol=1e-4, atol=1e-6)
    assert found.response_tokens.tolist() == [4, 1, 4, 1]


def test_one_branch_alone_has_its_own_loss() -> None:
    model = tiny_model("llama")
    found = ensemble_losses(heard([model]), TEXTS, uniform_prior(1))
    # The same float32 losses, summed in float64 in another order.
    torch.testing.assert_close(found.response, instance_losses(model, TEXTS).response, rtol=1e-6,
                               atol=0)  # fmt: skip
    assert torch.equal(found.after, torch.ones(1, len(TEXTS), dtype=torch.float64))


@pytest.mark.parametrize("top", [None, 1])
def test_equal_branches_have_the_loss_of_one_and_keep_the_prior(top: int | None) -> None:
    model = tiny_model("llama")
    prior = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64).log()
    found = ensemble_losses(heard([model] * 3), TEXTS, prior, top=top)
    torch.testing.assert_close(found.response, instance_losses(model, TEXTS).response, rtol=1e-6,
                               atol=0)  # fmt: skip
    # Rounding of a sum of log-likelihoods in float64.
    torch.testing.assert_close(found.after, prior.exp()[:, None].expand(3, len(TEXTS)))


def test_the_order_of_branches_does_not_matter() -> None:
    said, prior = heard(branches(3)), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    turned = torch.tensor([2, 0, 1])
    one = ensemble_losses(said, TEXTS, prior, top=2)
    other = ensemble_losses(said[turned], TEXTS, prior[turned], top=2)
    torch.testing.assert_close(one.response, other.response)  # rounding of sums in float64
    torch.testing.assert_close(one.after[turned], other.after)


def test_the_losses_never_exceed_those_of_the_best_branch_by_more_than_the_prior_says() -> None:
    # Over a whole text the ensemble is a mixture of the branches: the law of Bayes.
    whole = [Encoded(text.ids, 1) for text in TEXTS]
    said = heard(branches(3))
    found = ensemble_losses(said, whole, uniform_prior(3))
    mixture = -(said.sum(-1) + uniform_prior(3)[:, None]).logsumexp(0)
    torch.testing.assert_close(found.response, mixture)  # rounding in float64
    assert bool((found.response <= -said.sum(-1).max(0).values + math.log(3)).all())


def test_padding_says_nothing() -> None:
    said = heard(branches(2))
    wider = torch.nn.functional.pad(said, (0, 5))
    one, other = (mix_likelihoods(s, uniform_prior(2)) for s in (said, wider))
    assert torch.equal(one.posterior[..., -1], other.posterior[..., -1])


def test_a_prior_is_a_moving_average_of_posteriors() -> None:
    said = torch.tensor([[[0.9], [0.2]], [[0.3], [0.8]]], dtype=torch.float64).log()
    first = [0.9 / 1.2, 0.3 / 1.2]
    after = [0.3 * 0.5 + 0.7 * p for p in first]
    second = [after[0] * 0.2, after[1] * 0.8]
    expected = [0.3 * a + 0.7 * s / sum(second) for a, s in zip(after, second, strict=True)]
    assert estimate_prior(said).exp().tolist() == pytest.approx(expected, rel=1e-12)  # float64


def test_a_prior_stays_finite_after_many_texts_of_one_domain() -> None:
    said = torch.tensor([[-1.0], [-40.0]], dtype=torch.float64).unsqueeze(-1).expand(2, 2000, 1)
    found = estimate_prior(said)
    assert bool(found.isfinite().all())
    assert found[0] > math.log(0.99)


@pytest.mark.parametrize("top", [None, 1])
def test_the_next_token_is_what_the_losses_are_taken_of(top: int | None) -> None:
    models, prior = branches(3), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    prompts = [text.ids[:-1] for text in TEXTS]
    said, posterior = next_token_log_probabilities(models, prompts, prior, top=top)
    last = [Encoded(text.ids, len(text.ids) - 1) for text in TEXTS]
    found = ensemble_losses(heard(models), last, prior, top=top)
    nats = [-float(row[text.ids[-1]]) for row, text in zip(said, TEXTS, strict=True)]
    # The posterior is summed in float32 here, and in float64 there.
    assert nats == pytest.approx(found.response.tolist(), rel=1e-4)
    torch.testing.assert_close(posterior.T.double(), found.before.log(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said.exp().sum(-1), torch.ones(len(TEXTS)))  # float32


@pytest.mark.parametrize("family", ["gpt_neox", "opt", "gemma3_text", "qwen3_moe"])
def test_reads_models_of_all_families_and_leaves_them_as_they_are(family: str) -> None:
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = branch_likelihoods(model, TEXTS)
    losses = instance_losses(model, TEXTS, whole=True)
    assert losses.whole is not None
    # The same float32 losses, summed in float64 in another order.
    torch.testing.assert_close(-said.sum(1), losses.whole, rtol=1e-6, atol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_refuses_what_does_not_go_together() -> None:
    said, small = heard(branches(2)), tiny_model("llama")
    small.resize_token_embeddings(96)

    def refused(kind: type[BrickworkError], message: str, call: object) -> None:
        assert callable(call)
        with pytest.raises(kind, match=message):
            call()

    refused(
        ConfigurationError, "2 branches were given with a prior over 3 domains",
        lambda: mix_likelihoods(said, uniform_prior(3)),
    )  # fmt: skip
    for top in (0, 3):
        refused(
            ConfigurationError, rf"the {top} likeliest of 2 domains .*choose from 1 to 2",
            lambda top=top: mix_likelihoods(said, uniform_prior(2), top=top),
        )  # fmt: skip
    refused(ConfigurationError, "with a decay of 1", lambda: estimate_prior(said, decay=1.0))
    refused(
        DataError, "2 texts were .* 1 of them have no second token",
        lambda: branch_likelihoods(small, [Encoded([3], 1), Encoded([3, 4], 1)]),
    )  # fmt: skip
    refused(
        GrowthError, "vocabularies of 112, 96 tokens; take branches of one base",
        lambda: next_token_log_probabilities(
            [tiny_model("llama"), small], [[1, 2]], uniform_prior(2)
        ),
    )  # fmt: skip
    refused(
        DataError, "1 of them are empty",
        lambda: next_token_log_probabilities([small], [[1], []], uniform_prior(1)),
    )  # fmt: skip
