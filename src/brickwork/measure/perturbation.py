"""What every functionality loses when units are taken away: functional ones, and controls.

Source: Xiao et al. 2024 (arXiv:2409.02877), section 4.5. Beyond it: other ways to choose and to
take away, random units in equal numbers, and the units that fire for everything, whose loss harms
everything.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.measure.ablation import (
    Chosen,
    averaging,
    random_like,
    resampling,
    silencing_heads,
    skipping,
    zeroing,
)
from brickwork.measure.functionality import functional_units
from brickwork.measure.passes import Passes, Taps
from brickwork.measure.results import (
    Ablation,
    AblationRow,
    Choice,
    Method,
    Perturbation,
    RowKind,
    Units,
)
from brickwork.measure.study import Study, digest
from brickwork.model.parts import layers_of

WORDS: Mapping[str, str] = {"neurons": "mlp.neurons", "heads": "attn.heads"}
# One entry for each layer, "units functions".
LayerScoresOf = Sequence[Float[Tensor, "units functions"]]


@dataclass(frozen=True, eq=False)
class UnitScores:
    """What units are chosen by: for each layer, one score for every unit and functionality."""

    activation: LayerScoresOf
    selectivity: LayerScoresOf
    attribution: LayerScoresOf
    heads: LayerScoresOf
    resident: Chosen


@dataclass(frozen=True)
class Condition:
    """One way to choose units and to take them away.

    Attributes:
        random: how many draws of random units in equal numbers there are as a control.
        whole: whether losses on whole sequences are wanted, too.
    """

    name: str
    title: str
    units: Units
    chosen: Choice
    method: Method
    random: int = 0
    whole: bool = False


CONDITIONS = (
    Condition("neurons-activation-zero", "Functional neurons set to zero",
              "neurons", "activation", "zero", random=3, whole=True),
    Condition("neurons-selectivity-zero", "Selective neurons, residents left out, set to zero",
              "neurons", "selectivity", "zero", random=2),
    Condition("neurons-attribution-zero", "Neurons by gradient times activation, set to zero",
              "neurons", "attribution", "zero"),
    Condition("neurons-activation-mean", "Functional neurons set to their mean",
              "neurons", "activation", "mean", random=1),
    Condition("neurons-activation-resample", "Functional neurons resampled from other tokens",
              "neurons", "activation", "resample", random=1),
    Condition("neurons-resident-zero", "Resident neurons set to zero",
              "neurons", "resident", "zero", random=1),
    Condition("heads-activation-zero", "Functional heads set to zero",
              "heads", "activation", "zero", random=3),
    Condition("layers-each-skip", "Each layer skipped", "layers", "each", "skip"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Removal:
    """The units that one row of a condition takes away."""

    kind: RowKind
    name: str
    units: Chosen


def perturb(study: Study, passes: Passes, scores: UnitScores) -> Perturbation:
    """Run every condition, and compare with the whole model."""
    work = [(c, list(_removals(study, scores, c))) for c in CONDITIONS]
    ablations = []
    with study.watch("taking units away", sum(len(rows) for _, rows in work)) as advance:
        for condition, removals in work:
            rows = []
            for removal in removals:
                rows.append(_row(study, passes, condition, removal))
                advance(1)
            if rows:
                ablations.append(Ablation(
                    name=condition.name, title=condition.title, units=condition.units,
                    chosen=condition.chosen, method=condition.method, rows=rows,
                ))  # fmt: skip
    return Perturbation(base=passes.base(), ablations=ablations)


def planned_passes(study: Study) -> int:
    """How many passes ``perturb`` makes, with that of the whole model; at most."""
    return 1 + sum(_planned_rows(study, condition) for condition in CONDITIONS)


def whole_passes(study: Study) -> int:
    """How many of them compute the logits of prompts, too."""
    return 1 + sum(_planned_rows(study, condition) for condition in CONDITIONS if condition.whole)


def _planned_rows(study: Study, condition: Condition) -> int:
    functions = len(study.functions)
    matched = condition.units == "heads" or study.settings.scope == "model"
    rows = {"each": layers_of(study.loaded.model), "resident": 1}
    controls = functions if matched and condition.random else condition.random
    return rows.get(condition.chosen, functions) + controls


def _removals(study: Study, scores: UnitScores, condition: Condition) -> Iterator[Removal]:
    """The rows of a condition: what was chosen, then random units in equal numbers."""
    if condition.units == "layers":
        for layer in range(layers_of(study.loaded.model)):
            yield Removal("layer", f"layers.{layer}", {layer: torch.tensor([0])})
        return
    chosen = list(_chosen(study, scores, condition))
    yield from chosen
    for name, like, without in _controls(condition, chosen, scores.resident):
        generator = study.generator("random", condition.name, name)
        units = random_like(
            like, study.loaded.model, generator, word=WORDS[condition.units], without=without
        )
        yield Removal("random", name, units)


def _chosen(study: Study, scores: UnitScores, condition: Condition) -> Iterator[Removal]:
    if condition.chosen == "resident":
        resident = {layer: units for layer, units in scores.resident.items() if len(units)}
        if resident:
            yield Removal("resident", "resident", resident)
        return
    pairs = zip(study.functions, _functional(study, scores, condition), strict=True)
    yield from (Removal("function", name, units) for name, units in pairs)


def _controls(
    condition: Condition, chosen: Sequence[Removal], resident: Chosen
) -> Iterator[tuple[str, Chosen, Chosen | None]]:
    """The names of random rows, what each matches in number layer by layer, and what it avoids.

    One set of random units is the control of all functionalities if all have as many; it may hold
    functional neurons, as any random set does. Else each has a control that avoids its own.
    """
    if not condition.random or not chosen:
        return
    counts = [{layer: len(units) for layer, units in row.units.items()} for row in chosen]
    if all(count == counts[0] for count in counts):
        avoided = None if condition.chosen == "activation" else resident
        for draw in range(condition.random):
            yield f"random {draw + 1}", chosen[0].units, avoided
    else:
        yield from ((control_name(row.name), row.units, row.units) for row in chosen)


def control_name(function: str) -> str:
    """The name of the random row that matches the units of one functionality."""
    return f"random like {function}"


def _functional(study: Study, scores: UnitScores, condition: Condition) -> list[Chosen]:
    """For each functionality the units that its condition takes away."""
    share = study.settings.share
    if condition.units == "heads":
        return best_of_model(scores.heads, share)
    of: LayerScoresOf = getattr(scores, condition.chosen)
    if study.settings.scope == "model":
        return best_of_model(of, share)
    by_layer = [functional_units(layer, share) for layer in of]
    return [
        {layer: units[f] for layer, units in enumerate(by_layer)}
        for f in range(len(study.functions))
    ]


def best_of_model(scores: LayerScoresOf, share: float) -> list[Chosen]:
    """For each functionality the share of all units of the model with the highest scores."""
    sizes = [len(layer) for layer in scores]
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    best = functional_units(torch.cat(list(scores)), share)
    return [
        {
            layer: own - start
            for layer, (start, size) in enumerate(zip(starts, sizes, strict=False))
            if len(own := units[(units >= start) & (units < start + size)])
        }
        for units in best
    ]


def _row(study: Study, passes: Passes, condition: Condition, removal: Removal) -> AblationRow:
    name, chosen = f"{condition.name}-{removal.name}", removal.units
    units = digest(*(f"{layer}:{own.tolist()}" for layer, own in sorted(chosen.items())))
    losses = passes.losses(
        digest(name)[:16],  # a functionality's name need not be one of a file
        units,
        taps=_taps(passes, condition, chosen, study.generator("resample", name)),
        whole=condition.whole,
    )
    return AblationRow(
        kind=removal.kind,
        removed=removal.name,
        units=sum(len(own) for own in chosen.values()),
        increase=passes.increase(losses),
        whole=passes.whole_increase(losses) if condition.whole else None,
    )


def _taps(passes: Passes, condition: Condition, chosen: Chosen, generator: torch.Generator) -> Taps:
    if condition.units == "layers":
        return Taps(blocks=skipping(list(chosen)))
    if condition.units == "heads":
        return Taps(heads=silencing_heads(chosen))
    if condition.method == "zero":
        return Taps(neurons=zeroing(chosen))
    if condition.method == "mean":
        return Taps(neurons=averaging(chosen, passes.means))
    return Taps(neurons=resampling(chosen, passes.running, generator))
