"""An FFN over chosen neurons against torch's dense FFN: one token, everything from memory.

    python -m benchmarks.sparse_ffn [--json FILE]

A gated FFN of random weights (hidden 4096, 14336 neurons). Before every call the caches are flushed
and other neurons are chosen at random: single ones (scattered), or whole groups of 128 neighbours.
All variants are interleaved; times are the minimum over the rounds, and so are those of the dense
FFN in the usual layout, which has as many threads. The bound is how fast C's ``memchr`` looks
through long memory in vain, in the same run; the rate counts the bytes of the chosen records only.
"""

import argparse
import ctypes
import functools
import json
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brickwork.model.ffn import FFN
from brickwork.runtime.kernels import Records
from brickwork.runtime.sparse_ffn import available, sparse_ffn

GROUP = 128
FLUSHED_BYTES = 1 << 27
READ_BYTES, PIECES = 1 << 25, 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# path, neighbours that are chosen together
VARIANTS = {
    "native, scattered": ("native", 1),
    "native, groups": ("native", GROUP),
    "torch, scattered": ("torch", 1),
    "torch, groups": ("torch", GROUP),
}


class Stream:
    """Memory that is only read, piece after piece from end to end, by so many threads."""

    def __init__(self) -> None:
        pages = mmap.mmap(-1, READ_BYTES * PIECES)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # as the records have
            pages.madvise(mmap.MADV_HUGEPAGE)
        self.memory = torch.frombuffer(pages, dtype=torch.uint8).fill_(1)
        self.piece = 0
        self.look = ctypes.CDLL(None).memchr
        self.look.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        self.look.restype = ctypes.c_void_p

    def read(self, threads: int) -> None:
        """Read one piece, which no cache holds any more."""
        size, start = READ_BYTES // threads, self.memory[self.piece * READ_BYTES :].data_ptr()
        self.piece = (self.piece + 1) % PIECES
        others = [
            threading.Thread(target=self.look, args=(start + n * size, 0, size))
            for n in range(1, threads)
        ]
        for other in others:
            other.start()
        self.look(start, 0, size)
        for other in others:
            other.join()


class Work:
    """One FFN in both layouts, and what is done with it."""

    def __init__(self, hidden: int, neurons: int, dtype: torch.dtype) -> None:
        self.chance = torch.Generator().manual_seed(0)
        self.x = self.normal(1, hidden).to(dtype)
        gate, up = (self.normal(neurons, hidden).to(dtype) for _ in range(2))
        down = self.normal(hidden, neurons).to(dtype)
        self.ffn = FFN(nn.functional.silu, up, down, gate)
        self.records = Records.pack(self.ffn)
        self.flushed = torch.ones(FLUSHED_BYTES // 4)
        self.stream = Stream()

    def normal(self, rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=self.chance).div_(columns**0.5)

    def chosen(self, density: float, group: int) -> Tensor:
        groups = self.records.neurons // group
        count = max(1, round(density * groups))
        first = torch.randperm(groups, generator=self.chance)[:count].sort().values * group
        return (first.unsqueeze(1) + torch.arange(group)).flatten()

    def calls(
        self, densities: list[float], threads: list[int]
    ) -> Iterator[tuple[tuple[str, float, int], Callable[[], Any]]]:
        """Every variant with its density and threads, and one call of it on a new choice."""
        paths = {name for name, problem in available(self.records).items() if problem is None}
        for many in threads:
            yield ("bound", 1.0, many), functools.partial(self.stream.read, many)
            yield ("dense", 1.0, many), lambda: self.ffn(self.x)
            yield ("dense, records", 1.0, many), lambda: self.records.as_ffn()(self.x)
            for name, (path, group) in VARIANTS.items():
                for density in densities if path in paths else []:
                    neurons = self.chosen(density, group)
                    yield (
                        (name, density, many),
                        functools.partial(sparse_ffn, self.records, self.x, neurons, path=path),
                    )

    def difference(self, density: float) -> dict[str, float]:
        """How far each path is from the same neurons in float64, over the largest output."""
        neurons = self.chosen(density, 1)
        gate, up, down = self.records.parts()
        assert gate is not None
        exact = FFN(
            nn.functional.silu,
            up[neurons].double(),
            down[neurons].T.double(),
            gate[neurons].double(),
        )(self.x.double())
        found = {}
        for path, problem in available(self.records).items():
            if problem is None:
                y = sparse_ffn(self.records, self.x, neurons, path=path).double()
                found[path] = ((y - exact).abs().max() / exact.abs().max()).item()
        return found


def seconds(work: Callable[[], Any], flushed: Tensor, threads: int) -> float:
    torch.set_num_threads(threads)
    flushed.dot(flushed)  # read, not written: what is written goes back to memory meanwhile
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    work = Work(options.hidden, options.neurons, DTYPES[dtype])
    best: dict[tuple[str, float, int], float] = {}
    for _ in range(options.rounds):
        for key, call in work.calls(options.densities, options.threads):
            spent = seconds(call, work.flushed, key[2])
            best[key] = min(spent, best.get(key, spent))
    rows = []
    for (name, density, threads), least in best.items():
        bytes_ = density * work.records.weights.nbytes
        spent = least * bytes_ / READ_BYTES if name == "bound" else least
        rows.append({
            "variant": name, "density": density, "threads": threads, "milliseconds": spent * 1e3,
            "gigabytes_per_second": bytes_ / spent / 1e9,
            "times_dense": best["dense", 1.0, threads] / spent,
        })  # fmt: skip
    return {
        "dtype": dtype, "hidden": options.hidden, "neurons": options.neurons,
        "rounds": options.rounds, "group": GROUP, "paths": available(work.records),
        "difference": work.difference(0.25), "rows": rows,
    }  # fmt: skip


def main() -> None:
    """Measure, print the ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--neurons", type=int, default=14336)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for dtype in options.dtypes:
        result = measure(options, dtype)
        results.append(result)
        far = ", ".join(f"{path} {error:.1e}" for path, error in result["difference"].items())
        print(f"{dtype}, hidden {options.hidden}, {options.neurons} neurons; from float64: {far}")
        for row in result["rows"]:
            print(f"  {row['threads']} threads  {row['variant']:18s} {row['density']:5.0%} "
                  f"{row['milliseconds']:8.2f} ms {row['gigabytes_per_second']:6.1f} GB/s "
                  f"{row['times_dense']:6.2f} x dense")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
