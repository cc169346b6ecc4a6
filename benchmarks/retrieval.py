"""How well bricks are found by text, and how well none is found where none fits.

    python -m benchmarks.retrieval                                    # the set beside this file
    python -m benchmarks.retrieval --data train.jsonl.gz --bricks 'fr_en,py_complete_*' \
        --embedder FOLDER --model FOLDER --exemplars 8 --json out.json

Data are JSON lines with ``task`` and ``prompt``; ``function`` and ``role`` (exemplar or query) are
optional. Every pattern of ``--bricks`` is one brick, without it every task is one; instructions of
other tasks are off topic, and in each of ``--rounds`` rounds so are those of a third of the bricks,
which are then missing from the store. "left-out" is the accuracy that the exemplars promise, "kept"
the share of instructions with any brick chosen, "right" the share with the right one chosen first.
"""

import argparse
import gzip
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import fmean

from brickwork.route.choose import choose_embedder
from brickwork.route.embedders import Embedder, SentenceEmbedder, has_minilm, packaged_minilm
from brickwork.route.index import build_index
from brickwork.route.lexical import TfidfEmbedder
from brickwork.route.retrieve import Retriever
from brickwork.route.states import BaseStates, StatesEmbedder
from brickwork.route.texts import BrickTexts

LONGEST = 600  # characters of an instruction that are used
NUMBERS = {"exemplars": 5, "queries": 16, "rounds": 6, "seed": 0}  # two of a task, two of the run
Held = dict[str, list[dict[str, str]]]  # records of one task by role


@dataclass
class Task:
    function: str
    exemplars: list[str]
    queries: list[str]


def read(path: Path) -> Iterator[dict[str, str]]:
    packed = path.read_bytes()
    text = gzip.decompress(packed) if path.suffix == ".gz" else packed
    for line in text.decode().strip().split("\n"):
        record = json.loads(line)
        yield record | {"prompt": record["prompt"].strip()[:LONGEST]}


def load(options: argparse.Namespace) -> tuple[dict[str, Task], list[str]]:
    patterns = options.bricks.split(",") if options.bricks else []
    groups: dict[str, Held] = {}
    for role, path in (("exemplar", options.data), ("query", options.asked or options.data)):
        for record in read(path):
            name = record["task"]
            if patterns:
                name = next((p for p in patterns if fnmatch(name, p)), "")
            held = groups.setdefault(name, {"exemplar": [], "query": []})
            if record.get("role", role) == role:
                held[role].append(record)
    chance = random.Random(options.seed)
    off_topic = [record["prompt"] for record in groups.pop("", {"query": []})["query"]]
    chance.shuffle(off_topic)
    return {name: sample(held, chance, options) for name, held in groups.items()}, off_topic


def sample(held: Held, chance: random.Random, options: argparse.Namespace) -> Task:
    for records in held.values():
        chance.shuffle(records)
    exemplars = [record["prompt"] for record in held["exemplar"][: options.exemplars]]
    fresh = [r["prompt"] for r in held["query"] if r["prompt"] not in exemplars]
    return Task(held["exemplar"][0].get("function", ""), exemplars, fresh[: options.queries])


def corpus_of(tasks: dict[str, Task]) -> list[BrickTexts]:
    return [BrickTexts(n, n, task.function, tuple(task.exemplars)) for n, task in tasks.items()]


def evaluate(embedder: Embedder, stored: dict[str, Task], off: Sequence[str]) -> dict[str, float]:
    corpus = corpus_of(stored)
    retriever = Retriever(corpus, embedder)
    asked = [(brick, query) for brick, task in stored.items() for query in task.queries]
    start = time.process_time()
    served = retriever.retrieve_many([query for _, query in asked])
    strange = retriever.retrieve_many(off)
    took = time.process_time() - start
    pairs = list(zip([brick for brick, _ in asked], served, strict=True))
    abstained = sum(found.abstained for found in served + strange)
    return {
        "left-out": build_index(corpus, embedder).rehearsal.accuracy,
        "accuracy": fmean(found.hits[0].reference == brick for brick, found in pairs),
        "recall@3": fmean(brick in [h.reference for h in found.hits[:3]] for brick, found in pairs),
        "kept": fmean(not found.abstained for found in served),
        "right": fmean(any(h.reference == b for h in found.chosen[:1]) for b, found in pairs),
        "abstention precision": sum(found.abstained for found in strange) / max(abstained, 1),
        "abstention recall": fmean(found.abstained for found in strange),
        "bricks chosen": fmean([len(f.chosen) for f in served if not f.abstained] or [0]),
        "CPU ms": took / len(served + strange) * 1e3,
    }


def embedders(
    options: argparse.Namespace, states: BaseStates | None, corpus: list[BrickTexts]
) -> Iterator[tuple[str, Embedder]]:
    if options.embedder:
        yield "sentence-transformers", SentenceEmbedder(options.embedder)
    if has_minilm():
        yield "minilm", packaged_minilm()
    if states:
        yield "states", StatesEmbedder(corpus, states)
    yield "tfidf", TfidfEmbedder(corpus)


def base_states(folder: str) -> BaseStates:
    from brickwork.measure.states import pooled_states  # noqa: PLC0415 - only with --model
    from brickwork.model.load import load_model  # noqa: PLC0415

    loaded = load_model(folder)
    return BaseStates(loaded.base.fingerprint.weights, partial(pooled_states, loaded))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    beside = Path(__file__).with_name("retrieval_set.jsonl")
    parser.add_argument("--data", type=Path, default=beside, help="JSON lines, may be .gz")
    parser.add_argument("--asked", type=Path, help="take queries from this file, not from --data")
    parser.add_argument("--bricks", default="", help="task patterns, one brick each: a,b_*")
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--embedder", help="folder of a sentence-transformers model")
    parser.add_argument("--model", help="folder of a base model, for its own states")
    parser.add_argument("--json", type=Path, help="where to write the table")
    return parser.parse_args(arguments)


def rounds(
    tasks: dict[str, Task], elsewhere: list[str], options: argparse.Namespace
) -> Iterator[tuple[dict[str, Task], list[str]]]:
    """Which bricks are in the store each time, and the off-topic instructions."""
    for turn in range(options.rounds):
        names = sorted(tasks)
        random.Random(f"{options.seed} {turn}").shuffle(names)
        missing = set(names[: len(names) // 3])
        off_topic = [query for name in sorted(missing) for query in tasks[name].queries]
        stored = {name: task for name, task in tasks.items() if name not in missing}
        yield stored, off_topic + elsewhere[: len(off_topic)]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    tasks, elsewhere = load(options)
    states = base_states(options.model) if options.model else None
    found: dict[str, list[dict[str, float]]] = {}
    for stored, off_topic in rounds(tasks, elsewhere, options):
        for name, embedder in embedders(options, states, corpus_of(stored)):
            found.setdefault(name, []).append(evaluate(embedder, stored, off_topic))
    report(found, options)
    _, choice = choose_embedder(corpus_of(tasks), path=options.embedder, states=states)
    print(f"choose_embedder: {choice.reason}", file=sys.stderr)


def report(found: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    """Print the mean over the rounds, one column per embedder, and write it where it is asked."""
    table = {
        name: {key: fmean(row[key] for row in rows) for key in rows[0]}
        for name, rows in found.items()
    }
    print(f"{'':40}" + "".join(f"{name:>22}" for name in table))
    for key in next(iter(table.values())):
        print(f"{key:40}" + "".join(f"{row[key]:22.3f}" for row in table.values()))
    if options.json:
        how = {key: vars(options)[key] for key in ("bricks", *NUMBERS)}
        options.json.write_text(json.dumps({"how": how, "mean": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
