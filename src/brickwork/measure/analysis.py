"""The whole analysis of a model: which units do what, with nulls, controls and intervals.

Source: Xiao et al. 2024 (arXiv:2409.02877), section 4. Units are scored and chosen on one part of
the instances (localisation) and judged on another (evaluation).
"""

from importlib.metadata import version

import torch

from brickwork.brick.durable import write_file
from brickwork.brick.files import tensor_bytes
from brickwork.measure.activations import Wanted, collect, layout_of
from brickwork.measure.attribution import attribute, attribution_layout
from brickwork.measure.findings import findings
from brickwork.measure.masking import mask_curves
from brickwork.measure.overlap import find_overlap
from brickwork.measure.passes import Passes
from brickwork.measure.perturbation import UnitScores, perturb
from brickwork.measure.results import FILE, FORMAT, Analysis, ModelFacts, Units
from brickwork.measure.rows import Rows, open_rows
from brickwork.measure.scoring import (
    Scored,
    attribution_scores,
    attribution_side,
    compare_sources,
    functionality_of,
    score_units,
    selectivities,
)
from brickwork.measure.study import Study
from brickwork.model.parts import layers_of
from brickwork.model.units import unit_counts

SCORES = "scores.safetensors"
_UNITS: tuple[Units, ...] = ("neurons", "heads", "layers")


def collect_activations(
    study: Study, *, dtype: str = "float32", shard: tuple[int, int] = (1, 1)
) -> Rows:
    """The rows of the localisation instances, complete if all shards are.

    Args:
        study: says what to collect of, and where to.
        dtype: number format of the rows on disk.
        shard: number k of n parts of the work; only that part is done.
    """
    sequences, key = study.localisation.sequences, study.rows_key(study.localisation)
    layout = layout_of(study.loaded.model, len(sequences), Wanted(), key=key, dtype=dtype)
    with study.step("collect"), study.watch("collecting activations", len(sequences)) as advance:
        rows = open_rows(study.folder / "rows", layout, writer=f"{shard[0]}-of-{shard[1]}")
        collect(study.loaded, sequences, rows, Wanted(), shard=shard, advance=advance)
    return rows


def analyze_study(study: Study, *, command: str, dtype: str = "float32") -> Analysis:
    """Carry out an analysis, or the rest of it, and write its results into the study's folder.

    Args:
        study: of ``open_study``.
        command: how to make the analysis again, for the report.
        dtype: number format of the activations on disk.

    Returns:
        What ``analysis.json`` holds; ``scores.safetensors`` has the scores of all units.
    """
    rows = collect_activations(study, dtype=dtype)
    with study.step("score"):
        scored = {units: score_units(study, rows, units) for units in _UNITS}
        sources = compare_sources(study, rows)
    with study.step("attribute"):
        attributed = attribution_scores(study, _attributions(study))
    functionality = functionality_of(study, scored, sources, attributed)
    scores = _unit_scores(study, scored, attributed)
    with study.step("mask"):
        passes = Passes(study)
        sparsity = mask_curves(study, passes)
    with study.step("perturb"):
        perturbation = perturb(study, passes, scores)
    with study.step("compare"):
        neurons = scored["neurons"]
        overlap = find_overlap(
            study.functions, neurons.scores, neurons.null_overlaps, study.settings.share
        )
        _write_scores(study, scores)
    analysis = Analysis(
        format=FORMAT, brickwork=version("brickwork"), command=command, seconds=study.seconds,
        peak_memory=study.peak_memory, model=_model_facts(study), data=study.facts,
        settings=study.settings, sparsity=sparsity, functionality=functionality,
        perturbation=perturbation, overlap=overlap,
        findings=findings(sparsity, functionality, perturbation, overlap),
    )  # fmt: skip
    write_file(study.folder / FILE, (analysis.model_dump_json(indent=1) + "\n").encode())
    return analysis


def _attributions(study: Study) -> Rows:
    side = attribution_side(study)
    sequences, key = side.sequences, study.rows_key(side)
    layout = attribution_layout(study.loaded.model, len(sequences), key=key)
    with study.watch("gradient times activation", len(sequences)) as advance:
        rows = open_rows(study.folder / "attributions", layout)
        attribute(study.loaded, sequences, rows, advance=advance)
    return rows


def _unit_scores(
    study: Study, scored: dict[Units, Scored], attributed: list[torch.Tensor]
) -> UnitScores:
    neurons = scored["neurons"]
    return UnitScores(
        activation=neurons.scores,
        selectivity=selectivities(study, neurons),
        attribution=attributed,
        heads=scored["heads"].scores,
        resident={s.layer: torch.tensor(s.resident, dtype=torch.int64) for s in neurons.layers},
    )


def _write_scores(study: Study, scores: UnitScores) -> None:
    """The scores of all units, by address: ``layers.3.mlp.neurons.activation`` for example."""
    tensors = {}
    for layer in range(layers_of(study.loaded.model)):
        neurons, heads = f"layers.{layer}.mlp.neurons", f"layers.{layer}.attn.heads"
        tensors[f"{neurons}.activation"] = scores.activation[layer]
        tensors[f"{neurons}.selectivity"] = scores.selectivity[layer]
        tensors[f"{neurons}.attribution"] = scores.attribution[layer]
        tensors[f"{neurons}.resident"] = scores.resident[layer]
        tensors[f"{heads}.activation"] = scores.heads[layer]
    write_file(study.folder / SCORES, tensor_bytes(tensors))


def _model_facts(study: Study) -> ModelFacts:
    loaded = study.loaded
    counts = [unit_counts(loaded.model, layer) for layer in range(layers_of(loaded.model))]
    return ModelFacts(
        name=loaded.name,
        family=loaded.model.config.model_type,
        fingerprint=loaded.base.fingerprint.weights,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        hidden=loaded.model.config.get_text_config().hidden_size,
        neurons=[count["mlp.neurons"] for count in counts],
        heads=[count["attn.heads"] for count in counts],
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=loaded.device.type,
    )
