"""How well bricks are found by text, and how well none is found where none fits.

    python benchmarks/retrieval.py                                    # the set beside this file
    python benchmarks/retrieval.py --data train.jsonl.gz --bricks 'fr_en,py_complete_*' \
        --embedder FOLDER --model FOLDER --exemplars 8 --json out.json

Data are JSON lines with ``task`` and ``prompt``; ``function`` and ``role`` (exemplar or query) are
optional. Every pattern of ``--bricks`` is one brick, without it every task is one; instructions of
other tasks are off topic, and in each of ``--rounds`` rounds so are those of a third of the bricks,
which are then missing from the store.
"""

import argparse
import gzip
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import fmean

from brickwork.route.choose import choose_embedder
from brickwork.route.embedders import Embedder, SentenceEmbedder, has_minilm, packaged_minilm
from brickwork.route.index import build_index
from brickwork.route.lexical import TfidfEmbedder
from brickwork.route.retrieve import Retrieval, Retriever
from brickwork.route.states import BaseStates, StatesEmbedder
from brickwork.route.texts import BrickTexts

LONGEST = 600  # characters of an instruction that are used


@dataclass
class Task:
    function: str
    exemplars: list[str]
    queries: list[str]


@dataclass(frozen=True)
class Row:
    embedder: str
    left_out_accuracy: float
    accuracy: float
    recall_at_3: float
    kept: float
    right: float
    abstention_precision: float
    abstention_recall: float
    bricks_chosen: float
    ms_per_query: float


def read(path: Path) -> Iterator[dict[str, str]]:
    packed = path.read_bytes()
    text = gzip.decompress(packed) if path.suffix == ".gz" else packed
    for line in text.decode().splitlines():
        record = json.loads(line)
        yield record | {"prompt": record["prompt"].strip()[:LONGEST]}


def load(options: argparse.Namespace) -> tuple[dict[str, Task], list[str]]:
    patterns = options.bricks.split(",") if options.bricks else []
    groups: dict[str, dict[str, list[dict[str, str]]]] = {}
    for role, path in (("exemplar", options.data), ("query", options.queries or options.data)):
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


def sample(
    held: dict[str, list[dict[str, str]]], chance: random.Random, options: argparse.Namespace
) -> Task:
    for records in held.values():
        chance.shuffle(records)
    exemplars = [record["prompt"] for record in held["exemplar"][: options.exemplars]]
    fresh = [r["prompt"] for r in held["query"] if r["prompt"] not in exemplars]
    return Task(held["exemplar"][0].get("function", ""), exemplars, fresh[: options.per_task])


def corpus_of(tasks: dict[str, Task]) -> list[BrickTexts]:
    return [
        BrickTexts(name, name, task.function, tuple(task.exemplars)) for name, task in tasks.items()
    ]


def evaluate(
    name: str, embedder: Embedder, stored: dict[str, Task], off_topic: Sequence[str]
) -> Row:
    corpus = corpus_of(stored)
    retriever = Retriever(corpus, embedder)
    asked = [(brick, query) for brick, task in stored.items() for query in task.queries]
    start = time.perf_counter()
    on = retriever.retrieve_many([query for _, query in asked])
    off = retriever.retrieve_many(off_topic)
    took = time.perf_counter() - start
    pairs = list(zip([brick for brick, _ in asked], on, strict=True))
    abstained = sum(found.abstained for found in on + off)
    return Row(
        name,
        build_index(corpus, embedder).rehearsal.accuracy,
        fmean(found.hits[0].reference == brick for brick, found in pairs),
        fmean(brick in [hit.reference for hit in found.hits[:3]] for brick, found in pairs),
        fmean(not found.abstained for found in on),
        fmean(is_right(found, brick) for brick, found in pairs),
        sum(found.abstained for found in off) / max(abstained, 1),
        fmean(found.abstained for found in off),
        fmean([len(found.chosen) for found in on if not found.abstained] or [0]),
        took / len(on + off) * 1e3,
    )


def is_right(found: Retrieval, brick: str) -> bool:
    return not found.abstained and found.chosen[0].reference == brick


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
    parser.add_argument("--queries", type=Path, help="queries from another file than --data")
    parser.add_argument("--bricks", default="", help="task patterns, one brick each: a,b_*")
    parser.add_argument("--exemplars", type=int, default=5)
    parser.add_argument("--per-task", type=int, default=16, help="queries of a task")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embedder", help="folder of a sentence-transformers model")
    parser.add_argument("--model", help="folder of a base model, for its own states")
    parser.add_argument("--json", type=Path, help="where to write the table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    tasks, elsewhere = load(options)
    states = base_states(options.model) if options.model else None
    rows: dict[str, list[Row]] = {}
    for turn in range(options.rounds):
        names = sorted(tasks)
        random.Random(f"{options.seed} {turn}").shuffle(names)
        missing = set(names[: len(names) // 3])
        stored = {name: task for name, task in tasks.items() if name not in missing}
        off_topic = [query for name in sorted(missing) for query in tasks[name].queries]
        off_topic += elsewhere[: len(off_topic)]
        for name, embedder in embedders(options, states, corpus_of(stored)):
            rows.setdefault(name, []).append(evaluate(name, embedder, stored, off_topic))
    _, choice = choose_embedder(corpus_of(tasks), path=options.embedder, states=states)
    report([mean(found) for found in rows.values()], choice.reason, options, len(tasks))


def mean(rows: list[Row]) -> dict[str, str | float]:
    fields = [asdict(row) for row in rows]
    name = fields[0].pop("embedder")
    return {"embedder": name} | {key: fmean(row[key] for row in fields) for key in fields[0]}


def report(
    rows: list[dict[str, str | float]], choice: str, options: argparse.Namespace, bricks: int
) -> None:
    print("  ".join(f"{key:>12}" for key in rows[0]))
    for row in rows:
        cells = [f"{v:>12}" if isinstance(v, str) else f"{v:12.3f}" for v in row.values()]
        print("  ".join(cells))
    print(f"choose_embedder: {choice}", file=sys.stderr)
    if options.json:
        how = {"data": options.data.name, "bricks": bricks, "exemplars": options.exemplars}
        how |= {"rounds": options.rounds, "seed": options.seed}
        options.json.write_text(json.dumps({"how": how, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
