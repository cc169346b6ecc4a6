"""Growing a checkpoint of 1B parameters: memory and time, against its size and a plain copy.

``python -m benchmarks.growing --work DIR [--json FILE]`` writes a checkpoint of the shape of
Llama 3.2 1B with random weights (bfloat16, 2.5 GB) to DIR, grows it by every row in a process of
its own, and prints the peak memory of that process above what its imports take, in units of the
checkpoint and of the largest parameter that is read or written; and the time, in units of what a
plain copy of the grown files takes. With ``--check`` the logits of both are compared in float32.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from brickwork.grow.equivalence import compare, look
from brickwork.grow.recipe import GrowthRecipe, grow_by_recipe, write_grown
from brickwork.grow.spread import generator_for
from brickwork.model.load import load_model
from brickwork.model.sizes import outline_of
from brickwork.model.stream import write_weights
from brickwork.model.weights import CheckpointWeights

SHAPE = LlamaConfig(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, vocab_size=128256, max_position_embeddings=131072,
    tie_word_embeddings=True, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None,
    dtype=torch.bfloat16,
)  # fmt: skip
GROWTHS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("width", "split", {"times": 1.5}),
    ("width", "zero", {"times": 1.5}),
    ("heads", "groups", {"kv_heads": 16}),
    ("heads", "queries", {"heads": 64}),
    ("hidden", "zero-extend", {"times": 1.25}),
    ("hidden", "duplicate", {"times": 2}),
    ("depth", "blocks", {"blocks": 4}),
    ("depth", "stack", {"overlap": 4}),
    ("experts", "upcycle", {"experts": 4}),
    ("context", "linear", {"tokens": 262144}),
)


class RandomWeights:
    """Weights of a shape that are drawn when they are asked for."""

    def __init__(self, config: LlamaConfig) -> None:
        self.outline = outline_of(config, torch.bfloat16)

    def tensor(self, path: str) -> Tensor:
        """Normal numbers; ones for norms."""
        shape = self.outline.get_parameter(path).shape
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        noise = torch.empty(shape, dtype=torch.bfloat16)
        return noise.normal_(std=0.02, generator=generator_for(0, path))

    def dtype_of(self, _path: str) -> torch.dtype:
        """Always the same."""
        return torch.bfloat16


def peak_bytes() -> int:
    """The most memory that this process has had, pages of files that it mapped included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def grow_one(source: Path, target: Path, step: dict[str, Any]) -> dict[str, Any]:
    """One growth in this process: what it took."""
    idle = peak_bytes()
    weights = CheckpointWeights(source)
    recipe = GrowthRecipe.model_validate({"steps": [step]})
    started = time.perf_counter()
    grown = grow_by_recipe(weights, recipe)
    layout = write_grown(grown, source, "random", target)
    seconds = time.perf_counter() - started
    outlines = (weights.outline, grown.weights.outline)
    largest = max(p.numel() * p.element_size() for o in outlines for p in o.parameters())
    return {
        "seconds": seconds, "peak": peak_bytes() - idle, "old": weights.bytes,
        "new": layout.bytes, "largest": largest,
    }  # fmt: skip


def copy_seconds(folder: Path) -> float:
    """What a plain copy of the weights takes, made durable like ours."""
    copy = folder.with_name(f"{folder.name}-copy")
    started = time.perf_counter()
    copy.mkdir()
    for file in folder.glob("*.safetensors"):
        shutil.copyfile(file, copy / file.name)
    subprocess.run(["sync", *map(str, copy.iterdir())], check=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(copy)
    return seconds


def checked(old: Path, new: Path) -> dict[str, float]:
    """The logits of both models in float32, one in memory at a time."""
    seen = []
    for folder in (old, new):
        loaded = load_model(str(folder), device="cpu", dtype="float32", tokenizer=False)
        seen.append(look(loaded, SHAPE.vocab_size, longest=40))
        del loaded
    found = compare(*seen)
    return {"difference": found.difference, "largest_logit": found.largest}


def run(work: Path, wanted: list[str], *, check: bool) -> list[dict[str, Any]]:
    """All growths, each in a process of its own."""
    source = work / "old"
    if not source.exists():
        write_weights(RandomWeights(SHAPE), source, {})
    rows = []
    for part, name, options in GROWTHS:
        if wanted and f"{part}-{name}" not in wanted:
            continue
        target = work / f"{part}-{name}"
        step = json.dumps({"part": part, "by": name, "options": options})
        command = [sys.executable, "-m", "benchmarks.growing", "--work", str(work)]
        command += ["--child", step, "--target", str(target)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        row |= {"part": part, "name": name, "options": options}
        row["copy_seconds"] = copy_seconds(target)
        if check:
            row |= checked(source, target)
        shutil.rmtree(target)
        rows.append(row)
        print(told(row), flush=True)
    return rows


def told(row: dict[str, Any]) -> str:
    """A line for people."""
    gigabyte = 1e9
    line = (
        f"{row['part']:8} {row['name']:12} {row['old'] / gigabyte:.2f} -> "
        f"{row['new'] / gigabyte:.2f} GB; peak {row['peak'] / gigabyte:.2f} GB = "
        f"{row['peak'] / row['old']:.2f} of the checkpoint, {row['peak'] / row['largest']:.2f} of "
        f"the largest parameter; {row['seconds']:.1f} s = "
        f"{row['seconds'] / row['copy_seconds']:.2f} of a copy"
    )
    if "difference" in row:
        line += f"; logits differ by {row['difference']:.1e} of {row['largest_logit']:.1f}"
    return line


def main() -> None:
    """Read the arguments, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", default=[], metavar="PART-NAME")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(grow_one(asked.work / "old", asked.target, json.loads(asked.child))))
        return
    asked.work.mkdir(parents=True, exist_ok=True)
    rows = run(asked.work, asked.only, check=asked.check)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
