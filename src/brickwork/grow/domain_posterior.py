"""Branches as one ensemble: each token's prediction is weighed by whose domain the text is of.

``p(x_t | x_<t) = sum_d p(d | x_<t) p_d(x_t | x_<t)``, where ``p(d | x_<t)`` follows by Bayes from a
prior over the domains and from what the branches themselves said of the text so far. Li et al.
2022, Branch-Train-Merge (arXiv:2208.03306); Gururangan et al. 2021, DEMix (arXiv:2108.05036).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.errors import ConfigurationError, DataError, GrowthError
from brickwork.measure.perplexity import TOKENS_PER_BATCH, token_losses
from brickwork.model.parts import CausalModel
from brickwork.model.train import Encoded, groups_by_length, pack

_LOGITS_PER_BATCH = 1 << 27  # at most half a gigabyte of float32 logits at once


@dataclass(frozen=True, eq=False)
class Mixed:
    """What an ensemble says of some texts.

    Attributes:
        log_likelihoods: of each token after the first; 0 where there is none.
        posterior: log-probability of each domain before the first such token, before the second,
            and so on; the last entry is what the whole text says.
    """

    log_likelihoods: Float[Tensor, "samples predictions"]
    posterior: Float[Tensor, "domains samples prefixes"]


@dataclass(frozen=True, eq=False)
class EnsembleLosses:
    """Summed losses of an ensemble, and whose domain it took each text to be of.

    Attributes:
        response: nats over a text's response.
        response_tokens: the tokens that these are sums over.
        before: probability of each domain when the response begins.
        after: the same, when the text has ended.
    """

    response: Float[Tensor, " samples"]
    response_tokens: Float[Tensor, " samples"]
    before: Float[Tensor, "domains samples"]
    after: Float[Tensor, "domains samples"]


def uniform_prior(domains: int) -> Float[Tensor, " domains"]:
    """Every domain as likely as any other, as log-probabilities."""
    return torch.full((domains,), 1 / domains, dtype=torch.float64).log()


def mix_likelihoods(
    likelihoods: Float[Tensor, "domains samples predictions"],
    prior: Float[Tensor, " domains"],
    *,
    top: int | None = None,
) -> Mixed:
    """What the ensemble says, from what its branches say.

    Args:
        likelihoods: each branch's log-likelihood of each token after the first; 0 for padding, so
            that padding leaves the posterior as it is.
        prior: log-probability of each domain before any token.
        top: so many of the likeliest domains take part in a prediction, weighed anew to sum to 1.
            The posterior itself goes on over all of them. None: all take part.

    Raises:
        ConfigurationError: if there are fewer than ``top`` domains, or none is to take part.

    Source:
        Li et al. 2022, arXiv:2208.03306, section 2.2; Gururangan et al. 2021, arXiv:2108.05036.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> said = torch.tensor([[[0.9, 0.9]], [[0.1, 0.1]]]).log()
    >>> mix_likelihoods(said, half).log_likelihoods.exp()
    tensor([[0.5000, 0.8200]])
    """
    domains = len(likelihoods)
    _require_prior(prior, domains)
    start = prior.to(likelihoods).view(-1, 1, 1).expand(-1, likelihoods.shape[1], 1)
    evidence = torch.cat([start, start + likelihoods.cumsum(-1)], dim=-1)
    posterior = evidence.log_softmax(0)
    weights = _leading(posterior, top)[..., :-1]
    return Mixed((weights + likelihoods).logsumexp(0), posterior)


def branch_likelihoods(
    model: CausalModel,
    sequences: Sequence[Encoded],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    advance: Callable[[float], None] = lambda _steps: None,
) -> Float[Tensor, "samples predictions"]:
    """One branch's log-likelihood of each token after the first, prompts too; 0 for padding.

    In float64 on the CPU, so that branches can be asked one after the other, and need not be in
    memory together.

    Args:
        model: the branch; it is left as it is.
        sequences: texts of two tokens at least.
        tokens_per_batch: padded tokens at once; fewer if the vocabulary is large.
        advance: told the number of texts that have just been done.

    Raises:
        DataError: if there is no text, or one has no token to predict.
    """
    short = [n for n, s in enumerate(sequences) if len(s.ids) < 2]
    if short or not sequences:
        raise DataError(
            f"{len(sequences)} texts were to be read by a branch, and {len(short)} of them have no "
            "second token to predict; give texts of two tokens at least."
        )
    budget = min(tokens_per_batch, _LOGITS_PER_BATCH // model.config.get_text_config().vocab_size)
    lengths = [len(s.ids) for s in sequences]
    found = torch.zeros(len(sequences), max(lengths) - 1, dtype=torch.float64)
    for group in groups_by_length(lengths, budget):
        with torch.inference_mode():
            nats, _ = token_losses(model, [sequences[i] for i in group], whole=True)
        found[group, : nats.shape[1]] = -nats.double().cpu()
        advance(len(group))
    return found


def ensemble_losses(
    likelihoods: Float[Tensor, "domains samples predictions"],
    sequences: Sequence[Encoded],
    prior: Float[Tensor, " domains"],
    *,
    top: int | None = None,
) -> EnsembleLosses:
    """The ensemble's losses on the texts that its branches have read.

    Args:
        likelihoods: of ``branch_likelihoods``, one layer for each branch.
        sequences: the same texts; each is known by its prompt before its response is predicted.
        prior: log-probability of each domain before any token.
        top: as in ``mix_likelihoods``.

    Raises:
        ConfigurationError: as ``mix_likelihoods``.
    """
    mixed = mix_likelihoods(likelihoods, prior, top=top)
    ends = torch.tensor([len(s.ids) for s in sequences])
    starts = torch.tensor([max(s.response_start, 1) for s in sequences])
    place = torch.arange(1, likelihoods.shape[-1] + 1)
    counted = (place >= starts[:, None]) & (place < ends[:, None])
    rows = torch.arange(len(sequences))
    return EnsembleLosses(
        response=-(mixed.log_likelihoods * counted).sum(1),
        response_tokens=counted.sum(1).to(likelihoods.dtype),
        before=mixed.posterior[:, rows, starts - 1].exp(),
        after=mixed.posterior[:, rows, -1].exp(),
    )


def estimate_prior(
    likelihoods: Float[Tensor, "domains samples predictions"], *, decay: float = 0.3
) -> Float[Tensor, " domains"]:
    """The prior that texts of the kind to come suggest, as log-probabilities, to be kept for them.

    After each text the prior moves towards the posterior of that text: a moving average.

    Args:
        likelihoods: of ``branch_likelihoods`` on such texts, in their order; some hundred.
        decay: how much of the prior each text leaves, between 0 and 1. The paper's 0.3 hears
            the last few texts only; near 1 suits text that goes from domain to domain.

    Raises:
        ConfigurationError: if ``decay`` is out of range.

    Source:
        Li et al. 2022, arXiv:2208.03306, section 2.2. There, posteriors are summed with weights
        that fall from the first text on; here, as a moving average has it, the latest weigh most.
    """
    if not 0 < decay < 1:
        raise ConfigurationError(
            f"a prior was to be averaged with a decay of {decay}; choose one between 0 and 1."
        )
    prior = uniform_prior(len(likelihoods)).to(likelihoods)
    for evidence in likelihoods.sum(-1).unbind(1):
        posterior = (prior + evidence).log_softmax(0)
        prior = torch.logaddexp(prior + math.log(decay), posterior + math.log1p(-decay))
    return prior.log_softmax(0)


@torch.inference_mode()
def next_token_log_probabilities(
    branches: Sequence[CausalModel],
    prompts: Sequence[Sequence[int]],
    prior: Float[Tensor, " domains"],
    *,
    top: int | None = None,
) -> tuple[Float[Tensor, "rows vocabulary"], Float[Tensor, "rows domains"]]:
    """What the ensemble says next, and whose domain it takes each prompt to be of.

    Args:
        branches: at least one, with one vocabulary; they are left as they are.
        prompts: token ids, at least one each, of any lengths.
        prior: log-probability of each domain before any token.
        top: as in ``mix_likelihoods``.

    Returns:
        Log-probabilities of the next token, and of the domains, in float32 on the first branch's
        device.

    Raises:
        GrowthError: if the branches have different vocabularies.
        DataError: if a prompt is empty.
        ConfigurationError: as ``mix_likelihoods``.
    """
    _require_alike(branches)
    if not prompts or not all(prompts):
        raise DataError(
            f"the next token after {len(prompts)} prompts was asked for, and "
            f"{sum(not p for p in prompts)} of them are empty; give at least one token each."
        )
    batch = pack([Encoded(list(p), len(p)) for p in prompts], pad=0, prompt_weight=1.0)
    last = torch.tensor([len(p) - 1 for p in prompts])
    heard, spoken = [], []
    home = next(branches[0].parameters()).device
    for model in branches:
        ids = batch.ids.to(next(model.parameters()).device)
        logits = model(input_ids=ids, use_cache=False).logits.float()
        likelihoods = _gathered(logits[:, :-1], ids[:, 1:]) * batch.weight[:, 1:].to(logits)
        heard.append(likelihoods.sum(1).to(home))
        spoken.append(logits[torch.arange(len(prompts)), last].log_softmax(-1).to(home))
    _require_prior(prior, len(branches))
    posterior = (torch.stack(heard) + prior.to(heard[0])[:, None]).log_softmax(0)
    weights = _leading(posterior, top)
    said = (torch.stack(spoken) + weights.unsqueeze(-1)).logsumexp(0)
    return said, posterior.T


def _gathered(
    logits: Float[Tensor, "rows tokens vocabulary"], ids: Tensor
) -> Float[Tensor, "rows tokens"]:
    picked: Tensor = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    return picked


def _leading(
    posterior: Float[Tensor, "domains *texts"], top: int | None
) -> Float[Tensor, "domains *texts"]:
    """The log-weights of the likeliest domains, summing to 1; the others weigh nothing."""
    domains = len(posterior)
    if top is None or top == domains:
        return posterior
    if not 0 < top < domains:
        raise ConfigurationError(
            f"the {top} likeliest of {domains} domains were to take part; choose from 1 to "
            f"{domains}."
        )
    kept = posterior.topk(top, dim=0).indices
    silent = torch.full_like(posterior, -torch.inf)
    return silent.scatter(0, kept, posterior.gather(0, kept)).log_softmax(0)


def _require_prior(prior: Float[Tensor, " domains"], domains: int) -> None:
    if len(prior) != domains:
        raise ConfigurationError(
            f"{domains} branches were given with a prior over {len(prior)} domains; give one "
            "log-probability for each branch."
        )


def _require_alike(branches: Sequence[CausalModel]) -> None:
    sizes = [model.config.get_text_config().vocab_size for model in branches]
    if len(set(sizes)) != 1:
        raise GrowthError(
            f"an ensemble of {len(branches)} branches was asked for, with vocabularies of "
            f"{', '.join(map(str, sizes)) or 'no'} tokens; take branches of one base."
        )
