"""The analysis at real size: the shape of Llama 3 8B, and how good the estimate of its cost is.

    python -m benchmarks.analysis_at_size [--per-function 24] [--longest 160] [--json FILE]

Two models of the shape of Llama 3 8B (hidden 4096, FFN 14336, 32 heads over 8, vocabulary 128,256;
bfloat16, random weights) with one and with two layers go through the whole analysis on the
shortest instances of two functionalities of the packaged probe set. What a further layer took is
the measured rate; it gives what 32 layers would take, and the estimate of ``--dry-run``, which sees
the configuration alone, is compared with that. Disk is what the rows took, against what was stated;
memory is the peak of the process.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from brickwork.measure.analysis import analyze_study
from brickwork.measure.estimate import estimate
from brickwork.measure.perturbation import planned_passes
from brickwork.measure.results import Settings
from brickwork.measure.study import Study, open_study
from brickwork.model.load import LoadedModel, load_model, wrap_model
from brickwork.reference.paths import model_folder
from brickwork.reference.probe import probe_instances

LAYERS, FUNCTIONS, EVALUATION = 32, 2, 4


def config(layers: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=128256, rope_theta=500000.0,
        max_position_embeddings=8192, rms_norm_eps=1e-5,
    )  # fmt: skip


def llama(layers: int, words: Any, *, weights: bool) -> LoadedModel:
    """The model with random weights, or its outline; the tokenizer is the reference model's."""
    torch.manual_seed(0)
    with torch.device("cpu" if weights else "meta"):
        model: Any = AutoModelForCausalLM.from_config(config(layers), dtype=torch.bfloat16)
    return wrap_model(model.eval(), words, f"llama-3-8b-{layers}-layers")


def study_of(loaded: LoadedModel, options: argparse.Namespace, folder: Path) -> Study:
    every = sorted(probe_instances(), key=lambda i: len(i.prompt + i.response))
    names = sorted({i.functionality for i in every})[:FUNCTIONS]
    by_name = [[i for i in every if i.functionality == name] for name in names]
    instances = [i for own in by_name for i in own[: options.per_function]]
    settings = Settings(
        share=0.05, evaluation=EVALUATION, permutations=20, resamples=1000, seed=0,
    )  # fmt: skip
    return open_study(loaded, instances, settings, folder, longest=options.longest)


def measured(layers: int, words: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step, those of passes by pass; bytes of the rows; peak memory."""
    with tempfile.TemporaryDirectory() as place:
        study = study_of(llama(layers, words, weights=True), options, Path(place))
        stated = estimate(study)
        found = analyze_study(study, command="")
        seconds = dict(found.seconds)
        seconds["perturb"] /= sum(len(a.rows) for a in found.perturbation.ablations)
        rows = [p for f in ("rows", "attributions") for p in (Path(place) / f).iterdir()]
        return {
            "seconds": seconds, "disk": sum(p.stat().st_size for p in rows),
            "disk_stated": stated.disk, "memory": found.peak_memory,
            "memory_stated": stated.memory,
        }  # fmt: skip


def main() -> None:
    """Measure, extrapolate, compare, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-function", type=int, default=24)
    parser.add_argument("--longest", type=int, default=160)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    words = load_model(str(model_folder())).tokenizer
    runs = {layers: measured(layers, words, options) for layers in (1, 2)}
    with tempfile.TemporaryDirectory() as place:
        outline = study_of(llama(LAYERS, words, weights=False), options, Path(place))
        stated = estimate(outline)
        passes = planned_passes(outline) - 1
    first, second = runs[1]["seconds"], runs[2]["seconds"]
    expected = {
        step: (first[step] + (LAYERS - 1) * (second[step] - first[step]))
        * (passes if step == "perturb" else 1)
        for step in stated.seconds
    }
    total = sum(expected.values())
    ratio = sum(stated.seconds.values()) / total
    for step, seconds in expected.items():
        print(f"{step:10s} extrapolated {seconds:8.0f} s  stated {stated.seconds[step]:8.0f} s")
    print(f"{'total':10s} extrapolated {total:8.0f} s  stated {ratio:.2f} x of it")
    for layers, run in runs.items():
        print(
            f"{layers} layers: disk {run['disk'] / 2**20:.1f} MiB, stated "
            f"{run['disk_stated'] / 2**20:.1f}; memory {run['memory'] / 2**30:.2f} GiB, stated "
            f"{run['memory_stated'] / 2**30:.2f}"
        )
    result = {"runs": runs, "extrapolated": expected, "stated": vars(stated), "ratio": ratio}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
