"""Functionality scores of many neurons for seven labels, against a loop of scikit-learn calls.

    python -m benchmarks.functionality [--json FILE]

Activities are sizes of normal noise in float32; one in a hundred neurons carries a label, one is
dead, and one is active in a tenth of the samples only. The loop calls
``average_precision_score`` once for each neuron and label, for a part of the neurons, in the same
run; times are per neuron, the minimum over the rounds, with rounds of both interleaved. Wall
seconds are those of a busy machine if others use it; CPU seconds are not.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from brickwork.measure.average_precision import average_precision

FUNCTIONS, LOOPED = 7, 100


def activity_of(samples: int, neurons: int) -> tuple[Tensor, Tensor]:
    """Activities and labels; equal numbers for equal sizes."""
    chance = torch.Generator().manual_seed(0)
    activity = torch.randn(samples, neurons, generator=chance).abs_()
    labels = (torch.arange(samples) % FUNCTIONS).unsqueeze(1) == torch.arange(FUNCTIONS)
    activity[:, 0::100] += labels[:, :1].float()
    activity[:, 1::100] = 0.0
    sparse = activity[:, 2::100]
    sparse *= torch.rand(sparse.shape, generator=chance) < 0.1
    return activity, labels


def loop(activity: Tensor, labels: Tensor) -> Tensor:
    """scikit-learn, one call for each neuron and label."""
    columns = [column.numpy() for column in labels.T]
    scores = [[average_precision_score(y, x.numpy()) for y in columns] for x in activity.T]
    return torch.tensor(scores, dtype=torch.float64)


def permuted(labels: Tensor, permutations: int) -> Tensor:
    """The labels, and after them permutations of them."""
    chance = torch.Generator().manual_seed(1)
    orders = [torch.randperm(len(labels), generator=chance) for _ in range(permutations)]
    return torch.cat([labels, *(labels[order] for order in orders)], dim=1)


def seconds(work: Callable[[], Any], threads: int) -> dict[str, float]:
    """Wall and CPU seconds of one call."""
    torch.set_num_threads(threads)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def measure(samples: int, neurons: int, rounds: int, permutations: int) -> dict[str, Any]:
    """Nanoseconds for each sample and neuron, and how far apart the scores are."""
    activity, labels = activity_of(samples, neurons)
    part, null = activity[:, :LOOPED].contiguous(), permuted(labels, permutations)
    few = activity[:, : max(neurons // 8, 1)]
    threads = torch.get_num_threads()
    modes: dict[str, tuple[Callable[[], Any], int, int]] = {
        "loop": (lambda: loop(part, labels), 1, LOOPED),
        "ours, 1 thread": (lambda: average_precision(activity, labels), 1, neurons),
        f"ours, {threads} threads": (lambda: average_precision(activity, labels), threads, neurons),
        f"with {permutations} permutations": (
            lambda: average_precision(few, null),
            1,
            few.shape[1],
        ),
    }

    def times(name: str) -> int:  # the loop would have so many times the labels
        return 1 + permutations if "permutations" in name else 1

    found: dict[str, dict[str, float]] = {name: {} for name in modes}
    for _ in range(rounds):
        for name, (work, used, scored) in modes.items():
            for clock, spent in seconds(work, used).items():
                each = spent * 1e9 / (samples * scored)
                found[name][clock] = min(each, found[name].get(clock, each))
    torch.set_num_threads(threads)
    difference = (average_precision(part, labels) - loop(part, labels)).abs().max().item()
    return {
        "samples": samples, "neurons": neurons, "functions": FUNCTIONS, "rounds": rounds,
        "nanoseconds": found, "difference": difference,
        "times_faster": {
            name: {clock: found["loop"][clock] * times(name) / each for clock, each in own.items()}
            for name, own in found.items()
        },
    }  # fmt: skip


def main() -> None:
    """Measure, print the ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neurons", type=int, default=4096)
    parser.add_argument("--permutations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for samples in (7000, 700):
        result = measure(samples, options.neurons, options.rounds, options.permutations)
        results.append(result)
        print(f"{samples} samples, {options.neurons} neurons, {FUNCTIONS} functionalities; "
              f"largest difference {result['difference']:.1e}")  # fmt: skip
        for name, each in result["nanoseconds"].items():
            times = result["times_faster"][name]
            print(f"  {name:22s} ns per sample and neuron: wall {each['wall']:8.2f}, CPU "
                  f"{each['cpu']:8.2f}; times faster: wall {times['wall']:6.1f}, CPU "
                  f"{times['cpu']:6.1f}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
