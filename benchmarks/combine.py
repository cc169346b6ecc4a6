"""Merging whole models: time, memory and results, against the floor and against mergekit.

    python -m benchmarks.combine [--mergekit PYTHON] [--rounds 3] [--methods linear,ties] [--json F]
    python -m benchmarks.combine --equal --mergekit PYTHON
    python -m benchmarks.combine --big
    python -m benchmarks.combine --many [--mergekit PYTHON]

Speed: a base and three fine-tunes of 246 M random bfloat16 weights. The floor is measured in the
same run: every input byte is read once into a buffer in the cache, and as many bytes as the output
has are written and made durable, by one thread or by two, the faster counts. In process: the merge
alone, after imports, in a process of its own; as a command: all of it. Seconds are the least of the
rounds, in which both sides take turns. Memory is the peak of RssAnon: what a process holds beside
the files that it maps. PYTHON is the interpreter of an environment with mergekit; without it only
ours is measured.
"""

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.combine_models import (
    SMALL,
    TINY,
    Size,
    configuration,
    flat,
    many_tensors,
    recipes,
    write_model,
)
from brickwork.model.shard_layout import Shape, lay_out
from brickwork.model.shards import Shards, weight_files

Run = dict[str, float]
PIECE = 1 << 19
# Several recipes, divided by commas, are written beside themselves. Prints seconds, and the peaks
# of anonymous memory before the merge and in it.
_DRIVER = """
import json, sys, threading, time, resource
def anon():
    with open("/proc/self/status") as lines:
        return next(int(l.split()[1]) << 10 for l in lines if l.startswith("RssAnon"))
recipes, out, workers = sys.argv[1:]
%s
def every():
    names = recipes.split(",")
    for recipe in names:
        merge(recipe, out if len(names) == 1 else recipe.removesuffix(".yaml"))
before, peak, on = anon(), [anon()], [True]
def watch():
    while on[0]:
        peak[0] = max(peak[0], anon()); time.sleep(0.002)
watcher = threading.Thread(target=watch); watcher.start()
wall, cpu = time.perf_counter(), time.process_time()
every()
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
on[0] = False; watcher.join()
print(json.dumps({"wall": wall, "cpu": cpu, "anon_imports": before, "anon_peak": peak[0]}))
"""
_OURS = (
    _DRIVER
    % """
from pathlib import Path
import torch
from brickwork.cli.combine_models import fetch_model
from brickwork.combine.engine import write_merge
from brickwork.combine.planner import plan_merge
from brickwork.combine.recipe import read_recipe
from brickwork.combine.methods import methods
def merge(recipe, out):
    plan = plan_merge(read_recipe(Path(recipe)), fetch_model)
    write_merge(plan, Path(out), workers=int(workers))
"""
)
_THEIRS = (
    _DRIVER
    % """
import yaml, torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
torch.set_num_threads(1)
def merge(recipe, out):
    with open(recipe) as stream:
        config = MergeConfiguration.model_validate(yaml.safe_load(stream))
    run_merge(config, out, MergeOptions(quiet=True, random_seed=0, copy_tokenizer=False))
"""
)


@contextmanager
def place(needed: int) -> Iterator[Path]:
    """A folder with so many bytes of room, which goes at the end."""
    folder = Path(tempfile.mkdtemp(prefix="combine-"))
    try:
        if shutil.disk_usage(folder).free < needed:
            sys.exit(f"needs {needed:,} bytes under {folder.parent}; set TMPDIR to a larger disk.")
        yield folder
    finally:
        shutil.rmtree(folder)


def run_driver(python: str, driver: str, recipe: Path, *more: Path, workers: int = 1) -> Run:
    """A merge in a fresh process; ``out`` beside the recipe holds the result."""
    shutil.rmtree(recipe.with_name("out"), ignore_errors=True)
    files = ",".join(map(str, (recipe, *more)))
    found = subprocess.run(
        [python, "-c", driver, files, recipe.with_name("out"), str(workers)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if found.returncode:
        sys.exit(f"{recipe.name}: {found.stderr[-2000:]}")
    result: Run = json.loads(found.stdout.splitlines()[-1])
    return result


def run_command(words: list[str], recipe: Path) -> Run:
    """A merge as a user calls it."""
    shutil.rmtree(recipe.with_name("out"), ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu}


def floor(inputs: list[Path], size: int, scratch: Path) -> Run:
    """Read all inputs once, write so many bytes, and make them durable: the least of two ways.

    One thread, or two that each take half of both.
    """
    files = [file for folder in inputs for file in weight_files(folder)]
    return least([_floor(files, size, scratch, threads) for threads in (1, 2)])


def _floor(files: list[Path], size: int, scratch: Path, threads: int) -> Run:
    source = np.random.default_rng(0).integers(0, 255, PIECE, dtype=np.uint8)
    wall, cpu = time.perf_counter(), time.process_time()
    with scratch.open("wb", buffering=0) as stream:
        os.posix_fallocate(stream.fileno(), 0, size)

        def half(number: int) -> None:
            for file in files[number::threads]:
                _read(file)
            for place in range(number * PIECE, size, threads * PIECE):
                os.pwrite(stream.fileno(), source[: size - place], place)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(half, range(threads)))
        os.fdatasync(stream.fileno())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    scratch.unlink()
    return {"wall": wall, "cpu": cpu}


def _read(file: Path) -> None:
    buffer = bytearray(PIECE)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def least(runs: list[Run]) -> Run:
    """The least of times, the greatest of memory."""
    return {key: (max if "anon" in key else min)(run[key] for run in runs) for key in runs[0]}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    with place(5 * 4 * SMALL.parameters) as home:
        for number, name in enumerate(("base", "ft1", "ft2", "ft3")):
            write_model(home / name, SMALL, number, torch.bfloat16)
        table = recipes(home, SMALL.layers, "bfloat16")
        wanted = options.methods.split(",") if options.methods else list(table)
        found = {m: speed_of(home, m, table[m], options) for m in wanted}
    ratios = [f["ratio"] for f in found.values() if "ratio" in f]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
    if mean:
        print(f"geometric mean over {len(ratios)} methods: {mean:.2f} times as fast as mergekit")
    return {"parameters": SMALL.parameters, "methods": found, "geometric_mean": mean}


def speed_of(
    home: Path, method: str, recipe: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    file = home / f"{method}.yaml"
    file.write_text(flat(recipe))
    models = sorted({Path(m) for m in _mentioned(recipe)})
    runs: dict[str, list[dict[str, float]]] = {}

    def note(name: str, result: dict[str, float]) -> None:
        runs.setdefault(name, []).append(result)

    command = [sys.executable, "-m", "brickwork", "combine", str(file), "-o", str(home / "out")]
    for turn in range(options.rounds):
        for workers in (1, 2):
            ours = run_driver(sys.executable, _OURS, file, workers=workers)
            note(f"ours, {workers} worker{'s' * (workers > 1)}", ours)
        written = sum(held.bytes for held in Shards(home / "out").tensors.values())
        note("floor", floor(models, written, home / "scratch"))
        note("ours, command", run_command(command, file))
        if options.mergekit and turn < options.their_rounds:
            note("mergekit", run_driver(options.mergekit, _THEIRS, file))
            if options.commands:
                script = str(Path(options.mergekit).with_name("mergekit-yaml"))
                note("mergekit, command", run_command([script, str(file), str(home / "out")], file))
    found: dict[str, Any] = {name: least(each) for name, each in runs.items()}
    ours = found["ours, 1 worker"]
    found["times_floor"] = {n: found[n]["wall"] / found["floor"]["wall"]
                            for n in found if n != "floor"}  # fmt: skip
    found["anon_beside_imports"] = ours["anon_peak"] - ours["anon_imports"]
    if "mergekit" in found:
        found["ratio"] = found["mergekit"]["wall"] / ours["wall"]
        found["cpu_ratio"] = found["mergekit"]["cpu"] / ours["cpu"]
    _tell(method, found)
    return found


def _mentioned(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node[key] for key in ("model", "base_model") if isinstance(node.get(key), str)}
        return own.union(*(_mentioned(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(_mentioned(value) for value in node))
    return set()


def _tell(method: str, found: dict[str, Any]) -> None:
    print(f"{method}:" + (f" {found['ratio']:.1f} times as fast as mergekit in process "
          f"({found['cpu_ratio']:.1f} in CPU seconds)" if "ratio" in found else ""))  # fmt: skip
    for name, times in found["times_floor"].items():
        part = found[name]
        memory = f", anon {part['anon_peak'] / 1e6:5.0f} MB" if "anon_peak" in part else ""
        print(f"  {name:18s} wall {part['wall']:7.2f} s, CPU {part['cpu']:7.2f} s, "
              f"{times:5.2f} x floor{memory}")  # fmt: skip
    grown = found["anon_beside_imports"] / 1e6
    print(f"  {'floor':18s} wall {found['floor']['wall']:7.2f} s, "
          f"CPU {found['floor']['cpu']:7.2f} s; ours holds {grown:.0f} MB beside its imports",
          flush=True)  # fmt: skip


def equal(options: argparse.Namespace) -> dict[str, Any]:
    """The same recipes through both, on a tiny model: the largest differences."""
    found: dict[str, Any] = {}
    with place(1 << 28) as home:
        for kind, dtypes in {"float32": "float32 " * 4, "bfloat16": "bfloat16 " * 4,
                             "mixed": "float32 bfloat16 float32 float16"}.items():  # fmt: skip
            models = home / kind
            for number, dtype in enumerate(dtypes.split()):
                name = f"ft{number}" if number else "base"
                write_model(models / name, TINY, number, getattr(torch, dtype))
            written = "bfloat16" if kind == "bfloat16" else "float32"
            table = recipes(models, TINY.layers, written)
            wanted = options.methods.split(",") if options.methods else list(table)
            files = [models / f"{method}.yaml" for method in wanted]
            for file in files:
                file.write_text(flat(table[file.stem]))
            run_driver(sys.executable, _OURS, *files)
            for file in files:
                file.with_suffix("").rename(file.with_suffix(".ours"))
            run_driver(options.mergekit, _THEIRS, *files)
            for file in files:
                ours, theirs = Shards(file.with_suffix(".ours")), Shards(file.with_suffix(""))
                line = found[f"{kind} {file.stem}"] = _differences(ours, theirs)
                print(f"{kind:9s} {file.stem:17s} {line}", flush=True)
    return found


def _differences(ours: Shards, theirs: Shards) -> dict[str, Any]:
    if set(ours.tensors) != set(theirs.tensors):
        return {"tensors": sorted(set(ours.tensors) ^ set(theirs.tensors))}
    largest, unequal, numbers, wrong_dtype = 0.0, 0, 0, 0
    for name in ours.tensors:
        mine, other = ours.tensor(name), theirs.tensor(name)
        wrong_dtype += mine.dtype != other.dtype
        largest = max(largest, float((mine.double() - other.double()).abs().max()))
        unequal += int((mine != other).sum())
        numbers += mine.numel()
    return {"largest": largest, "unequal_share": unequal / numbers, "wrong_dtype": wrong_dtype}


def big(options: argparse.Namespace) -> dict[str, Any]:
    """Anonymous memory on checkpoints of 8 GB and more."""
    size = Size(4096, 14336, 18, 32_000)
    found: dict[str, Any] = {"bytes": 2 * size.parameters}
    with place(4 * 2 * size.parameters) as home:
        for number, name in enumerate(("base", "ft1")):
            write_big(home / name, size, number)
        models = [{"model": str(home / name), "parameters": {"weight": 0.5, "density": 0.5}}
                  for name in ("base", "ft1")]  # fmt: skip
        for method in ("linear", "ties"):
            recipe = {"merge_method": method, "models": models, "dtype": "bfloat16"}
            if method == "ties":
                recipe |= {"base_model": str(home / "base"), "models": models[1:]}
            else:
                recipe["models"] = [{**m, "parameters": {"weight": 0.5}} for m in models]
            file = home / f"{method}.yaml"
            file.write_text(flat(recipe))
            found[method] = run_driver(sys.executable, _OURS, file, workers=2)
            grown = found[method]["anon_peak"] - found[method]["anon_imports"]
            print(
                f"{method}: two models of {2 * size.parameters / 1e9:.1f} GB, "
                f"{found[method]['wall']:.1f} s, {grown / 1e6:.0f} MB beside imports",
                flush=True,
            )
            shutil.rmtree(home / "out")
    return found


def write_big(folder: Path, size: Size, seed: int) -> None:
    """Random bfloat16 weights in one file, made by repeating a large random block with a shift."""
    folder.mkdir()
    shapes = [Shape(name, torch.bfloat16, shape) for name, shape in size.shapes.items()]
    layout = lay_out(shapes, 5_000_000_000)
    chance = torch.Generator().manual_seed(seed)
    block = (torch.randn(1 << 26, generator=chance) * 0.02).bfloat16().view(torch.uint8).numpy()
    for file, header in layout.headers.items():
        left = layout.sizes[file] - len(header)
        with (folder / file).open("wb") as stream:
            stream.write(header)
            while left:
                shift = 2 * int(torch.randint(1 << 20, (), generator=chance))
                left -= stream.write(block[shift : shift + left])
    (folder / "model.safetensors.index.json").write_text(json.dumps(layout.index))
    (folder / "config.json").write_text(json.dumps(configuration(size, torch.bfloat16)))


def many(options: argparse.Namespace) -> dict[str, Any]:
    """Whether the time grows as the number of tensors does."""
    found: dict[str, Any] = {}
    for layers in (100, 200, 400):
        with place(1 << 28) as home:
            models = [many_tensors(home / str(n), layers, n) for n in range(2)]
            recipe = {"merge_method": "linear", "dtype": "float32", "models": [
                {"model": str(m), "parameters": {"weight": 0.5}} for m in models]}  # fmt: skip
            file = home / "many.yaml"
            file.write_text(flat(recipe))
            line = {"ours": run_driver(sys.executable, _OURS, file)}
            if options.mergekit:
                line["mergekit"] = run_driver(options.mergekit, _THEIRS, file)
        found[str(9 * layers + 3)] = line
        told = ", ".join(f"{name} {run['cpu']:.2f} CPU s" for name, run in line.items())
        print(f"{9 * layers + 3} tensors: {told}", flush=True)
    return found


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergekit", help="the Python of an environment with mergekit")
    parser.add_argument("--commands", action="store_true", help="time mergekit-yaml, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--their-rounds", type=int, default=1)
    parser.add_argument("--methods", help="of the speed table; default: all")
    for mode in ("equal", "big", "many"):
        parser.add_argument(f"--{mode}", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.equal and not options.mergekit:
        parser.error("--equal compares with mergekit; name its --mergekit PYTHON")
    modes = {"equal": equal, "big": big, "many": many}
    chosen = [work for name, work in modes.items() if getattr(options, name)] or [speed]
    found = {work.__name__: work(options) for work in chosen}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
