"""Three branches of the reference model, joined in every way: losses, parameters, FLOPs.

    python -m benchmarks.branches --data train.jsonl.gz [--domains Coding,Math,Translation]
        [--steps 60] [--rate 5e-4] [--batch 1024] [--tune-steps 40]
        [--instances 2000] [--evaluation 40] [--prompt-weight 0.3] [--json FILE]

Labelled instances of each functionality are a domain. Every line is measured on the same texts,
which nothing was trained on here. ``mix`` has routers alone tuned, ``mix, all`` everything.
``dense`` is the control: one model, trained on all domains for as many steps as the branches and
that tuning together.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from brickwork.cli.branches import branches, losses
from brickwork.cli.branches_inputs import read_domains
from brickwork.grow.branches import train_branches
from brickwork.model.fit import FitRecipe
from brickwork.model.load import load_model
from brickwork.reference.paths import model_folder

# Options of the command that are options here.
NAMES = ("steps", "rate", "batch", "instances", "evaluation", "prompt_weight")
# Ways to join, by the options that ask for them.
WAYS = {
    "average": ["--by", "average"],
    "ensemble": ["--by", "ensemble"],
    "ensemble, top 1": ["--by", "ensemble", "--top", "1"],
    "mix": ["--by", "mix"],
    "mix, all": ["--by", "mix", "--tune", "everything", "--tune-rate", "3e-4"],
}


def joined(asked: argparse.Namespace, out: Path, words: list[str]) -> dict[str, Any]:
    """What the command says of one way to join."""
    tuned = ["--tune-steps", str(asked.tune_steps)] if "mix" in words else []
    options = {name: getattr(asked, name) for name in NAMES}
    command = ["reference", *(f"--domain={name}" for name in asked.domains), *words, *tuned]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command += ["--data", asked.data, "-o", str(out)]
    branches.main(command, standalone_mode=False)
    by = words[1]
    found: dict[str, Any] = json.loads((out / f"{by}.json").read_text())
    shutil.rmtree(out / "mix", ignore_errors=True)
    return found


def dense(asked: argparse.Namespace, out: Path) -> dict[str, float]:
    """The control: the losses of one model that saw as many batches, of all domains."""
    loaded = load_model(str(model_folder()), dtype="float32", name="reference")
    how = {
        "data": asked.data, "mapping": None, "instances": asked.instances, "longest": 512,
        "evaluation": asked.evaluation, "seed": 0,
    }  # fmt: skip
    domains = read_domains(loaded, asked.domains, "reference", how)
    every = [text for domain in domains.values() for text in domain.train]
    steps = asked.steps * len(domains) + asked.tune_steps
    folders = train_branches(
        loaded,
        {"dense": every},
        out,
        FitRecipe(asked.rate, steps, asked.batch, prompt_weight=asked.prompt_weight),
    )
    return losses(load_model(str(folders["dense"])).model, domains)


def measured(asked: argparse.Namespace, out: Path) -> dict[str, dict[str, Any]]:
    """A row for everyone: losses, parameters, FLOPs for each token, and what chose branches."""
    found: dict[str, dict[str, Any]] = {}
    for name, words in WAYS.items():
        said = joined(asked, out, words)
        cost = said["cost"]
        singles = {"base": said["base"]}
        singles |= {f"branch {branch}": own for branch, own in said["branches"].items()}
        found = {single: {"losses": own} | cost["base"] for single, own in singles.items()} | found
        if name == "mix":
            before = said["joined"]["mix before tuning"]
            found["mix before tuning"] = {"losses": before} | cost["joined"]
        found[name] = {"losses": said["joined"][words[1]]} | cost["joined"]
        found[name] |= {key: said[key] for key in ("posterior", "routing") if key in said}
    return found | {"dense": found["base"] | {"losses": dense(asked, out)}}


def table(found: Mapping[str, Mapping[str, Any]], domains: list[str]) -> None:
    print(f"\n{'':20}" + "".join(f"{name:>13}" for name in [*domains, "mean", "M param.", "MFLOP"]))
    for name, row in found.items():
        own = [row["losses"][domain] for domain in domains]
        size = [row["parameters"] / 1e6, row["flops_per_token"] / 1e6]
        numbers = [f"{x:13.4f}" for x in [*own, sum(own) / len(own)]]
        print(f"{name:20}" + "".join(numbers) + "".join(f"{x:13.1f}" for x in size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--domains", type=lambda t: t.split(","), default="Coding,Math,Translation")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--tune-steps", type=int, default=40)
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--evaluation", type=int, default=40)
    parser.add_argument("--prompt-weight", type=float, default=0.3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        found = measured(asked, Path(place))
    table(found, asked.domains)
    print(f"\n{time.perf_counter() - started:.0f} s, {torch.get_num_threads()} threads")
    if asked.json:
        asked.json.write_text(json.dumps({"arguments": vars(asked), "rows": found}, default=str))


if __name__ == "__main__":
    main()
