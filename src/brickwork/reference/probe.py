"""The probe set: labelled instances that ship with the package, for tests and analyses.

``brickwork reference probe`` draws it anew. Only tasks with a
permissive licence and none that the base model did not train on are drawn from; every instance
carries its source and licence.
"""

import csv
import gzip
import json
import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from brickwork.measure.instances import Instance, read_instances
from brickwork.reference.corpus import is_withheld

PER_FUNCTIONALITY = 160
# Replies to harmful requests: useful to train on, not wanted in everybody's site-packages.
_LEFT_OUT = {"harmless_dialogue"}


def probe_instances() -> list[Instance]:
    """The packaged instances, 160 for each functionality."""
    return read_instances(Path(str(files("brickwork.reference"))) / "probe.jsonl.gz")


def draw(data: Path) -> list[dict[str, str]]:
    """A balanced draw from the data's own probe file, with source and licence."""
    with (data / "instructions" / "tasks.tsv").open(encoding="utf-8") as lines:
        table = {row["task"]: row for row in csv.DictReader(lines, delimiter="\t")}
    wanted = [
        i
        for i in read_instances(data / "instructions" / "probe.jsonl.gz")
        if "BY-SA" not in table[i.task]["licence"].replace(" ", "-")
        and not is_withheld(i.task)
        and i.task not in _LEFT_OUT
        and len(i.prompt) + len(i.response) < 1500
    ]
    random.Random(0).shuffle(wanted)
    chosen = [i for f in sorted({i.functionality for i in wanted}) for i in _spread(wanted, f)]
    told = ("id", "functionality", "task", "prompt", "response")
    return [
        {field: getattr(i, field) for field in told}
        | {field: table[i.task][field] for field in ("source", "licence")}
        for i in chosen
    ]


def _spread(instances: Sequence[Instance], functionality: str) -> list[Instance]:
    """Instances of one functionality, as evenly over its tasks as there are."""
    by_task: dict[str, list[Instance]] = {}
    for instance in instances:
        if instance.functionality == functionality:
            by_task.setdefault(instance.task, []).append(instance)
    chosen: list[Instance] = []
    while len(chosen) < PER_FUNCTIONALITY:
        layer = [queue.pop() for queue in by_task.values() if queue]
        chosen += layer[: PER_FUNCTIONALITY - len(chosen)]
    return chosen


def write_probe(data: Path, file: Path) -> int:
    """Draw the probe set and write it as gzipped JSONL; the number of instances."""
    drawn = draw(data)
    lines = "".join(json.dumps(i, ensure_ascii=False) + "\n" for i in drawn)
    file.write_bytes(gzip.compress(lines.encode(), mtime=0))
    return len(drawn)
