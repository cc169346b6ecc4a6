"""How ``brickwork grow branches`` makes one model of its branches: their average, or a mixture."""

import shutil
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.combine_models import fetch_model
from brickwork.cli.console import progress

if TYPE_CHECKING:
    from brickwork.cli.branches_inputs import Domain
    from brickwork.combine.mixture_recipe import MixtureRecipe
    from brickwork.model.load import LoadedModel


def average_branches(folders: Mapping[str, Path], out: Path) -> None:
    """Write the plain mean of the branches' weights; keeps one that is there already.

    Raises:
        GrowthError: if something else is there.
        MergeError: if the branches cannot be averaged.
    """
    from brickwork.combine.engine import write_merge
    from brickwork.combine.planner import plan_merge
    from brickwork.combine.recipe import parse_recipe
    from brickwork.combine.sources import Extras
    from brickwork.grow.branches import is_made

    members = _members(folders)
    if is_made(out, {"branches": members}, f"the average of {', '.join(members)}"):
        return
    models = [{"model": str(place), "parameters": {"weight": 1.0}} for place in folders.values()]
    plan = plan_merge(parse_recipe({"merge_method": "linear", "models": models}), fetch_model)
    extras = Extras(record={"branches": members})
    with progress("averaging", sum(prod(t.shape) * t.dtype.itemsize for t in plan.tensors)) as on:
        write_merge(plan, out, extras=extras, advance=on)


def mix_branches(
    folders: Mapping[str, Path], average: Path, out: Path, options: Mapping[str, Any]
) -> "LoadedModel":
    """The mixture with random routers, in float32: the branches' FFNs, and else their average.

    Args:
        folders: of the branches.
        average: folder of theirs.
        out: folder that will hold the tuned mixture; this one lies beside it meanwhile.
        options: ``per_token``, ``seed`` and ``device``.
    """
    from brickwork.combine.mixture import write_mixture
    from brickwork.model.load import load_model

    workshop = Path(tempfile.mkdtemp(prefix=".brickwork-", dir=out.parent))
    try:
        write_mixture(mixture_recipe(folders, average, options), workshop / "mix",
                      fetch=fetch_model)  # fmt: skip
        return load_model(str(workshop / "mix"), device=options["device"], dtype="float32")
    finally:
        shutil.rmtree(workshop)


def tune_mix(
    mix: "LoadedModel", domains: "Mapping[str, Domain]", options: Mapping[str, Any]
) -> list[float]:
    """Train the mixture's routers on all domains; the loss of each step."""
    from brickwork.grow.mix_tune import tune_mixture
    from brickwork.model.fit import FitRecipe

    steps = options["tune_steps"]
    recipe = FitRecipe(options["tune_rate"], steps, options["batch"], seed=options["seed"])
    with progress("tuning", steps) as advance:
        return tune_mixture(
            mix.model, [text for domain in domains.values() for text in domain.train], recipe,
            everything=options["tune"] == "everything", balance=options["balance"],
            report=lambda *_step: advance(1),
        )  # fmt: skip


def write_mix(
    mix: "LoadedModel", folders: Mapping[str, Path], out: Path, options: Mapping[str, Any]
) -> None:
    """Write the tuned mixture in the branches' own number format."""
    import torch

    from brickwork.model.export import write_checkpoint
    from brickwork.model.load import outline_model

    first = next(iter(folders.values()))
    kept = ("tune", "tune_steps", "tune_rate", "balance", "batch", "per_token", "seed")
    record = {
        "operation": "grow branches", "by": "mix", "branches": _members(folders),
        "tuned": {name: options[name] for name in kept},
    }  # fmt: skip
    torch.nn.Module.to(mix.model, dtype=outline_model(str(first)).dtype)
    write_checkpoint(mix.model, out, tokenizer=mix.tokenizer, record=record)


def mixture_size(model: str, count: int, options: Mapping[str, Any]) -> int:
    """Parameters that a mixture of so many branches of a model will have; reads headers alone.

    Raises:
        MergeError: if no family of mixtures fits the model.
        UnknownNameError: if routers of the family that does cannot be trained.
    """
    from brickwork.combine.mixture import plan_mixture
    from brickwork.model.architecture import architecture_for

    same = {str(n): Path(model) for n in range(count)}
    mixture = plan_mixture(
        mixture_recipe(same, Path(model), options), fetch_model, read_prompts=False
    )
    architecture_for(mixture.target.model_type)
    return sum(prod(tensor.shape) for tensor in mixture.plan.tensors)


def mixture_recipe(
    folders: Mapping[str, Path], base: Path, options: Mapping[str, Any]
) -> "MixtureRecipe":
    """The mixture as ``brickwork combine`` takes it."""
    from brickwork.combine.mixture_recipe import parse_mixture

    return parse_mixture({
        "base_model": str(base),
        "experts": [{"source_model": str(folder)} for folder in folders.values()],
        # Of the size that a new linear map has: normal ones would choose one expert for good.
        "gate_mode": "uniform_random",
        "experts_per_token": options["per_token"],
        "seed": options["seed"],
    })  # fmt: skip


def _members(folders: Mapping[str, Path]) -> dict[str, str]:
    from brickwork.grow.branches import branch_hash

    return {name: branch_hash(folder) for name, folder in folders.items()}
