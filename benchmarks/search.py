"""Learned coefficients and evolutionary search on the reference model's four bricks.

The composite task mixes sums, robot commands, and instructions that ask for both one after the
other. All numbers are losses in nats per response token on instances that were held out from the
search; the bricks themselves were trained on tasks of the first two kinds. Run with
``python -m benchmarks.search [--part PART] [--json FILE]``.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from brickwork.brick.brick import Brick
from brickwork.combine.candidates import BrickTrials, Split, by_function, split_pairs
from brickwork.combine.descent import descend, objective_on
from brickwork.combine.learned import lorahub
from brickwork.combine.search import Searching, run_search
from brickwork.combine.search_recipe import SearchSpec
from brickwork.combine.search_space import Candidate, single_methods, space_of
from brickwork.combine.weighted import WeightedBricks
from brickwork.measure.instances import Instance, encode_instances
from brickwork.model.load import LoadedModel, load_model
from brickwork.reference.builtin import builtin_store
from brickwork.reference.paths import NAME, resolve_model
from brickwork.reference.tasks import additions, robot_commands

BRICKS = ("addition", "robot", "fr-en", "shell")
METHODS = ("linear", "task_arithmetic", "ties", "dare_ties")


def instances(count: int) -> list[Instance]:
    """As many sums, robot commands, and both in one instruction."""
    sums, steps = additions(Path()), robot_commands(Path())
    both = zip(sums[count : 2 * count], steps[count : 2 * count], strict=True)
    joined = [
        Instance("Both", f"{a.prompt} {b.prompt}", f"{a.response} {b.response}") for a, b in both
    ]
    kinds = (("Sum", sums[:count]), ("Steps", steps[:count]))
    return [Instance(k, i.prompt, i.response) for k, own in kinds for i in own] + joined


def balanced(bricks: WeightedBricks, weights: Any, parts: dict[str, Any]) -> float:
    """The mean over the kinds of instances, each as much as the others."""
    return sum(bricks.mean(weights, own, "loss") for own in parts.values()) / len(parts)


def coefficients(loaded: LoadedModel, bricks: list[Brick], split: Split) -> dict[str, Any]:
    """Held-out losses without bricks, with uniform weights, and with learned ones."""
    search, held = by_function(split.search), by_function(split.held_out)
    flat = [s for _, s in split.search]
    whole, layers = WeightedBricks(loaded, bricks), len(loaded.base.of_kind("block"))
    count = len(bricks)
    rows: dict[str, dict[str, Any]] = {}
    for name, weight in (("none", 0.0), ("uniform 1", 1.0), ("uniform 1/n", 1 / count)):
        rows[name] = {"loss": balanced(whole, [[weight]] * count, held)}
    for place, brick in enumerate(bricks):
        alone = [[float(n == place)] for n in range(count)]
        rows[f"only {brick.spec.name}"] = {"loss": balanced(whole, alone, held)}
    layered = WeightedBricks(loaded, bricks, layers)
    ways = {
        "lorahub": (whole, lambda: lorahub(
            lambda some: [balanced(whole, [[w] for w in one], search) for one in some], count)),
        "gradient": (whole, lambda: descend(
            objective_on(whole, flat, "loss"), torch.full((count, 1), 1 / count))),
        "gradient, layers": (layered, lambda: descend(
            objective_on(layered, flat, "loss"), torch.full((count, layers), 1 / count))),
        "entropy": (whole, lambda: descend(
            objective_on(whole, flat, "entropy"), torch.full((count, 1), 1 / count))),
        "entropy, layers": (layered, lambda: descend(
            objective_on(layered, flat, "entropy"), torch.full((count, layers), 1 / count))),
    }  # fmt: skip
    for name, (own, learn) in ways.items():
        started = time.perf_counter()
        found = learn()
        rows[name] = {
            "loss": balanced(own, found.weights, held),
            "weights": [[round(w, 3) for w in row] for row in found.weights],
            "seconds": time.perf_counter() - started,
        }
    return rows


def evolution(
    loaded: LoadedModel, bricks: list[Brick], split: Split, spec: SearchSpec
) -> dict[str, Any]:
    """Held-out losses of the best trial and of the best method with equal weights."""
    trials = BrickTrials(loaded, bricks, spec.blocks)
    space = space_of(spec, len(bricks), has_base=True)
    single = {
        label: (trials.evaluate(c, 0, split.search), trials.evaluate(c, 0, split.held_out))
        for label, c in single_methods(space)
    }
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = run_search(
            Searching(space, "benchmark"),
            lambda candidate, seed: trials.evaluate(candidate, seed, split.search),
            Path(folder),
        )
    best = min((row for row in rows if row.values), key=lambda row: (row.values or {})["loss"])
    chosen = Candidate(best.method, best.parameters, best.rank)
    first = min(single, key=lambda label: single[label][0]["loss"])
    return {
        "single": {label: {"search": a["loss"], "held_out": b["loss"]} for label, (a, b)
                   in single.items()},
        "best_single": first,
        "best_single_held_out": single[first][1]["loss"],
        "best_trial": best.model_dump(mode="json"),
        "best_trial_held_out": trials.evaluate(chosen, best.seed, split.held_out)["loss"],
        "failed": sum(row.values is None for row in rows),
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def main() -> None:
    """Measure, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--instances", type=int, default=60)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--part", choices=["both", "coefficients", "evolution"], default="both")
    options = parser.parse_args()
    loaded = load_model(resolve_model(NAME), dtype="float32", name=NAME)
    store = builtin_store()
    bricks = [store.get(name) for name in BRICKS]
    asked = instances(options.instances)
    sequences = encode_instances(loaded, asked, 512).sequences
    pairs = [(i, s) for i, s in zip(asked, sequences, strict=True) if s is not None]
    split = split_pairs(pairs, 0.5, 0)
    document: dict[str, Any] = {
        "search_instances": len(split.search),
        "held_out_instances": len(split.held_out),
        "ratios": {},
    }
    if options.part != "evolution":
        rows = document["coefficients"] = coefficients(loaded, bricks, split)
        uniform = min(rows["uniform 1"]["loss"], rows["uniform 1/n"]["loss"])
        for name, row in rows.items():
            shown = "" if "layers" in name else row.get("weights", "")
            print(f"{name:18} {row['loss']:.4f}  {shown}", flush=True)
            if "weights" in row:
                document["ratios"][f"{name} over uniform"] = row["loss"] / uniform
    if options.part != "coefficients":
        spec = SearchSpec(
            methods=METHODS, trials=options.trials,
            parameters={"weight": [-0.5, 1.5], "density": [0.1, 1.0], "normalize": False},
        )  # fmt: skip
        found = document["evolution"] = evolution(loaded, bricks, split, spec)
        for label, row in found["single"].items():
            print(f"{label:30} {row['search']:.4f} {row['held_out']:.4f}", flush=True)
        document["ratios"]["search over best single method"] = (
            found["best_trial_held_out"] / found["best_single_held_out"]
        )
    for name, ratio in document["ratios"].items():
        print(f"{name:32} {ratio:.3f}")
    if options.json:
        options.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
