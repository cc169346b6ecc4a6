"""The records of a JSONL file, gzipped or not, one at a time."""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from brickwork.errors import DataError

LONGEST_LINE = 16 * 2**20
_GZIP = b"\x1f\x8b"


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of the lines that are not blank, each after a name for its line.

    Raises:
        DataError: if the file cannot be read or is damaged, or a line is too long, not UTF-8, not
            JSON, or no object; the message names the line.
    """
    number = 0
    try:
        with _opened(path) as lines:
            while line := _line(lines, where := f"{path}, line {number + 1}"):
                number += 1
                yield from _records(line.strip("\ufeff \t\r\n"), where)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"the gzip file {str(path)!r} is damaged after line {number} ({error}); fetch or pack "
            "it again."
        ) from None
    except OSError as error:
        raise DataError(
            f"instances could not be read from {str(path)!r}: {error.strerror or error}; name a "
            "JSONL file, gzipped or not."
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        if file.peek(2)[:2] != _GZIP:
            yield file
            return
        with gzip.open(file) as unpacked:
            yield cast(BinaryIO, unpacked)


def _line(lines: BinaryIO, where: str) -> str:
    line = lines.readline(LONGEST_LINE + 1)
    if len(line) > LONGEST_LINE:
        raise DataError(
            f"{where} is longer than {LONGEST_LINE:,} bytes; write one JSON object per line, and "
            "leave out what is no text to measure on."
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 (byte {error.start + 1} is 0x{line[error.start]:02x}); convert "
            "the file to UTF-8."
        ) from None


def _records(line: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The record of a line, if the line is not blank."""
    if not line:
        return
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON ({error}): {line[:60]!r}; write one JSON object per line."
        ) from None
    if not isinstance(record, dict):
        raise DataError(
            f"{where} holds {line[:60]!r}, which is no JSON object; write an object with "
            "functionality, prompt and response."
        )
    yield where, record
