"""``brickwork grow branches --by ensemble``: branches asked together, each read once."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.console import progress

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from brickwork.cli.branches_inputs import Domain
    from brickwork.model.load import LoadedModel
    from brickwork.model.train import Encoded

_PRIOR_TEXTS = 100  # as many as the paper takes
# Texts to come may go from domain to domain; the paper's 0.3 would believe the last one alone.
_DECAY = 0.9


def measure_ensemble(
    loaded: "LoadedModel",
    folders: Mapping[str, Path],
    domains: "Mapping[str, Domain]",
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Losses of each branch and of the ensemble, its prior, and whose domain it takes texts for.

    Args:
        loaded: the base; its tokenizer reads the texts of the prior.
        folders: of the branches; one is in memory at a time.
        domains: what is measured on.
        options: ``top``, ``prior``, ``longest`` and ``device``.
    """
    from brickwork.grow.domain_posterior import ensemble_losses, estimate_prior, uniform_prior

    sets = {name: domain.measured for name, domain in domains.items()}
    hints = _hints(loaded, options)
    heard = _heard(folders, [*sets.values(), *([hints] if hints else [])], options)
    prior = estimate_prior(heard[-1], decay=_DECAY) if hints else uniform_prior(len(folders))
    branches: dict[str, dict[str, float]] = {name: {} for name in folders}
    joined, before = {}, {}
    for (name, texts), said in zip(sets.items(), heard, strict=False):
        found = ensemble_losses(said, texts, prior, top=options["top"])
        tokens = found.response_tokens.sum()
        joined[name] = float(found.response.sum() / tokens)
        before[name] = dict(zip(folders, found.before.mean(1).tolist(), strict=True))
        for number, branch in enumerate(folders):
            alone = ensemble_losses(said[number : number + 1], texts, uniform_prior(1))
            branches[branch][name] = float(alone.response.sum() / tokens)
    return {
        "branches": branches, "joined": {"ensemble": joined}, "posterior": before,
        "prior": dict(zip(folders, prior.exp().tolist(), strict=True)),
    }  # fmt: skip


def _hints(loaded: "LoadedModel", options: Mapping[str, Any]) -> "list[Encoded]":
    from brickwork.cli.branches_inputs import longest_text, read_texts

    if options["prior"] is None:
        return []
    longest = longest_text(loaded, options["longest"])
    return [text for _, text in read_texts(loaded, str(options["prior"]), longest)][:_PRIOR_TEXTS]


def _heard(
    folders: Mapping[str, Path], sets: "list[list[Encoded]]", options: Mapping[str, Any]
) -> "list[Float[Tensor, 'domains samples predictions']]":
    """For each set of texts, what every branch says of it."""
    import torch

    from brickwork.grow.domain_posterior import branch_likelihoods
    from brickwork.model.load import load_model

    said: list[list[Tensor]] = []
    with progress("asking branches", len(folders) * sum(map(len, sets))) as advance:
        for folder in folders.values():
            model = load_model(str(folder), device=options["device"]).model
            said.append([branch_likelihoods(model, texts, advance=advance) for texts in sets])
    return [torch.stack(every) for every in zip(*said, strict=True)]
