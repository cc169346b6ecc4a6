"""Balanced clustering and co-activation at the size of a large FFN.

    python -m benchmarks.partition [--json FILE] [--neurons 14336] [--features 4096] [--groups 64]

Clustering: rows of noise, which is the slowest case, and rows around planted directions, against
scikit-learn's KMeans, which keeps no balance: one iteration of it, after its own start, and the
sum of squared distances that it converges to.
Co-activation: a stream of activations of planted groups through the sketches, against adding up
the whole graph of the same tokens. Wall seconds are those of a busy machine if others use it; CPU
seconds are not. Peaks are what the process grew by.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, LlamaConfig

from brickwork.measure.batch import RunningBatch
from brickwork.measure.clustering import balanced_clusters, distortion
from brickwork.measure.coactivation import ACTIVE, WIDTH, Coactivation

TOKENS = 512  # at once


def rows_of(neurons: int, features: int, groups: int, strength: float) -> tuple[Tensor, Tensor]:
    """Rows of length 1: noise, and so much of one of the groups' directions."""
    chance = torch.Generator().manual_seed(0)
    truth = torch.randperm(neurons, generator=chance) % groups
    rows = normalize(torch.randn(neurons, features, generator=chance), dim=1)
    directions = normalize(torch.randn(groups, features, generator=chance), dim=1)
    return normalize(rows + strength * directions[truth], dim=1), truth


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Wall and CPU seconds, growth of the peak in bytes, and the result."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {**spent, "peak_growth": grown}, result


def clustering(neurons: int, features: int, groups: int, strength: float) -> dict[str, Any]:
    rows, truth = rows_of(neurons, features, groups, strength)
    chance = torch.Generator().manual_seed(1)
    ours, owners = timed(lambda: balanced_clusters(rows, groups, chance))
    one, _ = timed(lambda: KMeans(groups, n_init=1, max_iter=1, random_state=0).fit(rows.numpy()))
    many, free = timed(lambda: KMeans(groups, n_init=1, random_state=0).fit(rows.numpy()))
    sizes = torch.bincount(owners)
    unbalanced = torch.bincount(torch.from_numpy(free.labels_).long(), minlength=groups)
    return {
        "neurons": neurons, "features": features, "groups": groups, "planted": strength,
        "seconds": {"ours": ours, "scikit-learn, one iteration": one,
                    "scikit-learn, converged": many},
        "distortion": {"ours": distortion(rows, owners), "scikit-learn": float(free.inertia_),
                       "one group": distortion(rows, torch.zeros(neurons, dtype=torch.int64)),
                       "truth": distortion(rows, truth)},
        "sizes": [int(sizes.min()), int(sizes.max())],
        "sizes_scikit_learn": [int(unbalanced.min()), int(unbalanced.max())],
        "rand_index": adjusted_rand_score(truth, owners) if strength else None,
        "ratio_to_one_iteration": ours["wall"] / one["wall"],
    }  # fmt: skip


def activations(seed: int, truth: Tensor, groups: int) -> Tensor:
    """Activations of some tokens; those of four groups are larger."""
    chance = torch.Generator().manual_seed(seed)
    chosen = torch.rand(TOKENS, groups, generator=chance).topk(4, 1).indices
    loud = torch.zeros(TOKENS, groups).scatter_(1, chosen, 1.0)
    return torch.randn(TOKENS, len(truth), generator=chance) * (1 + loud[:, truth])


def coactivation(neurons: int, groups: int, batches: int) -> dict[str, Any]:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=neurons, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=64,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(1.0)
    seeds, truth = range(batches), torch.arange(neurons) % groups
    running = RunningBatch(torch.ones(1, TOKENS, dtype=torch.bool))

    def sketch() -> Coactivation:
        found = Coactivation(model, running, torch.Generator().manual_seed(0))
        tap = found.taps()[0]
        for seed in seeds:
            tap(activations(seed, truth, groups), None)
        return found

    def make() -> None:
        for seed in seeds:
            activations(seed, truth, groups)

    def whole() -> Tensor:
        graph = torch.zeros(neurons, neurons)
        for seed in seeds:
            size = activations(seed, truth, groups).abs()
            least = size.topk(int(ACTIVE * neurons), 1, sorted=False).values.amin(1, keepdim=True)
            active = (size >= least).float()
            graph.addmm_(active.T, active)
        return graph

    stream_only, _ = timed(make)
    sketched, found = timed(sketch)
    clustered, owners = timed(
        lambda: balanced_clusters(found.profiles(0), groups, torch.Generator().manual_seed(1))
    )
    graphed, _ = timed(whole)
    tokens = TOKENS * batches
    spent = {name: part["cpu"] - stream_only["cpu"]
             for name, part in (("sketches", sketched), ("graph", graphed))}  # fmt: skip
    return {
        "neurons": neurons, "groups": groups, "tokens": tokens, "width": WIDTH,
        "bytes": {"sketches": 4 * WIDTH * neurons, "graph": 4 * neurons**2},
        "seconds": {"stream": stream_only, "stream and sketches": sketched,
                    "clustering": clustered, "stream and graph": graphed},
        "cpu_microseconds_per_token": {n: 1e6 * s / tokens for n, s in spent.items()},
        "times_cheaper": spent["graph"] / max(spent["sketches"], 1e-9),
        "rand_index": adjusted_rand_score(truth, owners),
    }  # fmt: skip


def main() -> None:
    """Measure, print the ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neurons", type=int, default=14336)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.neurons, options.features, options.groups)
    together = coactivation(options.neurons, options.groups, options.batches)
    print(f"co-activation, {together['tokens']} tokens, {options.neurons} neurons:")
    for name, each in together["cpu_microseconds_per_token"].items():
        print(f"  {name:10s} {each:10.1f} CPU microseconds per token, "
              f"{together['bytes'][name] / 2**20:7.1f} MiB for a layer")  # fmt: skip
    grown = together["seconds"]["stream and sketches"]["peak_growth"] / 2**20
    print(f"  sketches {together['times_cheaper']:.1f} times cheaper; peak + {grown:.0f} MiB; "
          f"Rand index {together['rand_index']:.3f}")  # fmt: skip
    clusterings = [clustering(*size, strength) for strength in (0.0, 0.3)]
    for result in clusterings:
        print(f"clustering {size[0]} x {size[1]} into {size[2]}, planted {result['planted']}:")
        for name, part in result["seconds"].items():
            print(f"  {name:28s} wall {part['wall']:7.2f} s, CPU {part['cpu']:7.2f} s")
        tight = result["distortion"]
        gains = {n: tight["one group"] - tight[n] for n in ("ours", "scikit-learn")}
        print(f"  explained: ours {gains['ours']:.1f}, scikit-learn {gains['scikit-learn']:.1f} "
              f"({gains['ours'] / gains['scikit-learn']:.2f} times); sizes {result['sizes']}, "
              f"{result['sizes_scikit_learn']}; "
              f"{result['ratio_to_one_iteration']:.1f} times one iteration")  # fmt: skip
    if options.json:
        found = {"coactivation": together, "clustering": clusterings}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
