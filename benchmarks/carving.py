"""What half of the FFN costs a functionality, for every way to choose the half.

    python -m benchmarks.carving [--functions coding,math] [--units neurons,groups,heads,layers]
                                 [--density 0.5] [--analysis DIR] [--json FILE]

The reference model and its packaged probe set. Units are chosen on four fifths of a
functionality's instances, and losses are told of the others (nats per response token, float32).
The controls keep random neurons, and random groups, as many: mean of ``SEEDS`` draws. Groups are
blocks of ``GROUP`` random neurons; those of ``--partition DIR`` if one is named. The bar: the loss
rises at least 3 times less than with random groups.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from brickwork.brick.partition import Partition, PartitionSpec, read_partition
from brickwork.build.compensate import compensate
from brickwork.measure.aim import Aim, aim_at
from brickwork.measure.choice import Choice, choose, random_like
from brickwork.measure.need import NEEDS, Asked, measure_need
from brickwork.measure.trial import kept_losses
from brickwork.model.carve import carve_model
from brickwork.model.load import LoadedModel, load_model
from brickwork.model.parts import layers_of
from brickwork.model.units import unit_counts
from brickwork.reference.paths import model_folder
from brickwork.reference.probe import probe_instances

SEEDS, GROUP, BAR = 3, 64, 3.0


def random_partition(loaded: LoadedModel) -> Partition:
    chance = torch.Generator().manual_seed(0)
    owners = {}
    for layer in range(layers_of(loaded.model)):
        count = unit_counts(loaded.model, layer)["mlp.neurons"]
        owners[layer] = (torch.arange(count) // GROUP)[torch.randperm(count, generator=chance)]
    spec = PartitionSpec(base=loaded.base.fingerprint, method="random")
    return Partition(spec, owners)


class Work:
    """One functionality: its instances, and what the full model loses on them."""

    def __init__(self, loaded: LoadedModel, function: str, options: argparse.Namespace) -> None:
        self.loaded, self.options = loaded, options
        self.aim: Aim = aim_at(loaded, probe_instances(), function)
        self.partition = (
            read_partition(options.partition) if options.partition else random_partition(loaded)
        )
        own = {self.aim.name: self.aim.evaluation[self.aim.name]}
        self.own = Aim(self.aim.name, self.aim.choosing, own, [], frozenset())
        self.before = self.own.losses(loaded.model)[self.aim.name]

    def asked(self, units: str, seed: int = 0) -> Asked:
        generator = torch.Generator().manual_seed(seed)
        scores = self.options.scores.get(self.aim.name, {})
        return Asked(
            self.loaded, units, self.aim.choosing, generator,
            partition=self.partition, scores=scores.get("heads" if units == "heads" else "", {}),
        )  # fmt: skip

    def rise(self, choice: Choice) -> float:
        losses = kept_losses(self.loaded, self.own, choice.kept)
        return losses[self.aim.name] - self.before

    def compensated(self, choice: Choice) -> float:
        carved = carve_model(self.loaded, choice.kept)
        compensate(carved, self.loaded, choice.kept, self.aim.choosing)
        return self.own.losses(carved)[self.aim.name] - self.before

    def rows(self, units: str) -> Iterator[tuple[str, float]]:
        """Every method with its rise; the controls last."""
        choice = None
        for method, row in NEEDS.items():
            asked = self.asked(units)
            skipped = method == "functionality" and not asked.scores
            if units not in row.units or skipped or not row.source:
                continue
            need = measure_need(asked, method)
            for widths in ("uniform",) if units == "layers" else ("uniform", "global"):
                choice = choose(asked, need, method, density=self.options.density, widths=widths)
                yield f"{method}, {widths}", self.rise(choice)
                if units in ("neurons", "groups") and widths == "uniform":
                    yield f"{method}, {widths}, compensated", self.compensated(choice)
        assert choice is not None, "a method rates these units"
        yield f"random {units}", self.random(units)
        if units == "neurons":
            yield "random groups", self.random("groups")

    def random(self, units: str) -> float:
        asked = self.asked(units)
        choice = choose(
            asked, measure_need(asked, "random"), "random", density=self.options.density
        )
        chance = torch.Generator().manual_seed(1)
        return sum(self.rise(random_like(choice, chance)) for _ in range(SEEDS)) / SEEDS


def analysis_scores(folder: Path | None) -> dict[str, Any]:
    """The functionality scores of an analysis of the reference model, by functionality."""
    if folder is None:
        return {}
    from brickwork.brick.files import read_tensors  # noqa: PLC0415
    from brickwork.report.read import read_analysis  # noqa: PLC0415

    analysis, tensors = read_analysis(folder), read_tensors(folder, "scores.safetensors")
    layers = range(len(analysis.model.neurons))
    return {
        own.name: {
            key: {n: tensors[f"layers.{n}.{part}.activation"][:, column] for n in layers}
            for key, part in (("", "mlp.neurons"), ("heads", "attn.heads"))
        }
        for column, own in enumerate(analysis.data.functions)
    }


def report(units: str, found: dict[str, dict[str, float]]) -> None:
    functions = list(found)
    print(f"\n{units:36s}" + "".join(f"{name[:11]:>12s}" for name in functions) + f"{'mean':>12s}")
    for row in found[functions[0]]:
        values = [found[name][row] for name in functions]
        mean = sum(values) / len(values)
        print(f"{row:36s}" + "".join(f"{value:12.3f}" for value in [*values, mean]), flush=True)


def bar(found: dict[str, dict[str, float]], row: str) -> dict[str, float | None]:
    """How many times less the loss rises than with random groups; None if it does not rise."""
    return {
        name: own["random groups"] / own[row] if own[row] > 0 else None
        for name, own in found.items()
    }


def print_bar(row: str, ratios: dict[str, float | None]) -> None:
    rising = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    if not rising:
        print(f"bar holds: {row}: the loss rises nowhere")
        return
    worst = min(rising, key=lambda name: rising[name])
    verdict = "holds" if rising[worst] >= BAR else "FAILS"
    print(f"bar {verdict}: {row}: at least {rising[worst]:.1f} x less ({worst})")


def main() -> None:
    """Measure, print the tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = sorted({i.functionality for i in probe_instances()})
    parser.add_argument("--functions", default=",".join(names))
    parser.add_argument("--units", default="neurons")
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--partition", type=Path)
    parser.add_argument("--analysis", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.scores = analysis_scores(options.analysis)
    torch.set_num_threads(1)
    loaded = load_model(str(model_folder()), device="cpu", dtype="float32", name="reference")
    works = [Work(loaded, name, options) for name in options.functions.split(",")]
    result: dict[str, Any] = {"density": options.density, "rises": {}}
    for units in options.units.split(","):
        found = {work.aim.name: dict(work.rows(units)) for work in works}
        result["rises"][units] = found
        report(units, found)
        if units == "neurons":
            rows = [row for row in next(iter(found.values())) if "random" not in row]
            result["times_less"] = {row: bar(found, row) for row in rows}
            for row, ratios in result["times_less"].items():
                print_bar(row, ratios)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
