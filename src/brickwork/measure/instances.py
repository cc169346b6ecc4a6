"""Labelled instances: read from JSONL, told apart by source, split, and turned into tokens.

An instance is a prompt with a response and the one functionality that it needs, as in Xiao et al.
2024 (arXiv:2409.02877), section 4.2.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brickwork.errors import DataError, UnknownNameError
from brickwork.measure.records import read_records
from brickwork.model.load import LoadedModel
from brickwork.model.train import Encoded
from brickwork.model.words import answer_end, encode, token_ids

FEWEST = 10  # instances of a functionality
_SOURCE_FIELDS = ("id", "task", "source")


@dataclass(frozen=True)
class Instance:
    """One labelled instruction; ``source`` says where it came from, for controls by source."""

    functionality: str
    prompt: str
    response: str
    id: str = ""
    task: str = ""
    source: str = ""


@dataclass(frozen=True)
class Split:
    """Indices of the instances that units are chosen on, and of those that losses are taken on.

    Both go through the functionalities by name, and through each in random order.
    """

    localisation: tuple[int, ...]
    evaluation: tuple[int, ...]


@dataclass(frozen=True)
class EncodedInstances:
    """One sequence for each instance, None where nothing is left to measure; how many were cut."""

    sequences: list[Encoded | None]
    cut: int

    @property
    def left_out(self) -> int:
        """Instances without a sequence."""
        return self.sequences.count(None)


def read_instances(path: Path) -> list[Instance]:
    """The instances of a JSONL file, gzipped or not, in file order.

    Each line is an object with the texts ``functionality``, ``prompt`` and ``response`` (which may
    be empty), and if it likes ``id``, ``task`` and ``source``. Other fields and blank lines are
    passed over.

    Raises:
        DataError: if the file cannot be read, holds no instance, or has a line that is none; the
            message names the line.
    """
    instances = [instance_of(record, where) for where, record in read_records(path)]
    if not instances:
        raise DataError(
            f"instances were asked of {str(path)!r}, which has no line; write one JSON object per "
            "line, with functionality, prompt and response."
        )
    return instances


def instance_of(record: dict[str, Any], where: str) -> Instance:
    """The instance that a record holds; ``where`` names the record in messages.

    Raises:
        DataError: if a text is missing, is no text, or is empty where it must not be.
    """
    needed = {name: _text(record, name, where) for name in ("functionality", "prompt", "response")}
    for name in ("functionality", "prompt"):
        if not needed[name].strip():
            raise DataError(f"{where} has an empty {name}; fill it in, or leave the line out.")
    named = {k: _text(record, k, where) for k in _SOURCE_FIELDS if record.get(k) is not None}
    return Instance(**needed, **named)


def _text(record: dict[str, Any], name: str, where: str) -> str:
    if name not in record:
        fields = ", ".join(sorted(record)[:8]) or "none"
        raise DataError(f"{where} has no {name} (its fields: {fields}); add {name!r} as text.")
    value = record[name]
    if name == "id" and type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: {name} is {json.dumps(value)[:60]}, not text; write it in quotes."
        )
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError(f"{where}: {name} holds half of a surrogate pair; write whole characters.")
    return value


def with_sources(instances: Sequence[Instance], rule: str) -> list[Instance]:
    """The instances with their source taken from one of their fields.

    An instance whose field does not match has no source, the empty text.

    Args:
        instances: any number.
        rule: ``FIELD`` (id, task or source), or ``FIELD:REGEX``, which takes the first match.

    Raises:
        UnknownNameError: if there is no such field.
        DataError: if the expression is not valid, or no instance has a source by this rule.
    """
    field, colon, expression = rule.partition(":")
    if field not in _SOURCE_FIELDS:
        raise UnknownNameError("field that can name the source", field, _SOURCE_FIELDS)
    try:
        pattern = re.compile(expression if colon else r"(?s).*")
    except re.error as error:
        raise DataError(
            f"the source rule {rule!r} has no valid regular expression after the colon ({error}); "
            "write for example 'task:^[a-z]+'."
        ) from None
    found = [pattern.search(getattr(instance, field)) for instance in instances]
    sources = [match.group() if match else "" for match in found]
    if not any(sources):
        example = getattr(instances[0], field) if instances else ""
        raise DataError(
            f"the source rule {rule!r} finds a source in none of {len(instances)} instances (the "
            f"first has {field} {example!r}); choose another field or expression."
        )
    return [replace(i, source=source) for i, source in zip(instances, sources, strict=True)]


def split_instances(instances: Sequence[Instance], *, evaluation: int, seed: int) -> Split:
    """A random split that keeps the share of every functionality, the same in any file order.

    Instances of equal prompt stay together, since units are chosen by prompts alone; where they
    have different functionalities they are never evaluated on.

    Args:
        instances: at least 10 of each functionality.
        evaluation: at most so many instances of a functionality are evaluated on, and never more
            than a fifth of it.
        seed: equal seeds, equal splits.

    Raises:
        DataError: if there are fewer than two functionalities, or too few instances of one.
    """
    counts = _required_counts(instances, evaluation)
    room = {name: min(evaluation, count // 5) for name, count in counts.items()}
    sides: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in counts}
    for twins in _twins(instances, seed):
        names = {instances[i].functionality for i in twins}
        first = instances[twins[0]].functionality
        chosen = len(names) == 1 and len(twins) <= room[first]
        room[first] -= len(twins) * chosen
        for i in twins:
            sides[instances[i].functionality][chosen].append(i)
    bare = [name for name, (_, evaluated) in sides.items() if not evaluated]
    if bare:
        raise DataError(
            f"of the {counts[bare[0]]} instances of {bare[0]!r} none can be evaluated on, for too "
            "many have the same prompt, or another functionality too; add others."
        )
    localisation, evaluated = (
        tuple(i for side in sides.values() for i in side[which]) for which in (0, 1)
    )
    return Split(localisation, evaluated)


def default_evaluation(instances: Sequence[Instance]) -> int:
    """How many instances of each functionality losses are measured on, if nobody says.

    A fifteenth of the smallest functionality, at most 40: some ninety passes go over them, which
    then take not much longer than the rest of an analysis.
    """
    fewest = min(Counter(i.functionality for i in instances).values(), default=0)
    return max(1, min(40, fewest // 15))


def sample_instances(instances: Sequence[Instance], per_function: int, seed: int) -> list[Instance]:
    """At most so many instances of each functionality, drawn at random, in their old order."""
    drawn: Counter[str] = Counter()
    kept: set[int] = set()
    for i in sorted(range(len(instances)), key=lambda i: _draw(instances[i], seed)):
        if drawn[instances[i].functionality] < per_function:
            drawn[instances[i].functionality] += 1
            kept.add(i)
    return [instance for i, instance in enumerate(instances) if i in kept]


def _twins(instances: Sequence[Instance], seed: int) -> list[list[int]]:
    """Indices of the instances with equal prompts, in an order that no file's matters to."""
    order = sorted(range(len(instances)), key=lambda i: _draw(instances[i], seed))
    same: dict[str, list[int]] = defaultdict(list)
    for i in order:
        same[instances[i].prompt].append(i)
    return list(same.values())


def _required_counts(instances: Sequence[Instance], evaluation: int) -> dict[str, int]:
    """How many instances each functionality has, by name; refuses too few."""
    counts = dict(sorted(Counter(i.functionality for i in instances).items()))
    if evaluation < 1:
        raise DataError(
            f"{evaluation} evaluation instances for each functionality were asked for; at least "
            "one is needed."
        )
    if len(counts) < 2:
        raise DataError(
            f"an analysis compares functionalities, but the {len(instances)} instances have "
            f"{len(counts)} ({', '.join(counts) or 'none'}); add instances of others."
        )
    few = [f"{name!r} has {count}" for name, count in counts.items() if count < FEWEST]
    if few:
        raise DataError(
            f"every functionality needs at least {FEWEST} instances, but {', '.join(few)}; add "
            "more, or leave the functionality out."
        )
    return counts


def _draw(instance: Instance, seed: int) -> bytes:
    """A random number that depends on the seed and on what the instance says."""
    return hashlib.sha256(f"{seed} {_content(instance)}".encode()).digest()


def _content(instance: Instance) -> str:
    return json.dumps([instance.functionality, instance.prompt, instance.response])


def content_hash(instances: Iterable[Instance]) -> str:
    """The sha256 of functionalities, prompts and responses, in their order."""
    digest = hashlib.sha256()
    for instance in instances:
        digest.update(f"{_content(instance)}\n".encode())
    return digest.hexdigest()


def encode_instances(
    loaded: LoadedModel, instances: Sequence[Instance], longest: int
) -> EncodedInstances:
    """Instances as token ids: the prompt as the model is prompted, the response, and its end.

    Args:
        loaded: the model; its chat template is used if it has one.
        instances: any number.
        longest: tokens after which an instance is cut.

    Returns:
        A sequence for every instance: None if its prompt is empty, or if none of its response is
        left after the cut.

    Raises:
        ConfigurationError: if the model came without a tokenizer.
    """
    prompts = encode(loaded, [i.prompt for i in instances])
    responses = token_ids(loaded, [i.response for i in instances])
    end = answer_end(loaded)
    ending = [] if end is None else [end]
    sequences: list[Encoded | None] = []
    cut = 0
    for instance, prompt, response in zip(instances, prompts, responses, strict=True):
        ids = [*prompt, *response, *ending]
        asked = bool(prompt) and bool(instance.prompt.strip())
        whole = asked and len(prompt) < min(len(ids), longest)
        sequences.append(Encoded(ids[:longest], len(prompt)) if whole else None)
        cut += whole and len(ids) > longest
    return EncodedInstances(sequences, cut)
