"""Labelled instances from wherever they are: a JSONL file, a folder of data files, or the Hub.

Data sets are streamed by the ``datasets`` library, from formats that hold data only. Code that
comes with a data set is never run.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from brickwork.errors import DataError, MissingExtraError
from brickwork.measure.instances import Instance, instance_of, sample_instances
from brickwork.measure.mapping import Mapping, read_mapping
from brickwork.measure.records import read_records

BUFFER = 10_000  # records that are shuffled together
SURPLUS = "more of its functionality than asked for"
_FORMATS = ("parquet", "json", "csv", "arrow")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILES = (".json", ".jsonl", ".gz", ".csv", ".parquet", ".txt", ".yaml")


@dataclass(frozen=True)
class Labelled:
    """Instances, and what became of the records that they were taken from."""

    instances: list[Instance]
    records: int
    """How many were looked at."""
    skipped: dict[str, int]
    """For each reason, how many of them gave no instance."""


def load_labelled(
    data: str,
    *,
    mapping: str | Path | None = None,
    revision: str | None = None,
    per_function: int | None = None,
    seed: int = 0,
    most: int = 1_000_000,
) -> Labelled:
    """Labelled instances, at most so many of each functionality.

    A data set is read in a random order (its files, and within a window of records) until there
    are enough instances, so that a huge one is fetched only in part.

    Args:
        data: a JSONL file, a folder of data files, or the id of a data set on the Hub.
        mapping: how to read the records: a shipped name, or a YAML file. Without one, records have
            the fields of an ``Instance``.
        revision: branch, tag or commit of a data set on the Hub.
        per_function: instances of each functionality, at most; None for all.
        seed: decides which.
        most: how many records are looked at.

    Raises:
        DataError: if the data cannot be read, or gives no instance.
        UnknownNameError: if there is no such mapping.
        MissingExtraError: if a data set is named and the extra ``data`` is not installed.
    """
    path, rules = Path(data).expanduser(), None if mapping is None else read_mapping(mapping)
    is_id = _HUB_ID.fullmatch(data) and path.suffix not in _FILES and not path.exists()
    if revision is not None and not is_id:
        raise DataError(
            f"{data!r} is no data set on the Hub, so it has no revision {revision!r}; leave the "
            "revision out."
        )
    if is_id or path.is_dir():
        records = islice(_stream(data, rules, revision, seed), most)
        return _collect(records, data, rules, per_function)
    found = _collect(read_records(path), data, rules, None)
    if per_function is None:
        return found
    drawn = sample_instances(found.instances, per_function, seed)
    surplus = len(found.instances) - len(drawn)
    return replace(found, instances=drawn, skipped=found.skipped | {SURPLUS: surplus})


def _collect(
    records: Iterator[tuple[str, dict[str, Any]]],
    data: str,
    rules: Mapping | None,
    per_function: int | None,
) -> Labelled:
    """Instances from records, until there are enough of every functionality of the mapping."""
    instances: list[Instance] = []
    skipped: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    first: dict[str, Any] = {}
    for where, record in records:
        first = first or record
        found = rules.instance(record, where) if rules else instance_of(record, where)
        if isinstance(found, str):
            skipped[found] += 1
        elif drawn[found.functionality] == per_function:
            skipped[SURPLUS] += 1
        else:
            drawn[found.functionality] += 1
            instances.append(found)
        if rules and all(drawn[name] == per_function for name in rules.functionalities):
            break
    if not instances:
        raise _nothing(data, first, skipped)
    return Labelled(instances, len(instances) + skipped.total(), dict(skipped))


def _nothing(data: str, first: dict[str, Any], skipped: Counter[str]) -> DataError:
    if not first:
        return DataError(
            f"instances were asked of {data!r}, which has no record; write one JSON object per "
            "line, with functionality, prompt and response."
        )
    reasons = "; ".join(f"{reason}: {count}" for reason, count in sorted(skipped.items()))
    return DataError(
        f"none of {skipped.total()} records of {data!r} gives an instance ({reasons}); compare "
        f"the mapping with the first record: {repr(first)[:300]}"
    )


def _stream(
    data: str, rules: Mapping | None, revision: str | None, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a data set in random order, each after a name for it."""
    try:
        import datasets  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError(f"reading the data set {data!r}", "data") from None
    folder = Path(data).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else data
    try:
        config = rules.config if rules else None
        if folder.is_dir() and config not in datasets.get_dataset_config_names(name):
            config = None  # the folder may hold the files of this one alone
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        _require_plain(builder, data)
        split = rules.split if rules else "train"
        stream = builder.as_streaming_dataset(split=split).shuffle(seed, buffer_size=BUFFER)
        for number, record in enumerate(stream, 1):
            yield f"{data}, record {number} (seed {seed})", record
    except DataError:
        raise
    except Exception as error:  # the library lets through the errors of its readers and of HTTP
        raise DataError(
            f"the data set {data!r} could not be read: {type(error).__name__}: "
            f"{str(error)[:500]}; name a folder with {', '.join(_FORMATS)} files, a JSONL file, or "
            "a data set on the Hub that you can reach and may see."
        ) from None


def _require_plain(builder: Any, data: str) -> None:
    """Refuse what is read by other code than that of the plain formats."""
    module = type(builder).__module__
    if module not in {f"datasets.packaged_modules.{name}.{name}" for name in _FORMATS}:
        raise DataError(
            f"the data set {data!r} is read by {module}, and only {', '.join(_FORMATS)} files are "
            "read here, for they hold data only; convert it to one of them."
        )
