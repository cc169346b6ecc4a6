"""Prefixes of the rows of one batch, put into a cache (Li and Liang 2021, arXiv:2101.00190)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from brickwork.brick.effects import Prefix
from brickwork.runtime.bank import Resident


def fill(
    cache: DynamicCache, rows: Sequence[Sequence[Resident]], *, ends: Sequence[int], columns: int
) -> None:
    """Give each layer of an empty cache the keys and values of every row's prefixes.

    Args:
        cache: with a layer for each attention, in order.
        rows: the bricks of each row; the prefixes of one row stand side by side.
        ends: before which column the prefixes of each row end.
        columns: how many columns they take before the input; 0 puts them in its own columns,
            when the first pass has computed the others.
    """
    sites = dict.fromkeys(site for row in rows for r in row for site in r.prefixes)
    for number, site in enumerate(sites):
        placed = [
            (row, end, [r.prefixes[site] for r in residents if r.prefixes])
            for row, (end, residents) in enumerate(zip(ends, rows, strict=True))
        ]
        if columns == 0:
            _replace_once(cache.layers[number], placed)
            continue
        like = next(prefixes[0].key for _, _, prefixes in placed if prefixes)
        shape = (len(rows), like.shape[0], columns, like.shape[2])
        cache.update(*_place(like.new_zeros(shape), like.new_zeros(shape), placed), number)


Placed = list[tuple[int, int, list[Prefix]]]


def _place(keys: Tensor, values: Tensor, placed: Placed) -> tuple[Tensor, Tensor]:
    """The same tensors, with the prefixes in the columns before each row's end."""
    for row, end, prefixes in placed:
        first = end - sum(p.key.shape[1] for p in prefixes)
        for prefix in prefixes:
            last = first + prefix.key.shape[1]
            keys[row, :, first:last], values[row, :, first:last] = prefix.key, prefix.value
            first = last
    return keys, values


def _replace_once(layer: Any, placed: Placed) -> None:
    """Let the layer take the prefixes in place of what the first pass computes there."""
    base = layer.update

    def update(keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        del layer.update
        return base(*_place(keys.clone(), values.clone(), placed), *args, **kwargs)

    layer.update = update
