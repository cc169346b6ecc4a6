"""What models between a small and a large one cost and lose, in both directions.

    python -m benchmarks.stitching --data DATA --small FOLDER [--small-tokens 2500000]
        [--count 3] [--sequences 6000] [--tune-steps 300] [--json FILE] [--report FOLDER]

The large model is the reference model: 256 wide, 8 layers. The small one is 128 wide, of 4 layers,
with the same tokenizer; FOLDER holds it, or it is trained there on DATA first (``instructions/``
and ``text/``, as for ``brickwork reference train``), for a fraction of the tokens of the large one.
Maps are fitted and tuned on training instances of DATA; losses are of held-out instances of the
packaged probe set, nats per response token, mean over functionalities, float32. ``line`` is how far
a member lies above the line between the two models, which is what asking one of them at random
costs and loses.
"""

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from brickwork.combine.stitch_family import describe, measure_family
from brickwork.combine.stitch_results import Stitching
from brickwork.combine.stitch_tune import TuneRecipe, tune_stitches
from brickwork.combine.stitching import RIDGE, StitchedFamily, fit_stitches, spread_points
from brickwork.measure.instances import encode_instances, split_instances
from brickwork.model.load import LoadedModel, load_model
from brickwork.model.parts import layers_of
from brickwork.model.train import Encoded
from brickwork.reference.corpus import training_instances
from brickwork.reference.paths import model_folder
from brickwork.reference.probe import probe_instances
from brickwork.reference.train import Recipe, train_reference
from brickwork.report.stitching import write_stitching_report

EVALUATION, LONGEST = 12, 256


def small_model(folder: Path, data: Path, tokens: int) -> LoadedModel:
    """The small model, trained first if it is not there."""
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for file in model_folder().glob("tokenizer*.json"):
            shutil.copy(file, folder)
        recipe = Recipe(hidden=128, intermediate=512, layers=4, tokens=tokens)
        train_reference(data, folder, recipe, "cpu", lambda line: print(line, flush=True))
    return load_model(str(folder), device="cpu", dtype="float32", name="small")


def sequences_of(loaded: LoadedModel, data: Path, count: int) -> list[Encoded]:
    """Training instances, none of the probe set."""
    instances = training_instances(data)
    random.Random(0).shuffle(instances)
    found = encode_instances(loaded, instances[:count], LONGEST).sequences
    return [sequence for sequence in found if sequence is not None]


def evaluation_of(loaded: LoadedModel) -> dict[str, list[Encoded]]:
    """Held-out instances of each functionality."""
    instances = probe_instances()
    split = split_instances(instances, evaluation=EVALUATION, seed=0)
    chosen = [instances[i] for i in split.evaluation]
    found: dict[str, list[Encoded]] = {}
    encoded = encode_instances(loaded, chosen, 2 * LONGEST).sequences
    for instance, sequence in zip(chosen, encoded, strict=True):
        if sequence is not None:
            found.setdefault(instance.functionality, []).append(sequence)
    return found


def family_of(
    front: LoadedModel,
    back: LoadedModel,
    fitting: list[Encoded],
    evaluation: dict[str, list[Encoded]],
    options: argparse.Namespace,
) -> Stitching:
    """Fit, measure, tune, measure."""
    points = spread_points(layers_of(front.model), layers_of(back.model), options.count)
    held_out = [sequence for own in evaluation.values() for sequence in own]
    started = time.monotonic()
    stitches = fit_stitches(front, back, fitting, points, held_out=held_out)
    print(f"{front.name} -> {back.name}: fitted in {time.monotonic() - started:.0f} s", flush=True)
    family = StitchedFamily(front, back, stitches)
    members = measure_family(family, evaluation)
    if options.tune_steps:
        started = time.monotonic()
        family = tune_stitches(family, fitting, TuneRecipe(steps=options.tune_steps))
        print(f"tuned in {time.monotonic() - started:.0f} s", flush=True)
        members = measure_family(family, evaluation, untuned=members)
    about = {
        "data": "training instances; measured on the probe set",
        "fitted_on": len(fitting),
        "fitted_tokens": sum(len(s.ids) for s in fitting),
        "measured_on": {name: len(own) for name, own in evaluation.items()},
        "ridge": RIDGE,
        "tune_steps": options.tune_steps,
        "seed": 0,
    }
    return describe(family, members, about)


def show(stitching: Stitching) -> dict[str, Any]:
    """Print the curve, and whether a member is worth having."""
    print(f"{'member':>8} {'params':>12} {'FLOPs':>12} {'R2':>6} {'fitted':>8} {'tuned':>8} line")
    rows = {}
    for member in stitching.members:
        before = member.untuned or member.losses
        fitted = sum(before.values()) / len(before)
        apart = member.loss - stitching.mixed_loss(member.flops)
        share = "" if member.explained is None else f"{member.explained:.3f}"
        print(
            f"{member.name:>8} {member.parameters:12,} {member.flops:12,} {share:>6} {fitted:8.3f} "
            f"{member.loss:8.3f} {apart:+.3f}"
        )
        rows[member.name] = {"fitted": fitted, "loss": member.loss, "from_line": apart}
    best = min(rows[member.name]["from_line"] for member in stitching.of("stitched"))
    print(f"{'below' if best < 0 else 'NOT below'} the line: the best is {best:+.3f} from it\n")
    return rows


def main() -> None:
    """Measure both directions, print the curves, write JSON and pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--small", type=Path, required=True)
    parser.add_argument("--small-tokens", type=int, default=2_500_000)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=6000)
    parser.add_argument("--tune-steps", type=int, default=300)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    small = small_model(options.small, options.data, options.small_tokens)
    large = load_model(str(model_folder()), device="cpu", dtype="float32", name="reference")
    fitting = sequences_of(large, options.data, options.sequences)
    evaluation = evaluation_of(large)
    result = {}
    for front, back in ((small, large), (large, small)):
        stitching = family_of(front, back, fitting, evaluation, options)
        result[f"{front.name} -> {back.name}"] = show(stitching)
        if options.report:
            write_stitching_report(stitching, options.report / front.name)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
