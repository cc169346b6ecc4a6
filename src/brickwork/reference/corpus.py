"""Instructions and plain text: what the reference model is trained and measured on.

An instance is ``<|user|>prompt<|assistant|>response<|endoftext|>``; a piece of plain text starts
with ``<|endoftext|>`` and has no response.
"""

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path

from brickwork.measure.instances import Instance, read_instances

END, PAD, USER, ASSISTANT = "<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>"

# Tasks that the base model never sees, so that the task bricks have something to add.
WITHHELD_TASKS = ("tatoeba_fr_en", "tldr_command", "scan_", "blimp_choice_")


def share_alike_tasks(table: Path) -> set[str]:
    """The tasks whose licence is share-alike, by the data's own licence table."""
    with table.open(encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        return {row["task"] for row in rows if "BY-SA" in row["licence"]}


def is_withheld(task: str) -> bool:
    """Whether the base model must not train on this task."""
    return any(name in task for name in WITHHELD_TASKS)


def training_instances(data: Path) -> list[Instance]:
    """What the base model trains on: permissive licences only, withheld tasks left out."""
    folder = data / "instructions"
    unwanted = share_alike_tasks(folder / "tasks.tsv")
    every = read_instances(folder / "train.jsonl.gz")
    return [i for i in every if i.task not in unwanted and not is_withheld(i.task)]


def training_texts(data: Path) -> Iterator[str]:
    """The documents of the plain-text files, in a fixed order."""
    for path in sorted((data / "text").glob("*.txt.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from (document for document in file.read().split(END) if document.strip())


def as_text(prompt: str, response: str = "") -> str:
    """The instruction format; without a response it ends where the model has to go on."""
    return f"{USER}{prompt}{ASSISTANT}{response}{END if response else ''}"
