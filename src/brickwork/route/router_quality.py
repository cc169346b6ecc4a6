"""What routers are worth: the loss on responses when they choose in all layers, beside their cost.

Controls stand beside the routers: the ground truth as the upper bound, and choices that know
nothing of the input. All are measured on instances that no router has seen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.brick.durable import write_file
from brickwork.brick.files import json_bytes
from brickwork.brick.partition import Partition
from brickwork.errors import ConfigurationError, DataError, ModelError, UnknownNameError
from brickwork.measure.perplexity import TOKENS_PER_BATCH, token_losses
from brickwork.measure.selection_results import QUALITY_FILE, RouterQuality, RouterRow
from brickwork.measure.study import Watch, unwatched
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel, ffn_row_of
from brickwork.model.taps import Routed, output_norms, tapped
from brickwork.model.train import Encoded, groups_by_length
from brickwork.route.router_controls import CONTROLS, Controlled
from brickwork.route.router_learners import RouterRecipe
from brickwork.route.router_passes import (
    Shown,
    choose,
    dense_ffn,
    dense_layers,
    energy_kept,
    shown,
)
from brickwork.route.router_training import (
    TRAININGS,
    Slots,
    require_partition,
    routes_of,
    train_slots,
)
from brickwork.route.routers import (
    Level,
    Sizes,
    groups_kept,
    neurons_of,
    relative_cost,
    share_computed,
)

DENSITIES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
# Layer, what its FFN reads, its activations, the batch: what is kept at every position.
Chooser = Callable[[int, Tensor, Tensor, Shown], Tensor]


@dataclass(frozen=True, eq=False)
class Trial:
    """What routers are trained and measured on.

    Attributes:
        training: sequences to learn from.
        evaluation: prompts with responses, other ones.
        functions: the functionality of each of these.
        data: what it is called.
    """

    training: Sequence[Encoded]
    evaluation: Sequence[Encoded]
    functions: Sequence[str]
    data: str = ""


KINDS = (*(name for name, row in TRAININGS.items() if row.router), *CONTROLS)


@dataclass(frozen=True)
class Contest:
    """What is compared; routers of single neurons stand once, all others with each partition."""

    kinds: Sequence[str] = KINDS
    densities: Sequence[float] = DENSITIES
    levels: Sequence[Level] = ("token",)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A router or a control, for any density.

    ``cost`` is told the share that was kept.
    """

    router: str
    level: Level
    partition: Partition | None
    chooser: Callable[[float], Chooser]
    cost: Callable[[float], float]


def compare_routers(
    loaded: LoadedModel,
    partitions: Sequence[Partition],
    *,
    contest: Contest,
    trial: Trial,
    recipe: RouterRecipe,
    watch: Watch = unwatched,
    seed: int = 0,
) -> RouterQuality:
    """Train the routers, then let each choose in all dense layers, and measure the losses.

    Args:
        loaded: the model; it is left as it is.
        partitions: at least one if a kind chooses groups.
        contest: what is compared. Controls are there by token alone.
        trial: what routers learn from and are measured on.
        recipe: of the trained ones; its density and level are those of the contest.
        watch: shows progress.
        seed: of every random choice.

    Raises:
        UnknownNameError: if there is no such kind.
        ConfigurationError: if a partition is missing or of another model, a density is not above
            0 and at most 1, or no layer has a dense FFN.
        DataError: if there is nothing to learn from or to measure on.
    """
    _require(loaded, partitions, contest, trial)
    generator = torch.Generator().manual_seed(seed)
    candidates = _candidates(
        loaded, partitions, contest=contest, trial=trial, recipe=recipe, generator=generator,
        watch=watch,
    )  # fmt: skip
    runs = [(c, density) for c in candidates for density in contest.densities]
    with watch("comparing routers", len(runs) + 1) as advance:
        base, _, _ = _measure(loaded.model, trial, None, "token")
        advance(1)
        rows = []
        for candidate, density in runs:
            rows.append(_row(loaded.model, trial, candidate, density))
            advance(1)
    return RouterQuality(
        brickwork=version("brickwork"),
        model=loaded.name,
        fingerprint=loaded.base.fingerprint.weights,
        data=trial.data,
        instances=len(trial.evaluation),
        seed=seed,
        base_losses=_per_function(base, trial),
        rows=tuple(rows),
    )


def write_quality(quality: RouterQuality, folder: Path) -> Path:
    """Write the comparison as ``routers.json`` into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / QUALITY_FILE
    write_file(path, json_bytes(QUALITY_FILE, quality.model_dump(mode="json")))
    return path


def _require(
    loaded: LoadedModel, partitions: Sequence[Partition], contest: Contest, trial: Trial
) -> None:
    for kind in contest.kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of router or control", kind, KINDS)
    bad = [d for d in contest.densities if not 0 < d <= 1]
    if bad or not contest.densities:
        raise ConfigurationError(
            f"routers were to be compared at the densities {list(contest.densities)}; give numbers "
            "above 0 and at most 1."
        )
    grouped = [kind for kind in contest.kinds if _grouped(kind)]
    if grouped and not partitions:
        raise ConfigurationError(
            f"{', '.join(grouped)} choose groups, but no partition was given; name one, or leave "
            "them out."
        )
    for partition in partitions:
        require_partition(loaded, ", ".join(grouped), partition)
    if not trial.training or not trial.evaluation:
        raise DataError(
            f"routers were to learn from {len(trial.training)} sequences and be measured on "
            f"{len(trial.evaluation)}; give at least one of each."
        )


def _grouped(kind: str) -> bool:
    return kind in CONTROLS or TRAININGS[kind].grouped


def _candidates(
    loaded: LoadedModel,
    partitions: Sequence[Partition],
    *,
    contest: Contest,
    trial: Trial,
    recipe: RouterRecipe,
    generator: torch.Generator,
    watch: Watch,
) -> list[_Candidate]:
    trained = [kind for kind in contest.kinds if kind in TRAININGS]
    wanted: list[tuple[str, Partition | None]] = [(k, None) for k in trained if not _grouped(k)]
    wanted += [(k, p) for p in partitions for k in trained if _grouped(k)]
    with watch("training routers", 1) as advance:
        slots = train_slots(
            loaded, wanted, sequences=trial.training, recipe=recipe, generator=generator,
            advance=advance,
        )  # fmt: skip
    fixed = {id(p): own for (kind, p), own in zip(wanted, slots, strict=True) if kind == "fixed"}
    found = [
        _router(loaded.model, kind, level, partition, own)
        for (kind, partition), own in zip(wanted, slots, strict=True)
        if TRAININGS[kind].router
        for level in contest.levels
    ]
    return found + [
        _control(kind, Controlled(loaded.model, p, fixed.get(id(p), {}), generator))
        for p in partitions
        for kind in contest.kinds
        if kind in CONTROLS
    ]


def _router(
    model: CausalModel, kind: str, level: Level, partition: Partition | None, slots: Slots
) -> _Candidate:
    def chooser(density: float) -> Chooser:
        routes = routes_of(model, slots, RouterRecipe(density=density, level=level))
        return lambda n, x, h, batch: choose(routes[n], dense_ffn(model, n), x=x, h=h, batch=batch)

    def cost(kept: float) -> float:
        sizes = [_sizes(model, n, own) for n, own in slots.items()]
        spent = [s.dense * relative_cost(TRAININGS[kind].router, s, kept, level) for s in sizes]
        return sum(spent) / sum(s.dense for s in sizes)

    return _Candidate(kind, level, partition, chooser, cost)


def _control(kind: str, controlled: Controlled) -> _Candidate:
    control, model = CONTROLS[kind], controlled.model

    def chooser(density: float) -> Chooser:
        def choice(n: int, _x: Tensor, h: Tensor, batch: Shown) -> Tensor:
            owner = controlled.owner(n).to(h.device)
            scores = control.scores(controlled, n, h, batch)
            return neurons_of(groups_kept(scores, owner, density), owner)

        return choice

    def cost(kept: float) -> float:
        sizes = [_sizes(model, n, {}) for n in dense_layers(model)]
        spent = [s.dense * share_computed(control.reads, s.maps, kept) for s in sizes]
        return sum(spent) / sum(s.dense for s in sizes)

    return _Candidate(kind, "token", controlled.partition, chooser, cost)


def _sizes(model: CausalModel, layer: int, slots: Mapping[str, Tensor]) -> Sizes:
    ffn = dense_ffn(model, layer)
    scoring = next((slots[name] for name in ("second", "weight") if name in slots), None)
    return Sizes(
        hidden=ffn.up.shape[1],
        neurons=ffn.neurons,
        maps=2 if ffn_row_of(model, layer).form == "vanilla" else 3,
        groups=0 if scoring is None else len(scoring),
        width=len(slots["first"]) if "first" in slots else 0,
    )


def _row(model: CausalModel, trial: Trial, candidate: _Candidate, density: float) -> RouterRow:
    found, kept, captured = _measure(model, trial, candidate.chooser(density), candidate.level)
    partition = candidate.partition
    return RouterRow(
        partition="" if partition is None else partition.spec.method,
        groups=0 if partition is None else partition.groups(dense_layers(model)[0]),
        router=candidate.router,
        level=candidate.level,
        density=density,
        kept=kept,
        losses=_per_function(found, trial),
        captured=captured,
        cost=candidate.cost(kept),
    )


@torch.inference_mode()
def _measure(
    model: CausalModel, trial: Trial, chooser: Chooser | None, level: Level
) -> tuple[Float[Tensor, "samples 2"], float, float]:
    """Nats and tokens of every response, and the mean shares of neurons and energy kept."""
    layers, device = dense_layers(model), next(model.parameters()).device
    losses = torch.zeros(len(trial.evaluation), 2, dtype=torch.float64)
    tally = _Tally({n: output_norms(model, n) for n in layers}, chooser, level)
    for group in groups_by_length([len(s.ids) for s in trial.evaluation], TOKENS_PER_BATCH):
        texts = [trial.evaluation[i] for i in group]
        tally.batch = shown(texts, device)
        with tapped(model, **tally.taps()):
            nats, answers = token_losses(model, texts, whole=False)
        losses[group] = torch.stack([(nats * answers).sum(1), answers.sum(1)], 1).double().cpu()
    if not bool(losses.isfinite().all()):
        raise ModelError(
            "the losses of the evaluation instances are no finite numbers with this router; run "
            "the model in bfloat16 or float32 (--dtype), or keep more."
        )
    return losses, *tally.means()


class _Tally:
    """Silences what a router leaves out, and counts what it keeps."""

    def __init__(self, norms: Mapping[int, Tensor], chooser: Chooser | None, level: Level) -> None:
        self._norms, self._chooser, self._level = norms, chooser, level
        self._inputs: dict[int, Tensor] = {}
        self._sums = torch.zeros(3, dtype=torch.float64)  # neurons, energy, tokens
        self.batch: Shown | None = None

    def taps(self) -> dict[str, Any]:
        """Taps on every layer; none for the whole model."""
        if self._chooser is None:
            return {}
        return {
            "inputs": {n: partial(self._inputs.__setitem__, n) for n in self._norms},
            "neurons": {n: partial(self._silence, n) for n in self._norms},
        }

    def means(self) -> tuple[float, float]:
        """The mean shares of neurons and of energy."""
        neurons, energy, tokens = self._sums.tolist()
        return (neurons / tokens, energy / tokens) if tokens else (1.0, 1.0)

    def _silence(self, n: int, h: Tensor, _routed: Routed | None) -> None:
        batch, chooser = self.batch, self._chooser
        assert batch is not None, "set before every pass"
        assert chooser is not None, "without one there are no taps"
        keep = chooser(n, self._inputs.pop(n), h, batch)
        at = batch.tokens & ~batch.prompts if self._level == "prompt" else batch.tokens
        own, said = keep[at.flatten()], h[at.flatten()]
        energy = energy_kept(own, said, self._norms[n])
        found = torch.stack([own.float().mean(1).sum(), energy.sum()]).double().cpu()
        self._sums += torch.cat([found, torch.tensor([float(len(own))], dtype=torch.float64)])
        h.mul_(keep)


def _per_function(losses: Float[Tensor, "samples 2"], trial: Trial) -> dict[str, float]:
    """Nats per response token, of each functionality."""
    by_function = {}
    for name in sorted(set(trial.functions)):
        nats, tokens = losses[[f == name for f in trial.functions]].sum(0).tolist()
        by_function[name] = nats / tokens
    return by_function
