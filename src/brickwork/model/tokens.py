"""A tokenizer with more tokens, and what the old one makes of them."""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from brickwork.errors import GrowthError
from brickwork.model.config import transformers_at

# What the rooms that have no door to transformers call a tokenizer of it.
Tokenizer = PreTrainedTokenizerBase


def with_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> tuple[Tokenizer, list[int]]:
    """A copy that knows the tokens too, and their numbers.

    Raises:
        GrowthError: if some are there already, are named twice, or are empty.
    """
    known = tokenizer.get_vocab()
    wrong = [t for n, t in enumerate(tokens) if not t or t in known or t in tokens[:n]]
    if wrong or not tokens:
        raise GrowthError(
            f"{len(tokens)} tokens were to be added, of which {wrong[:5]} are empty, twice among "
            "them, or known already; name tokens that the tokenizer does not have."
        )
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(list(tokens))
    numbers = larger.get_vocab()
    return larger, [numbers[token] for token in tokens]


def pieces_of(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The numbers of the tokens that a text is made of, without special ones around it."""
    return tuple(int(n) for n in tokenizer(text, add_special_tokens=False)["input_ids"])


def saved_tokenizer(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files that the tokenizer is saved as, by name."""
    with tempfile.TemporaryDirectory() as place, transformers_at("save the tokenizer"):
        tokenizer.save_pretrained(place)
        return {
            str(file.relative_to(place)): file.read_bytes()
            for file in sorted(Path(place).rglob("*"))
            if file.is_file()
        }
