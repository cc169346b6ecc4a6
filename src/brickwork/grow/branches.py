"""Copies of a model, each trained on a domain of its own: the branches that are merged or mixed.

Nothing passes between branches while they train, so each can be trained on another machine or at
another time. Li et al. 2022, Branch-Train-Merge (arXiv:2208.03306); Sukhbaatar et al. 2024,
Branch-Train-MiX (arXiv:2403.07816).
"""

import copy
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from brickwork.brick.brick import canonical_json
from brickwork.brick.files import read_json
from brickwork.errors import ConfigurationError, DataError, GrowthError
from brickwork.model.export import RECORD, write_checkpoint
from brickwork.model.fingerprint import fingerprint
from brickwork.model.fit import FitRecipe, fit, training_batches
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel
from brickwork.model.train import Encoded

_NAME = re.compile(r"\w[\w.-]*")
_OPERATION = "branch"
Report = Callable[[str, int, int, float], None]


def train_branches(
    loaded: LoadedModel,
    domains: Mapping[str, Sequence[Encoded]],
    folder: Path,
    recipe: FitRecipe,
    *,
    report: Report = lambda domain, step, steps, loss: None,
) -> dict[str, Path]:
    """One checkpoint for each domain: a copy of the model, trained on that domain's texts.

    The model itself stays as it is. A branch that is there already, of this model, these texts and
    this recipe, is kept, so that the same call goes on after a stop. Training is in float32, one
    branch after the other; checkpoints have the model's own number format.

    Args:
        loaded: what all branches start from.
        domains: the texts of each domain, by its name; what is learned is their responses.
        folder: where; each branch gets a folder of its domain's name in it.
        recipe: how each is trained.
        report: called after each step with the domain, the step, the number of steps and the loss.

    Returns:
        The folder of each domain's branch.

    Raises:
        ConfigurationError: if a domain's name cannot be a folder's.
        DataError: if a domain has no text.
        GrowthError: if there is something else in a branch's place.
        ModelError: if a branch cannot be trained or written.
    """
    _require_trainable(domains)
    weights = fingerprint(loaded.model, loaded.tokenizer, loaded.name).weights
    base = {"name": loaded.name, "weights": weights}
    records = {
        domain: {
            "operation": _OPERATION, "domain": domain, "base": base, "data": data_hash(sequences),
            "texts": len(sequences), "recipe": asdict(recipe),
        }
        for domain, sequences in domains.items()
    }  # fmt: skip
    folders = {domain: folder / domain for domain in domains}
    there = {
        domain
        for domain, place in folders.items()
        if is_made(place, records[domain], f"the branch {domain!r}")
    }
    for domain in [domain for domain in domains if domain not in there]:
        branch = _trained(loaded.model, domain, domains[domain], recipe, report)
        write_checkpoint(
            branch, folders[domain], tokenizer=loaded.tokenizer, record=records[domain]
        )
    return folders


def branch_hash(folder: Path) -> str:
    """What identifies a branch: how it came to be, from which model and which texts.

    Raises:
        GrowthError: if the folder holds no branch.
    """
    record = read_json(folder, RECORD)
    if record.get("operation") != _OPERATION:
        raise GrowthError(
            f"{str(folder)!r} was to be a branch, but its {RECORD} tells of "
            f"{record.get('operation')!r}; name a folder that train_branches has written."
        )
    return hashlib.sha256(canonical_json(record).encode()).hexdigest()


def is_made(folder: Path, record: Mapping[str, Any], what: str) -> bool:
    """Whether a model is there already that came to be in just this way.

    Args:
        folder: where it would be.
        record: what its own record has to say, among other things.
        what: it, for the message.

    Raises:
        GrowthError: if something else is there.
    """
    if not folder.exists():
        return False
    found = read_json(folder, RECORD) if (folder / RECORD).is_file() else {}
    other = [key for key, value in record.items() if found.get(key) != value]
    if other:
        raise GrowthError(
            f"{what} was to be written to {str(folder)!r}, which holds something else "
            f"({', '.join(other)} differ); remove it, or name another folder."
        )
    return True


def data_hash(sequences: Sequence[Encoded]) -> str:
    """The sha256 of texts, as tokens in their order."""
    said = [[sequence.ids, sequence.response_start] for sequence in sequences]
    return hashlib.sha256(canonical_json(said).encode()).hexdigest()


def _trained(
    model: CausalModel,
    domain: str,
    sequences: Sequence[Encoded],
    recipe: FitRecipe,
    report: Report,
) -> CausalModel:
    branch = copy.deepcopy(model)
    dtype = next(model.parameters()).dtype
    torch.nn.Module.to(branch, dtype=torch.float32)
    fit(
        branch, branch.parameters(), training_batches(sequences, recipe), recipe,
        report=lambda step, steps, loss: report(domain, step, steps, loss),
    )  # fmt: skip
    torch.nn.Module.to(branch, dtype=dtype)
    return branch


def _require_trainable(domains: Mapping[str, Sequence[Encoded]]) -> None:
    unfit = [domain for domain in domains if not _NAME.fullmatch(domain)]
    if unfit or not domains:
        raise ConfigurationError(
            f"branches of {len(domains)} domains were asked for"
            + (f", among them {unfit[0]!r}, which cannot be a folder's name" if unfit else "")
            + "; give at least one, named by letters, digits, '.', '-' and '_'."
        )
    empty = [domain for domain, sequences in domains.items() if not sequences]
    if empty:
        raise DataError(
            f"a branch was to be trained on the domain {empty[0]!r}, which has no text; give some, "
            "or leave it out."
        )
