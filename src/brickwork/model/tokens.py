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
    wrong = [t for n, t in enumerate(tokens) if t in tokens[:n] or _is_token(tokenizer, t)]
    if wrong or not tokens:
        raise GrowthError(
            f"{len(tokens)} new tokens were asked for, of which {wrong[:5]} are empty, twice among "
            "them, or known already; name texts that the tokenizer writes with several tokens."
        )
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(list(tokens))
    numbers = larger.get_vocab()
    return larger, [numbers[token] for token in tokens]


def _is_token(tokenizer: Tokenizer, text: str) -> bool:
    """Whether there is such a token, perhaps under a name of its own, as "Ġthe" is for " the"."""
    if not text or text in tokenizer.get_vocab():
        return True
    pieces = pieces_of(tokenizer, text)
    return len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id


def with_length(tokenizer: Tokenizer, tokens: int) -> Tokenizer:
    """A copy for texts of that many tokens; itself if it knows no limit below that."""
    if tokenizer.model_max_length >= tokens:
        return tokenizer
    longer = copy.deepcopy(tokenizer)
    longer.model_max_length = tokens
    return longer


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
