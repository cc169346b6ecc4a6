"""Pages: many vectors of one width in one matrix, so that any choice of them is one gathering.

Compare the unified paging of S-LoRA (Sheng et al. 2023, arXiv:2311.03285); here a page is one
rank of one low-rank term.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class Pages:
    """Vectors of one width by page number; page 0 is zero and stays so."""

    vectors: Float[Tensor, "pages width"]
    free: list[int]
    gathered: Float[Tensor, "chosen width"] | None = None

    @classmethod
    def new(cls, width: int, pages: int, like: Tensor) -> "Pages":
        vectors = like.new_empty(pages + 1, width)
        vectors[0] = 0
        return cls(vectors, list(range(pages, 0, -1)))

    def put(self, vectors: Float[Tensor, "rank width"]) -> list[int]:
        """Numbers of the pages that now hold ``vectors``; the matrix doubles when it is full."""
        count = len(vectors)
        while len(self.free) < count:
            old = len(self.vectors)
            # Not filled: memory that no brick has taken yet is not even touched.
            larger = self.vectors.new_empty(2 * old - 1, self.vectors.shape[1])
            larger[:old] = self.vectors
            self.vectors = larger
            self.free[:0] = range(2 * old - 2, old - 1, -1)
        numbers = [self.free.pop() for _ in range(count)]
        self.vectors[_as_slice(numbers)] = vectors.to(self.vectors)
        return numbers

    def drop(self, numbers: list[int]) -> None:
        """Zero these pages and let others have them."""
        self.vectors[_as_slice(numbers)] = 0
        self.free.extend(reversed(numbers))

    def gather(self, index: Tensor) -> Float[Tensor, "rows rank width"]:
        """The pages of ``index`` (rows, rank), in memory that the next gathering reuses.

        It never becomes an inference tensor, which could not be written again outside of
        inference mode.
        """
        if self.gathered is None or len(self.gathered) != index.numel():
            with torch.inference_mode(False):
                self.gathered = self.vectors.new_empty(index.numel(), self.vectors.shape[1])
        torch.index_select(self.vectors, 0, index.reshape(-1), out=self.gathered)
        return self.gathered.view(*index.shape, -1)


def _as_slice(numbers: list[int]) -> slice | list[int]:
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return numbers
