"""Tokenizers in older forms, written as ``tokenizer.json`` by transformers."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from brickwork.combine.tokenizer_file import TOKENIZER, tokenizer_files
from brickwork.errors import ModelError
from brickwork.model.config import transformers_at


def converted_files(folder: Path) -> dict[str, bytes]:
    """The files of the folder's tokenizer, as transformers would save it anew.

    Raises:
        ModelError: if the tokenizer cannot be loaded, or has no such form.
    """
    with tempfile.TemporaryDirectory() as place, transformers_at(f"read the tokenizer in {folder}"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        tokenizer.save_pretrained(place)
        files = tokenizer_files(Path(place))
    if TOKENIZER not in files:
        raise ModelError(
            f"the tokenizer in {folder} cannot be written as {TOKENIZER}, which aligning "
            "vocabularies needs; save it in that form first."
        )
    return files
