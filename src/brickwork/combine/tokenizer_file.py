"""The tokenizer of a checkpoint, as the data of its ``tokenizer.json``."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brickwork.combine.names import vocabulary_size
from brickwork.errors import ModelError
from brickwork.model.checkpoint import CONFIG, TOKENIZER_FILES

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
# It needs transformers, which takes longer to load than many a merge takes.
_CONVERTER = "brickwork.combine.tokenizer_conversion:converted_files"


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer, and how many of its tokens the model has rows for.

    Attributes:
        document: the data of ``tokenizer.json``.
        settings: the data of ``tokenizer_config.json``; empty if there is none.
        files: all files of the tokenizer, by name.
        rows: entries of the model's embedding, padding included.
        ids: the row of every token that the model has a row for.
        added: the flags of those of them that are matched before anything else.
        overfull: whether it has tokens that the model has no row for.
    """

    document: Mapping[str, Any]
    settings: Mapping[str, Any]
    files: Mapping[str, bytes]
    rows: int
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    overfull: bool


def read_tokenizer(folder: Path) -> TokenizerFile | None:
    """The tokenizer in a checkpoint's folder; None if there is none.

    A tokenizer without ``tokenizer.json`` is converted as transformers does it.

    Raises:
        ModelError: if it is damaged, or cannot be written as ``tokenizer.json``.
    """
    files = tokenizer_files(folder)
    if not any(name in TOKENIZER_FILES for name in files.keys() - {SETTINGS}):
        return None
    if TOKENIZER not in files:
        module, _, function = _CONVERTER.partition(":")
        files = getattr(importlib.import_module(module), function)(folder)
    document, settings = _data(folder, files, TOKENIZER), _data(folder, files, SETTINGS)
    rows = vocabulary_size(_data(folder, {CONFIG: (folder / CONFIG).read_bytes()}, CONFIG))
    if rows is None or rows < 1:
        raise ModelError(
            f"{folder / CONFIG} does not say how many tokens the model has rows for (vocab_size); "
            "add it."
        )
    try:
        ids = _all_ids(document, settings)
        merges_of(document["model"])
        added = {entry["content"]: entry for entry in _added(document, settings)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{folder / TOKENIZER} is damaged ({type(error).__name__}: {error}); fetch it again."
        ) from None
    held = {token: number for token, number in ids.items() if number < rows}
    flags = {token: entry for token, entry in added.items() if token in held}
    return TokenizerFile(document, settings, files, rows, held, flags, len(held) < len(ids))


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint that belong to its tokenizer, chat templates included."""
    found = [folder / name for name in TOKENIZER_FILES]
    found += sorted(folder.glob("*.jinja"))
    found += sorted(folder.glob("additional_chat_templates/*.jinja"))
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in found if path.is_file()
    }


def vocabulary_of(model: Mapping[str, Any]) -> dict[str, int]:
    """Tokens and numbers of the ``model`` part of a ``tokenizer.json``."""
    words = model["vocab"]
    if isinstance(words, list):  # Unigram: pairs of a token and its score, in the numbers' order
        return {str(token): number for number, (token, _) in enumerate(words)}
    return dict(words)


def merges_of(model: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What the merges join, and what they make; older files write a pair with a space between."""
    prefix = len(model.get("continuing_subword_prefix") or "")
    written = model.get("merges") or ()
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in written)
    return [(left, right, "".join((left, right[prefix:]))) for left, right in pairs]


def _all_ids(document: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, int]:
    ids = vocabulary_of(document["model"])
    for entry in _added(document, settings):
        ids.setdefault(entry["content"], int(entry["id"]))
    wrong = next((t for t, number in ids.items() if type(number) is not int or number < 0), None)
    if wrong is not None:
        raise ValueError(f"the token {wrong!r} has the number {ids[wrong]!r}")
    return ids


def _added(document: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Added tokens; older checkpoints keep some of them beside ``tokenizer.json`` only."""
    entries = [dict(entry) for entry in document.get("added_tokens") or ()]
    known = {entry["content"] for entry in entries}
    beside = settings.get("added_tokens_decoder") or {}
    entries += [
        {"id": int(number), **entry}
        for number, entry in beside.items()
        if entry["content"] not in known
    ]
    return entries


def _data(folder: Path, files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        data = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{folder / name} is damaged ({error}); fetch it again.") from None
    if not isinstance(data, dict):
        raise ModelError(f"{folder / name} must hold a mapping; fetch it again.")
    return data
