"""How varied texts are: a model that an edit has broken says the same words again and again."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.model.load import LoadedModel
from brickwork.model.words import decoded
from brickwork.update.writing import drawn_texts

TOKENS = 100  # of each text
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of n-grams by their length
_WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Words and punctuation marks.

    >>> words_of("It's in Rome.")
    ['It', "'", 's', 'in', 'Rome', '.']
    """
    return _WORD.findall(text)


def entropy_of(words: Sequence[str]) -> float:
    """The mean of the entropies of pairs and triples of words, in bits, weighted 2/3 and 4/3.

    Source:
        Meng et al. 2022, arXiv:2202.05262, section 3.4, who print a hundred times as much and part
        words by the rules of NLTK.

    >>> entropy_of("one two three one two three one".split())
    1.542...
    """
    bits = torch.zeros((), dtype=torch.float64)
    for size, weight in _WEIGHTS.items():
        grams = Counter(zip(*(words[start:] for start in range(size)), strict=False))
        counts = torch.tensor(list(grams.values()), dtype=torch.float64)
        shares = counts / counts.sum()
        bits -= weight * (shares * shares.log2()).sum()
    return bits.item() / len(_WEIGHTS)


def entropies(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    tokens: int = TOKENS,
) -> Float[Tensor, " texts"]:
    """The entropy of one text after each prompt, which is not counted, in float64.

    Args:
        loaded: the model, as it runs now.
        prompts: token ids.
        generator: on the CPU; equal ones draw equal chance for every model.
        tokens: of each text.
    """
    texts = drawn_texts(loaded, prompts, tokens=tokens, generator=generator)
    found = [entropy_of(words_of(decoded(loaded, text))) for text in texts]
    return torch.tensor(found, dtype=torch.float64)
