"""The records of a JSONL file, or of one JSON list, gzipped or not."""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

from brickwork.errors import DataError

LONGEST_LINE = 16 * 2**20
LONGEST_LIST = 512 * 2**20
_GZIP = b"\x1f\x8b"
_BLANK = b"\xef\xbb\xbf \t\r\n"


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of the lines that are not blank, or of a list, each after a name for its place.

    Lines are read one at a time; a list, which begins the file with a bracket, is read whole.

    Raises:
        DataError: if the file cannot be read or is damaged, or a line is too long, not UTF-8, not
            JSON, or no object; the message names the line.
    """
    number = 0
    try:
        with _opened(path) as lines:
            if lines.peek(64)[:64].lstrip(_BLANK)[:1] == b"[":
                yield from _list_records(lines.read(LONGEST_LIST + 1), path)
                return
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
            f"records could not be read from {str(path)!r}: {error.strerror or error}; name a "
            "JSONL file, gzipped or not."
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    with path.open("rb") as file:
        if file.peek(2)[:2] != _GZIP:
            yield file
            return
        with gzip.open(file) as unpacked:
            yield BufferedReader(cast(RawIOBase, unpacked))


def _list_records(data: bytes, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of one JSON list."""
    if len(data) > LONGEST_LIST:
        raise DataError(
            f"the list in {str(path)!r} is longer than {LONGEST_LIST:,} bytes; write one JSON "
            "object per line instead."
        )
    try:
        records = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{str(path)!r} begins like a list, but is no JSON ({error}); write one JSON object "
            "per line, or a list of them."
        ) from None
    for number, record in enumerate(records, start=1):
        yield (where := f"{path}, record {number}"), _object(record, repr(record), where)


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
    yield where, _object(record, line, where)


def _object(record: Any, text: str, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(
            f"{where} holds {text[:60]!r}, which is no JSON object; write the fields of a record "
            "by their names."
        )
    return record
