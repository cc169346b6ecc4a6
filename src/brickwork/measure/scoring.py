"""From rows on disk to scores: every neuron, head and layer, for every functionality."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.measure.activations import block_name
from brickwork.measure.average_precision import average_precision
from brickwork.measure.functionality import (
    Draws,
    agreement,
    draw,
    one_hot,
    resident_units,
    score_layer,
    selectivity,
)
from brickwork.measure.results import Agreement, Functionality, LayerScores, Units
from brickwork.measure.rows import Rows
from brickwork.measure.sources import source_controls
from brickwork.measure.study import Side, Study
from brickwork.model.parts import layers_of
from brickwork.model.taps import output_norms
from brickwork.model.units import unit_counts

_STATISTIC = {"neurons": "mean_abs", "heads": "output_norm", "layers": "change"}
# Gradients are taken of so many times the evaluation instances of each functionality.
_ATTRIBUTED = 3
_REHEARSED_UNITS = 256


@dataclass(frozen=True, eq=False)
class Scored:
    """All scores of one kind of unit: for each layer its summary, scores, and null overlaps."""

    layers: list[LayerScores]
    scores: list[Float[Tensor, "units functions"]]
    null_overlaps: list[Tensor]


def score_units(study: Study, rows: Rows, units: Units) -> Scored:
    """Score every unit of every layer on the localisation instances."""
    scored = Scored([], [], [])
    layers = layers_of(study.loaded.model)
    with study.watch(f"scoring {units}", layers) as advance:
        for layer in range(layers):
            name, make = f"scores/{units}-{layer:03d}", partial(_score, study, rows, units, layer)
            kept = study.kept(name, make=make)
            summary = bytes(kept["summary"].tolist())
            scored.layers.append(LayerScores.model_validate_json(summary))
            scored.scores.append(kept["scores"])
            scored.null_overlaps.append(kept["null_overlaps"])
            advance(1)
    return scored


def _score(study: Study, rows: Rows, units: Units, layer: int) -> dict[str, Tensor]:
    activity = rows.read(block_name(units, layer, _STATISTIC[units]))
    side, settings = study.localisation, study.settings
    resident: list[int] = []
    if units == "neurons":
        norms = output_norms(study.loaded.model, layer).cpu()
        resident = resident_units(activity.float() * norms, side.labels).tolist()
    outcome = score_layer(
        activity, side.labels, study.functions,
        layer=layer, share=settings.share, draws=draws_of(study), resident=resident,
    )  # fmt: skip
    summary = outcome.summary.model_dump_json().encode()
    return {
        "scores": outcome.scores.float(),
        "null_overlaps": outcome.null_overlaps,
        "summary": torch.tensor(list(summary), dtype=torch.uint8),
    }


def draws_of(study: Study) -> Draws:
    """What chance decides, the same for all units of a study."""
    settings = study.settings
    return draw(
        study.localisation.labels,
        permutations=settings.permutations,
        resamples=settings.resamples,
        generator=study.generator("scores"),
    )


def attribution_side(study: Study) -> Side:
    """The localisation instances that gradients are taken of."""
    side = study.localisation
    counts = [_ATTRIBUTED * len(study.evaluation.of(f)) for f in range(len(study.functions))]
    chosen = torch.cat([side.of(f)[:count] for f, count in enumerate(counts)]).tolist()
    return Side(
        [side.instances[i] for i in chosen],
        [side.sequences[i] for i in chosen],
        side.labels[chosen],
    )


def attribution_scores(study: Study, rows: Rows) -> list[Float[Tensor, "units functions"]]:
    """Every neuron scored by gradient times activation."""
    labels = one_hot(attribution_side(study).labels, len(study.functions))
    layers = range(layers_of(study.loaded.model))

    def make(layer: int) -> dict[str, Tensor]:
        activity = rows.read(block_name("neurons", layer, "attribution"))
        return {"scores": average_precision(activity, labels).float()}

    return [
        study.kept(f"scores/attribution-{n:03d}", make=partial(make, n))["scores"] for n in layers
    ]


def functionality_of(
    study: Study, rows: Rows, scored: dict[Units, Scored], attributed: list[Tensor]
) -> Functionality:
    """All that is said about single units."""
    share, names = study.settings.share, study.functions
    sources = [instance.source for instance in study.localisation.instances]
    pairs = zip(scored["neurons"].scores, attributed, strict=True)
    return Functionality(
        neurons=scored["neurons"].layers,
        heads=scored["heads"].layers,
        layers=scored["layers"].layers,
        sources=source_controls(
            _activities(study, rows), study.localisation.labels, names, sources
        ),
        attribution=[_agreement(n, a, b, share, names) for n, (a, b) in enumerate(pairs)],
        attribution_instances=len(attribution_side(study).sequences),
    )


def _agreement(
    layer: int, first: Tensor, second: Tensor, share: float, functions: list[str]
) -> Agreement:
    correlation, overlap = agreement(first, second, share, functions)
    return Agreement(layer=layer, correlation=correlation, overlap=overlap)


def selectivities(study: Study, neurons: Scored) -> list[Float[Tensor, "units functions"]]:
    """For each layer, how much a neuron is one functionality's alone; residents are left out."""
    side = study.localisation
    positives = [len(side.of(f)) for f in range(len(study.functions))]
    return [
        selectivity(
            scores,
            torch.tensor(summary.resident, dtype=torch.int64),
            positives=positives,
            samples=len(side.labels),
        )
        for scores, summary in zip(neurons.scores, neurons.layers, strict=True)
    ]


def rehearse_scoring(study: Study) -> float:
    """Seconds that scoring all neurons would take, from noise for a few."""
    model, side = study.loaded.model, study.localisation
    generator = study.generator("rehearsal")
    activity = torch.rand(len(side.labels), _REHEARSED_UNITS, generator=generator)
    draws = draws_of(study)
    started = time.perf_counter()
    score_layer(
        activity, side.labels, study.functions,
        layer=0, share=study.settings.share, draws=draws,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    neurons = sum(unit_counts(model, n)["mlp.neurons"] for n in range(layers_of(model)))
    return seconds * neurons / _REHEARSED_UNITS


def _activities(study: Study, rows: Rows) -> Iterator[Float[Tensor, "samples neurons"]]:
    for layer in range(layers_of(study.loaded.model)):
        yield rows.read(block_name("neurons", layer, "mean_abs"))
