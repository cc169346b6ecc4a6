"""A model in memory as a checkpoint on disk, in the format that transformers loads."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from brickwork.brick.durable import require_free, sync_folder
from brickwork.brick.files import json_bytes
from brickwork.errors import ModelError
from brickwork.model.config import transformers_at

# How the model came to be; plain loaders pass over it.
RECORD = "brickwork.json"


def write_checkpoint(
    model: PreTrainedModel,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write the model as a new folder: all of it, or nothing.

    Weights are safetensors, in shards if they are large. If the process is killed, what is
    written so far lies in a folder ``.brickwork-...`` beside.

    Args:
        model: any causal language model of transformers, with its generation configuration.
        folder: where; there must be nothing yet.
        tokenizer: written beside the weights, with its chat template.
        record: how the model came to be, as JSON; goes into ``brickwork.json``.

    Raises:
        ModelError: if something is there already, or cannot be written.
    """
    require_free(folder, "a model", ModelError)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=".brickwork-", dir=folder.parent))
    new = workshop / "new"
    try:
        with transformers_at(f"write the model {folder.name!r}"):
            model.save_pretrained(new)
            if tokenizer is not None:
                tokenizer.save_pretrained(new)
        if record is not None:
            (new / RECORD).write_bytes(json_bytes(RECORD, record))
        make_durable(new)
        require_free(folder, "a model", ModelError)
        new.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def make_durable(folder: Path) -> None:
    """Make a new folder of files outlast a power failure."""
    for path in folder.iterdir():
        if path.is_dir():  # chat templates besides the default one
            make_durable(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
