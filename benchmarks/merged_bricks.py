"""Four task bricks as one, by every merge method; and a skill taken away by a negative weight.

    python -m benchmarks.merged_bricks --data DIR [--part merged|negated] [--json FILE]

The reference model with its built-in bricks (fr-en, shell, addition, robot). ``DIR`` holds
``instructions/train.jsonl.gz``, from which two of the tasks come and the brick that is negated is
trained (``--skill``). Half of the held-out examples of each task choose the method's setting among
a few, the other half are reported: the share of the own brick's gain over the base that the merged
brick keeps. Skills are taken away from the base (a brick trained on ``--skill``) and from the merge
of all four; the weight is chosen in the same way, as the most negative one at which no other
functionality, or task, loses more than 2 %.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brickwork.brick.brick import Brick
from brickwork.brick.configuration import BrickUse, Configuration
from brickwork.brick.folder import read_brick
from brickwork.brick.spec import Function
from brickwork.build.task import About, LoraRecipe, build_task
from brickwork.combine.bricks import combine_bricks
from brickwork.combine.methods import methods
from brickwork.measure.instances import Instance, read_instances, sample_instances
from brickwork.model.load import load_model
from brickwork.reference.bricks import held_out_ids, split
from brickwork.reference.paths import bricks_folder, model_folder
from brickwork.reference.probe import probe_instances
from brickwork.reference.tasks import EVERYTHING, TASKS
from brickwork.reference.tokenizer import encode_instances
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.score import mean_loss

KEEP = 0.02  # by which other functionalities may lose, relative
WEIGHTS = (-0.1, -0.2, -0.3, -0.4, -0.5, -0.75, -1.0, -1.5, -2.0)
Pairs = dict[str, list[tuple[list[int], list[int]]]]
Losses = dict[str, float]

# What is tried of each method; the rest has its defaults.
SCALES = [{"weight": 1.0, "lambda": scale} for scale in (0.4, 0.7, 1.0)]
SPARSE = [each | {"density": density} for each in SCALES for density in (0.3, 0.7)]
SETTINGS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "linear": [{"weight": 1.0}] + [{"weight": w, "normalize": False} for w in (0.4, 0.7, 1.0)],
    "task_arithmetic": SCALES,
    "ties": [each | {"lambda": scale} for each in SPARSE for scale in (1.0, 2.0)],
    **dict.fromkeys(("dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties"), SPARSE),
    **dict.fromkeys(("della", "della_linear"), SPARSE),
    "multislerp": [{"weight": 1.0}, {"weight": 1.0, "normalize_weights": False}],
    "karcher": [{}],
    "model_stock": [{}],
    "sce": [{"select_topk": share} for share in (0.3, 1.0)],
    "ram": [{}],
    "ramplus_tl": [{}],
}


class Bench:
    """The base with its bricks, and losses under any of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        loaded = load_model(str(model_folder()), dtype="float32", device="cpu", name="reference")
        self.loaded, self.options = loaded, options
        self.model = ConfiguredModel(loaded)
        self.bricks = [read_brick(bricks_folder() / task.name) for task in TASKS]
        count = 2 * options.held_out
        held_out = {task.name: split(task.examples(options.data))[0][:count] for task in TASKS}
        pairs = {name: held_out_ids(loaded, found) for name, found in held_out.items()}
        self.choosing: Pairs = {name: found[::2] for name, found in pairs.items()}
        self.reported: Pairs = {name: found[1::2] for name, found in pairs.items()}

    def losses(self, brick: Brick | None, pairs: Pairs) -> Losses:
        return self.losses_of([] if brick is None else [(brick, 1.0)], pairs)

    def losses_of(self, bricks: Sequence[tuple[Brick, float]], pairs: Pairs) -> Losses:
        for number, (brick, _) in enumerate(bricks):
            self.model.add(brick, f"candidate-{number}")
        asked = Configuration(
            bricks=tuple(
                BrickUse(name=f"candidate-{number}", weight=weight)
                for number, (_, weight) in enumerate(bricks)
            )
        )
        return {name: mean_loss(self.model, found, asked) for name, found in pairs.items()}

    def references(self, pairs: Pairs) -> tuple[Losses, Losses]:
        """Losses of the bare base, and of each task's own brick on it."""
        base = self.losses(None, pairs)
        own = {
            brick.spec.name: self.losses(brick, {brick.spec.name: pairs[brick.spec.name]})
            for brick in self.bricks
        }
        return base, {name: own[name][name] for name in pairs}


def kept(base: Losses, own: Losses, found: Losses) -> Losses:
    return {n: (base[n] - found[n]) / (base[n] - own[n]) for n in base}


def merged(bench: Bench) -> Iterator[dict[str, Any]]:
    """For every method the best of its settings, on the examples that did not choose it."""
    chosen_by, reported = bench.references(bench.choosing), bench.references(bench.reported)
    for name in methods():
        if name not in SETTINGS:
            continue
        tried = []
        for setting in SETTINGS[name]:
            made = combine_bricks(bench.bricks, name, parameters=setting, rank=bench.options.rank)
            shares = kept(*chosen_by, bench.losses(made.brick, bench.choosing))
            tried.append((sum(shares.values()) / len(shares), setting, made))
        _, setting, made = max(tried, key=lambda one: one[0])
        shares = kept(*reported, bench.losses(made.brick, bench.reported))
        yield {
            "method": name,
            "setting": dict(setting),
            "kept": shares,
            "mean": sum(shares.values()) / len(shares),
            "error": max(made.errors.values()),
        }


def negated(bench: Bench) -> Iterator[dict[str, Any]]:
    """Skills taken away: from the base, by a brick trained on its data; and from a merge of all."""
    brick = _skill(bench)
    probe: dict[str, list[Instance]] = {}
    for instance in probe_instances():
        probe.setdefault(instance.functionality, []).append(instance)
    count = 2 * bench.options.held_out
    pairs = {name: held_out_ids(bench.loaded, found[:count]) for name, found in probe.items()}
    yield _taken_away(bench, None, brick, bench.options.skill, pairs)
    pairs = {n: [*bench.choosing[n], *bench.reported[n]] for n in bench.choosing}
    whole = combine_bricks(bench.bricks, "task_arithmetic", parameters=SCALES[0]).brick
    for brick in bench.bricks:
        yield _taken_away(bench, whole, brick, brick.spec.name, pairs)


def _skill(bench: Bench) -> Brick:
    options, tokenizer = bench.options, bench.loaded.tokenizer
    assert tokenizer is not None
    every = read_instances(options.data / "instructions" / "train.jsonl.gz")
    train = [i for i in every if i.functionality == options.skill]
    train = sample_instances(train, options.examples, 0)
    return build_task(
        bench.loaded,
        encode_instances(tokenizer, train, 256),
        LoraRecipe(8, 16, EVERYTHING, rate=4e-3, epochs=2),
        About("skill", Function(text=options.skill), f"{len(train)} examples"),
    )


def _taken_away(
    bench: Bench, whole: Brick | None, brick: Brick, skill: str, pairs: Pairs
) -> dict[str, Any]:
    """The brick at the most negative weight at which, on half of the data, the others keep."""
    choosing = {name: found[::2] for name, found in pairs.items()}
    reported = {name: found[1::2] for name, found in pairs.items()}

    def changes(weight: float, held: Pairs) -> tuple[Losses, Losses]:
        made = [(brick, weight)] if whole is None else [(whole, 1.0), (brick, weight)]
        before, after = bench.losses(whole, held), bench.losses_of(made, held)
        return before, {name: after[name] / before[name] - 1 for name in before}

    weight = 0.0
    for tried in WEIGHTS:
        _, change = changes(tried, choosing)
        if max(change[n] for n in change if n != skill) > KEEP:
            break
        weight = tried
    before, change = changes(weight, reported)
    start = "base" if whole is None else "merge of all"
    return {"skill": skill, "from": start, "weight": weight, "before": before, "change": change}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=("merged", "negated", "both"), default="both")
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--rank", type=int, default=None)
    parser.add_argument("--skill", default="Translation")
    parser.add_argument("--examples", type=int, default=1500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bench = Bench(options)
    found: dict[str, Any] = {}
    if options.part in {"merged", "both"}:
        found["merged"] = []
        for row in merged(bench):
            found["merged"].append(row)
            shares = "  ".join(f"{name} {share:6.1%}" for name, share in row["kept"].items())
            print(f"{row['method']:17s} mean {row['mean']:6.1%}  {shares}  {row['setting']}")
    if options.part in {"negated", "both"}:
        found["negated"] = []
        for row in negated(bench):
            found["negated"].append(row)
            told = ", ".join(f"{name} {change:+.1%}" for name, change in row["change"].items())
            print(f"{row['skill']} at {row['weight']} from the {row['from']}: {told}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
