"""From loaded bricks to the terms of one batch, gathered once when the batch is formed."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from brickwork.brick.effects import Codebook, Patch, Scale, Shift
from brickwork.model.attach import RowWork, SharedShrink
from brickwork.model.memory_work import CodebookWork, PatchWork, WeightedCodebook, joined
from brickwork.runtime.bank import Bank, Resident


@dataclass(frozen=True)
class Weighted:
    """A loaded brick and how strongly it acts."""

    resident: Resident
    weight: float


Rows = Sequence[Sequence[Weighted]]


@contextmanager
def gather(bank: Bank, rows: Rows) -> Iterator[dict[str, RowWork]]:
    """What each module adds for each row; a brick of weight 0 adds nothing anywhere.

    It is good inside the block only: the next batch reuses its memory.

    Raises:
        ConfigurationError: if the bank is inside the block of another batch.
    """
    acting = [[use for use in row if use.weight != 0] for row in rows]
    work: dict[str, RowWork] = defaultdict(RowWork)
    with bank.lent():
        with torch.no_grad():
            _gather_low_rank(bank, acting, work)
            _gather_scales(acting, work)
            _gather_shifts(acting, work)
            _gather_skips(acting, work)
            _gather_patches(bank, acting, work)
            _gather_codebooks(acting, work)
        yield dict(work)


def _gather_low_rank(bank: Bank, rows: Rows, work: dict[str, RowWork]) -> None:
    used = dict.fromkeys(site for row in rows for use in row for site in use.resident.B_pages)
    groups: dict[str, list[str]] = defaultdict(list)
    for site in used:
        groups[bank.input_of(site)].append(site)
    known: dict[PageNumbers, Tensor] = {}
    for group, members in groups.items():
        indices = []
        for site in members:
            B = bank.B[site]
            B_numbers = [[u.resident.B_pages.get(site, ()) for u in r] for r in rows]
            A_numbers = [[u.resident.A_pages.get(site, ()) for u in r] for r in rows]
            gathered = B.gather(_index(B_numbers, known, B.vectors.device))
            work[site].B = _weighted(gathered, rows, site)
            indices.append(_index(A_numbers, known, B.vectors.device))
        A = bank.A[group].gather(torch.cat(indices, dim=1))  # rows all_ranks in
        shrink, first = SharedShrink(A.transpose(1, 2), len(members)), 0
        for site, index in zip(members, indices, strict=True):
            work[site].shrink = shrink
            work[site].columns = (first, first + index.shape[1])
            first += index.shape[1]


PageNumbers = tuple[tuple[int, ...], ...]


def _index(
    numbers: Sequence[Sequence[Sequence[int]]],
    known: dict[PageNumbers, Tensor],
    device: torch.device,
) -> Tensor:
    """Page numbers (rows, largest total rank of this batch); absent ranks read page 0."""
    key = tuple(tuple(page for brick in row for page in brick) for row in numbers)
    if key not in known:
        rank = max(map(len, key))
        padded = [[*row, *[0] * (rank - len(row))] for row in key]
        known[key] = torch.tensor(padded, device=device)
    return known[key]


def _weighted(B: Tensor, rows: Rows, site: str) -> Tensor:
    """``B`` (rows, rank, out) times the weight of the brick that each rank belongs to."""
    if all(use.weight == 1 for row in rows for use in row):
        return B
    weights = torch.ones(B.shape[:2], dtype=B.dtype)
    for number, row in enumerate(rows):
        each = [use.weight for use in row for _ in use.resident.B_pages.get(site, ())]
        weights[number, : len(each)] = torch.tensor(each, dtype=B.dtype)
    return B.mul_(weights.to(B.device).unsqueeze(-1))


def _gather_scales(rows: Rows, work: dict[str, RowWork]) -> None:
    found: dict[tuple[str, str], list[tuple[int, Scale, float]]] = defaultdict(list)
    for number, row in enumerate(rows):
        for use in row:
            for scale in use.resident.scales:
                found[scale.site, scale.on].append((number, scale, use.weight))
    for (site, on), uses in found.items():
        factors = uses[0][1].factor.new_ones(len(rows), 1, len(uses[0][1].factor))
        for number, scale, weight in uses:
            factors[number, 0] *= scale.factor if weight == 1 else 1 + weight * (scale.factor - 1)
        if on == "in":
            work[site].scale_in = factors
        else:
            work[site].scale_out = factors


def _gather_shifts(rows: Rows, work: dict[str, RowWork]) -> None:
    found: dict[str, list[tuple[int, Shift, float]]] = defaultdict(list)
    for number, row in enumerate(rows):
        for use in row:
            for shift in use.resident.shifts:
                found[shift.site].append((number, shift, use.weight))
    for site, uses in found.items():
        total = uses[0][1].vector.new_zeros(len(rows), 1, len(uses[0][1].vector))
        for number, shift, weight in uses:
            total[number, 0] += weight * shift.vector
        work[site].shift = total


def _gather_skips(rows: Rows, work: dict[str, RowWork]) -> None:
    uses = [
        (n, use.weight, skip)
        for n, r in enumerate(rows)
        for use in r
        for skip in use.resident.skips
    ]
    for number, weight, skip in uses:
        terms = work[skip.site]
        if terms.skip is None:
            terms.skip = skip.share.new_zeros(len(rows), 1, 1)
        share = weight * skip.share  # of what the row's other bricks leave of the block
        terms.skip[number] += share - terms.skip[number] * share


def _gather_patches(bank: Bank, rows: Rows, work: dict[str, RowWork]) -> None:
    found: dict[str, dict[int, list[tuple[Patch, float]]]] = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(rows):
        for use in row:
            for patch in use.resident.patches:
                found[patch.site][number].append((patch, use.weight))
    for site, by_row in found.items():
        neurons = max(sum(len(p.bias) for p, _ in uses) for uses in by_row.values())
        like = next(iter(by_row.values()))[0][0].key
        key = like.new_zeros(len(rows), neurons, like.shape[1])
        bias, value = like.new_zeros(len(rows), 1, neurons), torch.zeros_like(key)
        for number, uses in by_row.items():
            own = sum(len(patch.bias) for patch, _ in uses)
            key[number, :own] = torch.cat([patch.key for patch, _ in uses])
            bias[number, 0, :own] = torch.cat([patch.bias for patch, _ in uses])
            value[number, :own] = torch.cat([weight * patch.value for patch, weight in uses])
        work[site].patch = PatchWork(key, bias, value.to(bank.dtype))


def _gather_codebooks(rows: Rows, work: dict[str, RowWork]) -> None:
    found: dict[str, dict[int, list[tuple[Weighted, Codebook]]]]
    found = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(rows):
        for use in row:
            for book in use.resident.codebooks:
                found[book.site][number].append((use, book))
    for site, by_row in found.items():
        alike: dict[tuple[tuple[str, float], ...], list[int]] = defaultdict(list)
        for number, uses in by_row.items():
            alike[tuple((use.resident.hash, use.weight) for use, _ in uses)].append(number)
        work[site].codebooks = tuple(_codebook_work(n, by_row[n[0]]) for n in alike.values())


def _codebook_work(rows: list[int], uses: Sequence[tuple[Weighted, Codebook]]) -> CodebookWork:
    """The work of rows that have the same codebooks."""
    device = uses[0][1].key.device
    books = [WeightedCodebook(book, use.weight) for use, book in uses]
    return CodebookWork(torch.tensor(rows, device=device), joined(books))
