"""The size of the k-th largest value of a tensor: our exact selection against sorts and others.

    python -m benchmarks.thresholds [--values N] [--json FILE]

The values are changes of a base of bfloat16 weights, of which 30 % are 0, in float32: many are
equal, as they are in real merges. All find the same threshold; ours, and the stable sort, also say
which of the equal values are taken. CPU seconds on one thread, the minimum over the rounds, with
rounds of all interleaved.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brickwork.combine.operands import PIECE
from brickwork.combine.thresholds import cuts


def changes_of(values: int) -> Tensor:
    """Changes of bfloat16 weights; equal numbers for equal sizes."""
    chance = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(values, generator=chance)
    change = 0.0017 * torch.randn(values, generator=chance)
    change *= torch.rand(values, generator=chance) > 0.3
    return (base + change).bfloat16().float() - base.bfloat16().float()


def ours(changes: Tensor, k: int) -> float:
    """The streamed selection, in pieces as merges take them."""

    def stream() -> Iterator[tuple[int, Sequence[Tensor]]]:
        for start in range(0, len(changes), PIECE):
            yield start, [changes[start : start + PIECE].unsqueeze(0)]

    ((cut,),) = cuts(stream, len(changes), [[k]])
    return cut.threshold


def by_argsort(changes: Tensor, k: int) -> float:
    """What mergekit does."""
    sizes = changes.abs()
    return sizes[torch.argsort(sizes, descending=True)[k - 1]].item()


def by_topk(changes: Tensor, k: int) -> float:
    """What PEFT does."""
    return torch.topk(changes.abs(), k).values[-1].item()


def by_kthvalue(changes: Tensor, k: int) -> float:
    """The selection of torch."""
    return torch.kthvalue(changes.abs(), len(changes) - k + 1).values.item()


def by_partition(changes: Tensor, k: int) -> float:
    """The selection of numpy."""
    place = len(changes) - k
    return float(np.partition(changes.abs().numpy(), place)[place])


WAYS: dict[str, Callable[[Tensor, int], float]] = {
    "ours": ours, "torch.argsort": by_argsort, "torch.topk": by_topk,
    "torch.kthvalue": by_kthvalue, "numpy.partition": by_partition,
}  # fmt: skip


def measure(values: int, density: float, rounds: int) -> dict[str, Any]:
    """Million values in a second for each way, and how many times as fast as each ours is."""
    changes, k = changes_of(values), int(density * values)
    found = {name: way(changes, k) for name, way in WAYS.items()}
    if len(set(found.values())) != 1:
        raise SystemExit(f"the thresholds differ: {found}")
    seconds = dict.fromkeys(WAYS, float("inf"))
    for _ in range(rounds):
        for name, way in WAYS.items():
            start = time.process_time()
            way(changes, k)
            seconds[name] = min(seconds[name], time.process_time() - start)
    return {
        "values": values, "density": density, "rounds": rounds, "threshold": found["ours"],
        "million_values_per_second": {n: values / s / 1e6 for n, s in seconds.items()},
        "times_faster": {n: s / seconds["ours"] for n, s in seconds.items() if n != "ours"},
    }  # fmt: skip


def main() -> None:
    """Measure, print the ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=11_534_336)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for density in (0.5, 0.1):
        result = measure(options.values, density, options.rounds)
        results.append(result)
        print(f"{options.values} values, density {density}")
        for name, speed in result["million_values_per_second"].items():
            ratio = result["times_faster"].get(name)
            beside = f"; ours is {ratio:.1f} x as fast" if ratio else ""
            print(f"  {name:16s} {speed:7.1f} million values a second{beside}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
