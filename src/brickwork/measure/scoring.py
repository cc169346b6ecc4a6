"""From rows on disk to scores: every neuron, head and layer, for every functionality."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from pydantic import TypeAdapter
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
from brickwork.measure.results import (
    Agreement,
    Functionality,
    LayerScores,
    SourceControl,
    Units,
)
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
_CONTROLS = TypeAdapter(list[SourceControl])


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
            kept = study.kept(name, rows.layout.dtype, make=make)
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
    return {
        "scores": outcome.scores.float(),
        "null_overlaps": outcome.null_overlaps,
        "summary": _as_bytes(outcome.summary.model_dump_json()),
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


def compare_sources(study: Study, rows: Rows) -> list[SourceControl]:
    """The control by source; empty if the data names no source with two functionalities."""
    side = study.localisation
    sources = [instance.source for instance in side.instances]
    layers = layers_of(study.loaded.model)

    def make() -> dict[str, Tensor]:
        with study.watch("comparing sources", layers) as advance:
            activities = _activities(study, rows, advance)
            found = source_controls(activities, side.labels, study.functions, sources)
        return {"controls": _as_bytes(_CONTROLS.dump_json(found).decode())}

    kept = study.kept("scores/sources", rows.layout.dtype, make=make)
    return _CONTROLS.validate_json(bytes(kept["controls"].tolist()))


def functionality_of(
    study: Study,
    scored: dict[Units, Scored],
    sources: list[SourceControl],
    attributed: list[Tensor],
) -> Functionality:
    """All that is said about single units."""
    share, names = study.settings.share, study.functions
    pairs = zip(scored["neurons"].scores, attributed, strict=True)
    return Functionality(
        neurons=scored["neurons"].layers,
        heads=scored["heads"].layers,
        layers=scored["layers"].layers,
        sources=sources,
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
    side, layers = study.localisation, range(layers_of(study.loaded.model))
    draws, generator = draws_of(study), study.generator("rehearsal")

    def seconds(units: int) -> float:
        activity = torch.rand(len(side.labels), units, generator=generator)
        started = time.perf_counter()
        share = study.settings.share
        score_layer(activity, side.labels, study.functions, layer=0, share=share, draws=draws)
        return time.perf_counter() - started

    seconds(_REHEARSED_UNITS)  # the first is slower
    few, more = seconds(_REHEARSED_UNITS), seconds(3 * _REHEARSED_UNITS)
    each = max(more - few, 0) / (2 * _REHEARSED_UNITS)
    neurons = sum(unit_counts(study.loaded.model, n)["mlp.neurons"] for n in layers)
    return each * neurons + max(few - each * _REHEARSED_UNITS, 0) * len(layers)


def _activities(
    study: Study, rows: Rows, advance: Callable[[float], None]
) -> Iterator[Float[Tensor, "samples neurons"]]:
    for layer in range(layers_of(study.loaded.model)):
        yield rows.read(block_name("neurons", layer, "mean_abs"))
        advance(1)


def _as_bytes(text: str) -> Tensor:
    """A text that can lie among tensors."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
