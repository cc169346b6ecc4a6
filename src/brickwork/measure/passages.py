"""Plain text to measure on: a file of documents, read as passages of about equal length."""

import gzip
import hashlib
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brickwork.errors import DataError
from brickwork.model.load import LoadedModel
from brickwork.model.train import Encoded
from brickwork.model.words import token_ids

SUFFIXES = (".txt", ".txt.gz")
MARK = "<|endoftext|>"
LONGEST_FILE = 1 << 30
_CHARACTERS = 4  # of a token of English, about
_AT_ONCE = 64
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Passages:
    """Parts of documents in their order, and the sha256 of the whole text."""

    texts: tuple[str, ...]
    sha256: str


def is_plain_text(name: str) -> bool:
    """Whether a name is that of a text file, gzipped or not."""
    return name.lower().endswith(SUFFIXES)


def read_passages(path: Path, longest: int) -> Passages:
    """The passages of a text file.

    Documents are parted by ``<|endoftext|>``, or, in a file without that mark, by blank lines. A
    long document is cut at white space.

    Args:
        path: of a file in UTF-8, gzipped or not.
        longest: tokens of a passage, about.

    Raises:
        DataError: if the file cannot be read, is too large, or holds no text.
    """
    text = _text(path)
    marked = MARK in text
    parts = text.split(MARK) if marked else text.replace("\r\n", "\n").split("\n\n")
    texts = tuple(
        passage for part in parts if part.strip() for passage in _cut(part.strip(), longest)
    )
    if not texts:
        raise DataError(f"texts were asked of {str(path)!r}, which holds none; name another file.")
    return Passages(texts, hashlib.sha256(text.encode()).hexdigest())


def encode_passages(
    loaded: LoadedModel,
    passages: Sequence[str],
    longest: int,
    *,
    tokens: int | None = None,
    seed: int = 0,
) -> list[Encoded]:
    """Passages as token ids, each as a text of its own, without a response.

    Args:
        loaded: the model and its tokenizer.
        passages: any number.
        longest: tokens after which a passage is cut.
        tokens: after how many it is enough; passages are drawn at random until then. None: all.
        seed: decides what is drawn.
    """
    chosen = list(passages)
    if tokens is not None:
        random.Random(seed).shuffle(chosen)
    found: list[Encoded] = []
    total = 0
    for first in range(0, len(chosen), _AT_ONCE):
        for ids in token_ids(loaded, chosen[first : first + _AT_ONCE], special=True):
            if tokens is not None and total >= tokens:
                return found
            if ids:
                found.append(Encoded(ids[:longest], len(ids[:longest])))
                total += len(found[-1].ids)
    return found


def _cut(text: str, longest: int) -> list[str]:
    """The text in pieces that end at white space where there is some."""
    size = longest * _CHARACTERS
    pieces = []
    start = 0
    while len(text) - start > size:
        end = max(text.rfind(white, start + 1, start + size) for white in " \n\t")
        end = start + size if end < 0 else end
        pieces.append(text[start:end])
        start = end
    return [piece.strip() for piece in (*pieces, text[start:]) if piece.strip()]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file, gzip.open(file) as unpacked:
            packed = file.peek(2)[:2] == _GZIP
            data = (unpacked if packed else file).read(LONGEST_FILE + 1)
        text = data.decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise DataError(
            f"the text of {str(path)!r} cannot be read ({error}); name a file in UTF-8, gzipped or "
            "not."
        ) from None
    except OSError as error:
        raise DataError(
            f"texts could not be read from {str(path)!r}: {error.strerror or error}; name a text "
            "file, gzipped or not."
        ) from None
    if len(data) > LONGEST_FILE:
        raise DataError(
            f"the text of {str(path)!r} is longer than {LONGEST_FILE:,} bytes; split the file."
        )
    return text
