"""A larger vocabulary: new tokens that begin as the mean of old ones, or of their pieces."""

from typing import Any

from brickwork.errors import GrowthError
from brickwork.grow.growth import Growth
from brickwork.grow.options import VocabularyOptions
from brickwork.grow.spread import NONE, Spread
from brickwork.model.tokens import Tokenizer, pieces_of, with_tokens
from brickwork.model.weights import Weights


def add_mean(
    weights: Weights, options: VocabularyOptions, tokenizer: Tokenizer | None = None
) -> Growth:
    """New tokens begin as the mean of all old ones, so that none of them is likely at first.

    Source: Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models.
    """
    return _grown(weights, options, tokenizer, by_pieces=False)


def add_pieces(
    weights: Weights, options: VocabularyOptions, tokenizer: Tokenizer | None = None
) -> Growth:
    """A new token begins as the mean of the tokens that it was written with before.

    Source: Sachidananda et al. 2021 (arXiv:2109.12308), as the usual baseline of vocabulary
        expansion.
    """
    return _grown(weights, options, tokenizer, by_pieces=True)


def _grown(
    weights: Weights, options: VocabularyOptions, tokenizer: Tokenizer | None, *, by_pieces: bool
) -> Growth:
    if tokenizer is None:
        raise GrowthError(
            f"{len(options.tokens)} tokens were to be added, but the model came without a "
            "tokenizer; put its files beside the weights."
        )
    words: Any = weights.outline.get_input_embeddings()
    head: Any = weights.outline.get_output_embeddings()
    rows, heads = len(words.weight), len(head.weight)
    if rows != heads:
        raise GrowthError(
            f"the embedding has {rows} rows and the unembedding {heads}; name a model where both "
            "have one row for each token."
        )
    known = len(tokenizer)
    _, numbers = with_tokens(tokenizer, options.tokens)
    size = max(rows, max(numbers) + 1)
    everything = tuple(range(min(known, rows)))
    blends = {}
    for number, token in zip(numbers, options.tokens, strict=True):
        # A tokenizer may know tokens that the table has no rows for.
        pieces = tuple(n for n in pieces_of(tokenizer, token) if n < rows) if by_pieces else ()
        blends[number] = pieces or everything
    new = set(numbers)
    # A row that pads the table may lie where a new token belongs.
    source = tuple(n if n < rows and n not in new else NONE for n in range(size))
    blends |= {n: everything for n in range(rows, size) if n not in new}
    fresh = tuple(n in new or n >= rows for n in range(size))
    spread: Any = Spread(source, fresh, blends=blends)
    return Growth("old tokens", {"vocab_size": size}, {"vocabulary": spread}, tokens=options.tokens)
