"""What ``brickwork carve`` reads: instances, examples, a partition, an analysis."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.inputs import read_labelled

if TYPE_CHECKING:
    from brickwork.brick.partition import Partition
    from brickwork.measure.aim import Aim
    from brickwork.measure.instances import Instance
    from brickwork.measure.need import Asked
    from brickwork.model.load import LoadedModel


def read_aim(model: str, loaded: "LoadedModel", options: Mapping[str, Any]) -> "Aim":
    """What is to be kept able, from ``--for`` or ``--like`` and the data."""
    from brickwork.errors import ConfigurationError
    from brickwork.measure.aim import aim_at, aim_like

    data = options["data"] or ("reference" if model == "reference" else None)
    how = {name: options[name] for name in ("evaluation", "seed", "longest")}
    if options["like"]:
        others = read_labelled(data, options) if data else []
        return aim_like(loaded, read_examples(options["like"]), others, **how)
    if data is None:
        raise ConfigurationError(
            f"{options['function']!r} is to be kept, but there are no labelled instances that show "
            "what it is; name some with --data, or give examples with --like."
        )
    return aim_at(loaded, read_labelled(data, options), options["function"], **how)


def read_examples(path: Path) -> "list[Instance]":
    """Prompts with responses that show what is meant; they need no functionality."""
    from brickwork.measure.instances import instance_of
    from brickwork.measure.records import read_records

    return [
        instance_of({"functionality": "examples"} | record, where)
        for where, record in read_records(path)
    ]


def make_asked(
    loaded: "LoadedModel",
    sequences: list[Any],
    options: Mapping[str, Any],
    advance: Callable[[float], None] = lambda _steps: None,
    function: str = "",
) -> "Asked":
    """The question what is needed, with the partition and the scores that options name."""
    import torch

    from brickwork.brick.partition import read_partition
    from brickwork.measure.need import Asked

    place = options["partition"]
    partition = None if place is None else read_partition(place)
    if partition is not None and not options["dry_run"]:  # an outline has no fingerprint
        _require_own(loaded, partition, place)
    scores = {}
    if options["analysis"] is not None and function:
        scores = _scores(loaded, options["analysis"], options["units"], function)
    return Asked(
        loaded, options["units"], sequences, torch.Generator().manual_seed(options["seed"]),
        partition=partition, scores=scores, advance=advance,
    )  # fmt: skip


def _require_own(loaded: "LoadedModel", partition: "Partition", folder: Path) -> None:
    """Refuse the groups of another model, also where the shapes are the same."""
    from brickwork.brick.check import fingerprint_misfits
    from brickwork.errors import ConfigurationError, listed

    problems = fingerprint_misfits(partition.spec.base, loaded.base.fingerprint)
    if problems:
        raise ConfigurationError(
            f"groups of {loaded.name!r} were asked for, but the partition in {folder.name} is of "
            f"another model; make one of this model:{listed(problems)}"
        )


def _scores(loaded: "LoadedModel", folder: Path, units: str, function: str) -> dict[int, Any]:
    """The scores of an analysis of this model, for one functionality."""
    from brickwork.brick.files import read_tensors
    from brickwork.errors import ConfigurationError, UnknownNameError
    from brickwork.measure.analysis import SCORES
    from brickwork.report.read import read_analysis

    analysis = read_analysis(folder)
    if analysis.model.fingerprint != loaded.base.fingerprint.weights:
        raise ConfigurationError(
            f"the analysis in {folder.name} is of {analysis.model.name!r} "
            f"({analysis.model.fingerprint[:12]}), not of these weights "
            f"({loaded.base.fingerprint.weights[:12]}); analyze the model that is carved."
        )
    names = [own.name for own in analysis.data.functions]
    if function not in names:
        raise UnknownNameError("functionality of this analysis", function, names)
    part = "attn.heads" if units == "heads" else "mlp.neurons"
    tensors, column = read_tensors(folder, SCORES), names.index(function)
    layers = range(len(analysis.model.neurons))
    return {n: tensors[f"layers.{n}.{part}.activation"][:, column] for n in layers}
