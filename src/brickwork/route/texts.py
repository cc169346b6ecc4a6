"""What bricks say of themselves: the texts that an instruction is compared with."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from brickwork.errors import DataError
from brickwork.store.entry import Entry


@dataclass(frozen=True)
class BrickTexts:
    """A brick's function in words and its example instructions.

    Attributes:
        hash: content hash of the brick.
        reference: how people call it, ``fr-en@2``.
        function: what the brick is for; may be empty.
        exemplars: instructions that need the brick; may be empty.
    """

    hash: str
    reference: str
    function: str = ""
    exemplars: tuple[str, ...] = ()

    @cached_property
    def instructions(self) -> tuple[str, ...]:
        """The exemplars without blank and repeated ones, which would vouch for themselves."""
        return tuple(dict.fromkeys(text for text in map(str.strip, self.exemplars) if text))

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The instructions, then the function if it says anything: the rows of a matrix."""
        function = self.function.strip()
        return (*self.instructions, *([function] if function else []))

    @property
    def texts_hash(self) -> str:
        """sha256 of the texts in hex: vectors made of other texts are out of date."""
        return hash_texts(self.texts)


def corpus_of(entries: Iterable[Entry]) -> tuple[BrickTexts, ...]:
    """The texts of a store's entries. Which entries fit the base is for the caller to filter."""
    return tuple(
        BrickTexts(e.hash, e.reference, e.spec.function.text, e.spec.function.exemplars)
        for e in entries
    )


def hash_texts(texts: Sequence[str]) -> str:
    """sha256 over texts and their boundaries, in hex.

    >>> hash_texts(["ab", "c"]) == hash_texts(["a", "bc"])
    False
    """
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def with_texts(corpus: Sequence[BrickTexts]) -> tuple[BrickTexts, ...]:
    """The bricks that can be found by text at all, by reference, so that their order is no matter.

    Raises:
        DataError: if a brick is there twice.
    """
    hashes = [brick.hash for brick in corpus]
    if len(set(hashes)) < len(hashes):
        twice = next(brick for brick in corpus if hashes.count(brick.hash) > 1)
        raise DataError(
            f"the brick {twice.reference} ({twice.hash[:12]}) is in the corpus "
            f"{hashes.count(twice.hash)} times; name every brick once."
        )
    found = (brick for brick in corpus if brick.texts)
    return tuple(sorted(found, key=lambda brick: (brick.reference, brick.hash)))
