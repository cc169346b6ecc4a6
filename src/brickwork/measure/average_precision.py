"""Average precision of many units for many labels, exact under ties, with one sort for each unit.

Two ways give the same numbers. In main memory, 32 bits order a unit's samples and a few more say
what each is labelled with, so that whole numbers are sorted instead of pairs; on an accelerator,
and in float64, torch sorts. Source: Xiao et al. 2024 (arXiv:2409.02877), section 4.4, where the
score is scikit-learn's ``average_precision_score``.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from brickwork.errors import DataError

_MEMORY = 2**28  # bytes that one sort by torch may take
_BYTES = 64  # for each element of it, with what is made from it
_PIECE = 2**22  # elements transposed at a time by each thread; glibc keeps what so many took
_ELEMENTS = 2**17  # of them, sorted at a time; more leaves the cache
_BLOCK = 256  # numpy sorts as many by a network, several times faster for each than a longer row
_ROWS = 16  # samples of a tile that is transposed in the cache
_CLASSES = 255  # that one byte tells apart, one more for the samples of none

Keys = NDArray[np.unsignedinteger[Any]]


def average_precision(
    activity: Float[Tensor, "samples units"], labels: Bool[Tensor, "samples functions"]
) -> Float[Tensor, "units functions"]:
    """How well each unit's activity ranks the samples of each label before the others.

    Samples with equal activity share one rank. Columns that exclude each other, one after the
    other, cost together what one costs alone. As many threads work as torch may use.

    Args:
        activity: of any float type; the sort is exact for all of them.
        labels: at least one sample of both kinds in each column.

    Returns:
        Scores in (0, 1], in float64 on the device of the activity; compare with ``null_mean``.

    Raises:
        DataError: if a label does not tell samples apart, or an activity is no finite number.

    Source:
        Equal to scikit-learn's ``average_precision_score``, without interpolation.

    >>> activity = torch.tensor([[9.0, 0.0], [8.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    >>> average_precision(activity, torch.tensor([[True], [True], [False], [False]])).tolist()
    [[1.0], [0.5]]
    """
    activity = activity.detach()
    _require_both_kinds(activity, labels)
    on_cpu = activity.device.type == "cpu"
    if on_cpu and activity.dtype in {torch.float16, torch.bfloat16, torch.float32}:
        return _by_keys(activity, labels)
    return _by_torch(activity, labels.to(activity.device))


def null_mean(samples: int, positives: int) -> float:
    """The mean score of a unit that ranks the samples at random, without ties.

    Args:
        samples: at least 1.
        positives: of them, at least 1.
    """
    others = (positives - 1) / max(samples - 1, 1)
    first = math.fsum(1 / rank for rank in range(1, samples + 1)) / samples
    return others + first * (1 - others)


def bootstrap_precision(
    activity: Float[Tensor, "samples units"],
    labels: Bool[Tensor, "samples units"],
    counts: Float[Tensor, "resamples samples"],
) -> Float[Tensor, "resamples units"]:
    """The average precision of each unit for a label of its own, in bootstrap resamples.

    Args:
        activity: of few units, for each is sorted for itself.
        labels: one column for each unit, with samples of both kinds.
        counts: how often each sample is drawn; see ``intervals.resample_counts``.

    Returns:
        Scores in float64. A resample that draws no positive scores 0, as in scikit-learn.

    Raises:
        DataError: if a label does not tell samples apart, or an activity is no finite number.

    Source:
        Equal to scikit-learn's ``average_precision_score`` with the counts as ``sample_weight``.
    """
    activity, labels = activity.detach(), labels.to(activity.device)
    _require_both_kinds(activity, labels)
    if labels.shape != activity.shape or counts.shape[1] != len(activity):
        raise DataError(
            f"a label of its own was expected for each of {activity.shape[1]} units, and counts "
            f"for {len(activity)} samples, but there are {labels.shape[1]} labels and counts for "
            f"{counts.shape[1]} samples; give one column for each unit."
        )
    if not activity.isfinite().all():
        raise _not_finite(activity)
    counts = counts.to(activity.device, torch.float64)
    at_once = max(1, _MEMORY // (_BYTES * len(activity)))
    scores = [
        torch.cat([_weighted(values, label, part) for part in counts.split(at_once)])
        for values, label in zip(activity.T, labels.T, strict=True)
    ]
    return torch.stack(scores, dim=1)


def _weighted(
    values: Float[Tensor, " samples"],
    label: Bool[Tensor, " samples"],
    weights: Float[Tensor, "resamples samples"],
) -> Float[Tensor, " resamples"]:
    ranked, order = values.sort(descending=True)
    last = torch.ones_like(ranked, dtype=torch.bool)
    last[:-1] = ranked[:-1] != ranked[1:]
    weights = weights[:, order]
    everything = weights.cumsum(1)[:, last]  # resamples levels
    hits = (weights * label[order]).cumsum(1)[:, last]
    gains = hits.diff(dim=1, prepend=torch.zeros_like(hits[:, :1]))
    precision = hits / everything.clamp(min=1)
    return (gains * precision).sum(1) / hits[:, -1].clamp(min=1)


def _require_both_kinds(activity: Tensor, labels: Tensor) -> None:
    samples = len(activity)
    if activity.ndim != 2 or labels.ndim != 2 or len(labels) != samples or not activity.numel():
        raise DataError(
            "average precision needs a column for each unit and one for each label, of the same "
            f"samples, but the activity has the shape {tuple(activity.shape)} and the labels have "
            f"{tuple(labels.shape)}; give a row of both for each sample."
        )
    positives = labels.sum(0)
    one_kind = ((positives == 0) | (positives == samples)).nonzero().flatten().tolist()
    if one_kind:
        raise DataError(
            f"average precision needs samples of both kinds, but label {one_kind[0]} is true of "
            f"{int(positives[one_kind[0]])} of {samples} samples ({len(one_kind)} labels are of "
            "one kind); add contrast samples, or leave the label out."
        )


def _not_finite(activity: Tensor) -> DataError:
    bad = (~activity.isfinite()).sum(0)
    return DataError(
        f"average precision ranks finite activities, but {int(bad.sum())} of {activity.numel()} "
        f"are NaN or infinite, the first in unit {int(bad.nonzero()[0])}; look for an overflow of "
        f"{activity.dtype} in that unit, or leave it out."
    )


def _by_torch(
    activity: Float[Tensor, "samples units"], labels: Bool[Tensor, "samples functions"]
) -> Float[Tensor, "units functions"]:
    at_once = max(1, _MEMORY // (_BYTES * len(activity)))
    parts = []
    for part in activity.split(at_once, dim=1):
        values, order = part.T.sort(dim=1)  # units samples
        if not (values[:, 0].isfinite() & values[:, -1].isfinite()).all():
            raise _not_finite(activity)
        parts.append(torch.stack(_sorted_scores(values, order, labels), dim=1))
    return torch.cat(parts)


def _sorted_scores(values: Tensor, order: Tensor, labels: Tensor) -> list[Tensor]:
    """The scores of units whose samples are in ascending order, for one label after the other."""
    samples = values.shape[1]
    place = torch.arange(samples, device=values.device)
    first = torch.ones_like(values, dtype=torch.bool)
    first[:, 1:] = values[:, 1:] != values[:, :-1]
    start = torch.where(first, place, 0).cummax(1).values  # of each sample's run of equals
    scores = []
    for label in labels.T:
        hit = label[order]
        below = (hit.cumsum(1) - hit.long()).gather(1, start)
        precision = (label.sum() - below).double() / (samples - start)
        scores.append((precision * hit).sum(1) / label.sum())
    return scores


@dataclass(frozen=True, eq=False)
class _Family:
    """Labels of which at most one is true of each sample, so that one number says which.

    Attributes:
        classes: the label of each sample; the number after the last for those of none.
        positives: samples of each label.
        spans: where each label's samples lie after a sort by class.
        hits: for samples in ascending order, how many of the label are not below.
    """

    classes: NDArray[np.uint8]
    positives: NDArray[np.intp]
    spans: list[slice]
    hits: NDArray[np.float64]


def _families(labels: NDArray[np.bool_]) -> list[_Family]:
    """The labels in their order, cut where one overlaps with those before it."""
    starts, taken = [0], np.zeros(len(labels), dtype=np.bool_)
    for column, label in enumerate(labels.T):
        if (taken & label).any() or column - starts[-1] == _CLASSES:
            starts.append(column)
            taken[:] = False
        taken |= label
    return [_family(own) for own in np.split(labels, starts[1:], axis=1)]


def _family(labels: NDArray[np.bool_]) -> _Family:
    classes = np.where(labels.any(axis=1), labels.argmax(axis=1), labels.shape[1])
    positives = labels.sum(axis=0)
    ends = positives.cumsum().tolist()
    return _Family(
        classes=classes.astype(np.uint8),
        positives=positives,
        spans=[slice(start, end) for start, end in pairwise([0, *ends])],
        hits=np.concatenate([np.arange(count, 0.0, -1.0) for count in positives]),
    )


def _by_keys(
    activity: Float[Tensor, "samples units"], labels: Bool[Tensor, "samples functions"]
) -> Float[Tensor, "units functions"]:
    samples, units = activity.shape
    families = _families(labels.cpu().numpy())
    at_once = max(1, _ELEMENTS // samples)
    width = max(1, min(_PIECE // samples, math.ceil(units / torch.get_num_threads())))

    def score(start: int) -> NDArray[np.float64]:
        values = _transposed(activity[:, start : start + width])
        if not np.isfinite(values).all():
            raise _not_finite(activity)
        rows = range(0, len(values), at_once)
        return np.concatenate([_scores(values[row : row + at_once], families) for row in rows])

    parts = _threaded(score, range(0, units, width))
    return torch.from_numpy(np.concatenate(parts))


def _threaded(
    work: Callable[[int], NDArray[np.float64]], starts: Sequence[int]
) -> list[NDArray[np.float64]]:
    threads = min(torch.get_num_threads(), len(starts))
    if threads == 1:
        return [work(start) for start in starts]
    with ThreadPoolExecutor(threads) as pool:  # numpy sorts without holding the lock
        return list(pool.map(work, starts))


def _transposed(activity: Float[Tensor, "samples units"]) -> NDArray[np.float32]:
    """A copy in float32 with the samples of each unit side by side."""
    source = activity.float().numpy()
    values = np.empty(source.shape[::-1], dtype=np.float32)
    for row in range(0, len(source), _ROWS):
        values[:, row : row + _ROWS] = source[row : row + _ROWS].T
    return values


def _scores(values: NDArray[np.float32], families: list[_Family]) -> NDArray[np.float64]:
    """The scores of some units; the samples of each are a row."""
    alone = len(families) == 1
    note = families[0].classes if alone else np.arange(values.shape[1])
    keys, shift = _sorted_keys(values, note)
    ranks = keys >> shift
    shares = _reciprocal_ranks(ranks[:, 1:] == ranks[:, :-1])
    notes = keys & ((1 << shift) - 1)
    if alone:
        return _family_scores(notes.astype(np.uint8), shares, families[0])
    order = notes.astype(np.intp)
    parts = [_family_scores(family.classes.take(order), shares, family) for family in families]
    return np.concatenate(parts, axis=1)


def _sorted_keys(values: NDArray[np.float32], note: NDArray[Any]) -> tuple[Keys, int]:
    """Each row's values in ascending order as whole numbers, the samples' notes in the low bits.

    Returns:
        The keys, and by how many bits the value lies above the note.
    """
    spread, free = _spread_bits(values)
    shift = int(note.max()).bit_length()
    if free >= shift:
        keys: Keys = spread | note.astype(np.uint32)
    else:
        shift = 32
        keys = (spread.astype(np.uint64) << np.uint64(32)) | note.astype(np.uint64)
    # Rows in the order of 16 bits, by radix sort, are in the order of all bits but for short runs.
    order = np.argsort((spread >> 16).astype(np.uint16), axis=1, kind="stable")
    order += np.arange(0, keys.size, keys.shape[1])[:, None]
    keys = keys.ravel().take(order)
    _sort_blocks(keys)
    _sort_blocks(keys[:, _BLOCK // 2 :])
    ranks = keys >> shift
    wrong = (ranks[:, 1:] < ranks[:, :-1]).any(axis=1)
    if wrong.any():
        keys[wrong] = np.sort(keys[wrong], axis=1)
    return keys, shift


def _spread_bits(values: NDArray[np.float32]) -> tuple[NDArray[np.uint32], int]:
    """Whole numbers in the order of each row's values, over the whole range of 32 bits.

    Returns:
        The numbers, and how many low bits are 0 in all of them. Values of 0 or more that are not
        0 lie within some octaves of each other, so that their bits leave room.
    """
    bits = (values + 0.0).view(np.uint32)  # there is one zero, not two
    if bits.max() >> 31:
        bits = np.where(bits >> 31, ~bits, bits | 0x80000000)
    base = (bits - 1).min(axis=1, keepdims=True)  # zero wraps around, and so is no minimum
    spread = np.maximum(bits, base)
    spread -= base
    used = np.frexp(spread.max(axis=1, keepdims=True).astype(np.float64))[1]
    free = np.minimum(32 - used, 31)
    spread <<= free.astype(np.uint32)
    return spread, int(free.min())


def _sort_blocks(keys: Keys) -> None:
    """Sort each row in blocks, in place."""
    whole = keys.shape[1] // _BLOCK * _BLOCK
    keys[:, :whole].reshape(len(keys), whole // _BLOCK, _BLOCK).sort(axis=2)  # a view
    keys[:, whole:].sort(axis=1)


def _reciprocal_ranks(tied: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One over the number of samples that are at least as active, for each place of each row.

    Args:
        tied: whether a place and the next hold equal values.
    """
    units, samples = len(tied), tied.shape[1] + 1
    shares = np.empty((units, samples))
    shares[:] = 1.0 / np.arange(samples, 0, -1)
    same = np.zeros(shares.shape, dtype=np.bool_)
    same[:, 1:] = tied
    _level(shares, same)
    return shares


def _level(numbers: NDArray[np.float64], same: NDArray[np.bool_]) -> None:
    """Give each place that belongs to the place before it the number that its run starts with."""
    places = np.flatnonzero(same)
    leads = np.ones(len(places), dtype=np.bool_)
    np.not_equal(places[1:], places[:-1] + 1, out=leads[1:])
    heads = np.flatnonzero(leads)
    lengths = np.append(heads[1:], len(places)) - heads
    flat = numbers.reshape(-1)
    flat[places] = np.repeat(flat[places[heads] - 1], lengths)


def _family_scores(
    classes: NDArray[np.uint8], shares: NDArray[np.float64], family: _Family
) -> NDArray[np.float64]:
    """The scores for a family of labels.

    Args:
        classes: of the samples at each place, in ascending order of activity.
        shares: one over the rank of each place.
        family: the labels.
    """
    order = np.argsort(classes, axis=1, kind="stable")
    order += np.arange(0, classes.size, classes.shape[1])[:, None]
    shares = shares.ravel().take(order[:, : len(family.hits)])  # first label's, second's, ...
    hits = np.empty(shares.shape)
    hits[:] = family.hits
    same = np.zeros(shares.shape, dtype=np.bool_)
    np.equal(shares[:, 1:], shares[:, :-1], out=same[:, 1:])
    same[:, [span.start for span in family.spans]] = False
    _level(hits, same)
    sums = [np.einsum("ij,ij->i", shares[:, span], hits[:, span]) for span in family.spans]
    return np.stack(sums, axis=1) / family.positives
