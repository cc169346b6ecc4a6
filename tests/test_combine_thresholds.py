"""Exact selection against a sort, under the values that selections go wrong at."""

import tracemalloc
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from brickwork.combine.thresholds import Stream, cuts

# Few levels make many equal values; the others differ in the last bits only, or are extreme.
LEVELS = [0.0, -0.0, 1.0, -1.0, 1.0000001, -1.0000001, 1e-45, 3e38, 0.25, -0.25]
values_of = st.lists(st.sampled_from(LEVELS), min_size=1, max_size=40)


def stream_of(tensors: Sequence[Tensor], rows: int) -> Stream:
    """Pieces of some rows of tensors of one column."""

    def stream() -> Iterator[tuple[int, Sequence[Tensor]]]:
        for start in range(0, len(tensors[0]), rows):
            yield start, [t[start : start + rows].unsqueeze(1) for t in tensors]

    return stream


def first_largest(tensor: Tensor, k: int) -> Tensor:
    """The k largest by size in a stable sort: of equal ones the first come."""
    order = tensor.abs().argsort(descending=True, stable=True)
    kept = torch.zeros_like(tensor)
    kept[order[: max(k, 0)]] = 1
    return kept


@given(
    st.lists(values_of, min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(1, 50),
    st.data(),
)
def test_equals_a_stable_sort(
    lists: list[list[float]], dtype: torch.dtype, rows: int, data: st.DataObject
) -> None:
    size = min(len(values) for values in lists)
    tensors = [torch.tensor(values[:size], dtype=dtype) for values in lists]
    ranks = [data.draw(st.lists(st.integers(-1, size + 1), max_size=3)) for _ in tensors]
    found = cuts(stream_of(tensors, rows), size, ranks)
    for tensor, wanted, own in zip(tensors, ranks, found, strict=True):
        assert len(own) == len(wanted)
        for k, cut in zip(wanted, own, strict=True):
            starts = range(0, size, rows)
            pieces = [tensor[s : s + rows].unsqueeze(1) for s in starts]
            mask = torch.cat([cut.mask(p.abs(), s) for s, p in zip(starts, pieces, strict=True)])
            kept = torch.cat([cut.keep(p, s) for s, p in zip(starts, pieces, strict=True)])
            expected = first_largest(tensor, k)
            assert torch.equal(mask.flatten(), expected)
            assert torch.equal(kept.flatten(), tensor * expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("k", [0, 1, 1500, 3000])
def test_of_values_that_are_all_equal_the_first_k_are_taken(
    k: int, value: float, dtype: torch.dtype
) -> None:
    tensor = torch.full((3000,), value, dtype=dtype)
    ((cut,),) = cuts(stream_of([tensor], 700), 3000, [[k]])
    mask = [cut.mask(tensor[s : s + 700].unsqueeze(1), s) for s in range(0, 3000, 700)]
    assert torch.equal(torch.cat(mask).flatten(), (torch.arange(3000) < k).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_is_the_kth_largest_size(dtype: torch.dtype) -> None:
    tensor = torch.randn(9973, generator=torch.Generator().manual_seed(0), dtype=dtype)
    ranks = [1, 2, 100, 4987, 9972]
    (found,) = cuts(stream_of([tensor], 1000), len(tensor), [ranks])
    ranked = tensor.abs().sort(descending=True).values
    assert [cut.threshold for cut in found] == [ranked[k - 1].item() for k in ranks]


def test_memory_does_not_grow_with_the_number_of_values() -> None:
    piece = torch.rand(1000, 1)
    peaks = []
    for pieces in (10, 200):
        tracemalloc.start()

        def stream(pieces: int = pieces) -> Iterator[tuple[int, Sequence[Tensor]]]:
            return ((1000 * n, [piece]) for n in range(pieces))

        cuts(stream, 1000 * pieces, [[300 * pieces]])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]  # what the histograms take varies a little
