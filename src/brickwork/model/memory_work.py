"""What rows of a batch do to single states after a block: added neurons, and codebooks.

What chooses (keys, biases, radii, projections) is not rounded to the dtype of the states, which
are compared with it in at least float32.

Sources: T-Patcher, Huang et al. 2023, arXiv:2301.09785; GRACE, Hartvigsen et al. 2023,
arXiv:2211.11031 (with every token of its own; there, the last token of the prompt decides for
all); SERAC, Mitchell et al. 2022, arXiv:2206.06520 (values instead of a second model).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.brick.effects import Codebook

_FEW = 4  # keys that rounding may let seem equally near


@dataclass(frozen=True, eq=False)
class PatchWork:
    """The neurons that each row adds after one block; ``value`` holds the weight already.

    A row with fewer neurons than another has zeros, which add nothing.
    """

    key: Float[Tensor, "rows neurons hidden"]
    bias: Float[Tensor, "rows 1 neurons"]
    value: Float[Tensor, "rows neurons hidden"]

    def __call__(
        self, y: Float[Tensor, "rows tokens hidden"]
    ) -> Float[Tensor, "rows tokens hidden"]:
        """What they add to a block that hands on ``y``."""
        active = torch.baddbmm(self.bias, y.to(self.key.dtype), self.key.transpose(1, 2)).relu()
        return torch.bmm(active.to(y.dtype), self.value)


@dataclass(frozen=True, eq=False)
class WeightedCodebook:
    """A codebook and how strongly it acts."""

    codebook: Codebook
    weight: float

    def answer(
        self, y: Float[Tensor, "rows tokens hidden"], entry: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens hidden"]:
        """What a block hands on instead of ``y`` where this entry answers."""
        value = self.weight * self.codebook.value[entry]
        kept = (1 - self.weight) * y if self.codebook.replaces else y
        return (kept + value).to(y.dtype)


def joined(uses: Sequence[WeightedCodebook]) -> tuple[WeightedCodebook, ...]:
    """The same codebooks, but neighbours without a projection as one: one look at it is enough."""
    found: list[WeightedCodebook] = []
    for (plain, weight, replaces), group in groupby(uses, _sort):
        books = [use.codebook for use in group]
        if plain and len(books) > 1:
            key, value, radius = (
                torch.cat([getattr(book, slot) for book in books])
                for slot in ("key", "value", "radius")
            )
            books = [Codebook(books[0].site, key, value, radius, None, replaces)]
        found += [WeightedCodebook(book, weight) for book in books]
    return tuple(found)


def _sort(use: WeightedCodebook) -> tuple[bool, float, bool]:
    return use.codebook.projection is None, use.weight, use.codebook.replaces


@dataclass(frozen=True, eq=False)
class CodebookWork:
    """Rows that have the same codebooks, in the same order, after one block."""

    rows: Int[Tensor, " alike"]
    codebooks: tuple[WeightedCodebook, ...]

    def __call__(
        self, y: Float[Tensor, "alike tokens hidden"], x: Float[Tensor, "alike tokens hidden"]
    ) -> Float[Tensor, "alike tokens hidden"]:
        """What the block hands on instead of ``y``, having read ``x``.

        In one space the nearest key of all the codebooks decides, the first of equally near ones.
        The states are a space, and so is each projection. Distances in two spaces cannot be
        compared, so of their answers the one counts that is nearest as a share of its radius.
        Gradients go through the states and the values, not through the choice.
        """
        said = y
        least = torch.full(x.shape[:2], torch.inf, device=x.device)
        spaces: dict[int, list[WeightedCodebook]] = {}
        for number, use in enumerate(self.codebooks):
            spaces.setdefault(-1 if use.codebook.projection is None else number, []).append(use)
        for space in spaces.values():
            own, share = _answer(space, y, x)
            said = torch.where((share < least).unsqueeze(-1), own, said)
            least = torch.minimum(least, share)
        return said


def answered(
    work: Sequence[CodebookWork],
    y: Float[Tensor, "rows tokens hidden"],
    x: Float[Tensor, "rows tokens hidden"],
) -> Float[Tensor, "rows tokens hidden"]:
    """What a block hands on instead of ``y``, having read ``x``; to the bit ``y`` elsewhere."""
    found = y.clone()
    for alike in work:
        found[alike.rows] = alike(y[alike.rows], x[alike.rows])
    return found


def _answer(
    space: Sequence[WeightedCodebook],
    y: Float[Tensor, "alike tokens hidden"],
    x: Float[Tensor, "alike tokens hidden"],
) -> tuple[Float[Tensor, "alike tokens hidden"], Float[Tensor, "alike tokens"]]:
    """What the codebooks of one space say, and how far the key is as a share of its radius.

    Where none answers that is infinite.
    """
    said = y
    nearest = torch.full(x.shape[:2], torch.inf, device=x.device)
    share = nearest.clone()
    for use in space:
        distance, entry, within = _nearest(use.codebook, x)
        radius = use.codebook.radius[entry]
        nearer = distance < nearest
        said = torch.where(nearer.unsqueeze(-1), use.answer(y, entry), said)
        own = distance / radius.clamp_min(torch.finfo(radius.dtype).tiny)
        share = torch.where(nearer, torch.where(within, own, torch.inf), share)
        nearest = torch.minimum(nearest, distance)
    return said, share


@torch.no_grad()
def _nearest(
    book: Codebook, x: Float[Tensor, "rows tokens hidden"]
) -> tuple[Float[Tensor, "rows tokens"], Int[Tensor, "rows tokens"], Bool[Tensor, "rows tokens"]]:
    """The distance to the nearest key, whose it is, and whether it is within that key's radius."""
    query = x.to(book.key.dtype).flatten(0, 1)
    if book.projection is not None:
        query = query @ book.projection.T
    # Products are many times faster than differences, and too rough to tell a distance of 0. So
    # they find the nearest few, around the keys' middle to be less rough, and differences decide.
    middle = book.key.mean(0)
    rough = torch.cdist(query - middle, book.key - middle, compute_mode="use_mm_for_euclid_dist")
    few = rough.topk(min(_FEW, len(book.key)), largest=False).indices
    few = few.sort(1).values  # so that the first of equally near ones comes first
    distances = torch.stack([(query - book.key[e]).norm(dim=1) for e in few.T], 1)
    place = distances.argmin(1, keepdim=True)
    entry, distance = few.gather(1, place).squeeze(1), distances.gather(1, place).squeeze(1)
    shape = x.shape[:2]
    return distance.view(shape), entry.view(shape), (distance <= book.radius[entry]).view(shape)
