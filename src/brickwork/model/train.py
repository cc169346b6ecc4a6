"""Sequences to train and measure on: prompts with responses, in batches of similar length."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sequence and where its response starts (its length if it has none)."""

    ids: list[int]
    response_start: int


@dataclass(frozen=True)
class Batch:
    """Right-padded ids, and the loss weight of predicting each of them (0 for padding)."""

    ids: Int[Tensor, "rows tokens"]
    weight: Float[Tensor, "rows tokens"]


def pack(sequences: Sequence[Encoded], pad: int, prompt_weight: float) -> Batch:
    """One batch: ids padded on the right, response tokens weighing 1, all others less.

    Padding stands behind everything else, so a causal model needs no mask for it.
    """
    width = max(len(s.ids) for s in sequences)
    ids = torch.full((len(sequences), width), pad)
    weight = torch.zeros(len(sequences), width)
    for row, sequence in enumerate(sequences):
        end, start = len(sequence.ids), sequence.response_start
        ids[row, :end] = torch.tensor(sequence.ids)
        weight[row, 1:start] = prompt_weight
        weight[row, max(start, 1) : end] = 1.0
    return Batch(ids, weight)


def batches_by_length(
    sequences: Sequence[Encoded], tokens_per_batch: int, shuffle: random.Random
) -> list[list[Encoded]]:
    """All sequences once, as groups of similar length and at most so many padded tokens."""
    ties = [shuffle.random() for _ in sequences]
    lengths = [len(s.ids) for s in sequences]
    groups = groups_by_length(lengths, tokens_per_batch, ties)
    shuffle.shuffle(groups)
    return [[sequences[i] for i in group] for group in groups]


def groups_by_length(
    lengths: Sequence[int], tokens_per_batch: int, ties: Sequence[float] | None = None
) -> list[list[int]]:
    """The numbers of all sequences once, the short ones first, in groups of similar length.

    Args:
        lengths: tokens of each sequence.
        tokens_per_batch: padded tokens that a group has at most; a longer sequence stands alone.
        ties: decides the order among equal lengths; by default their numbers do.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], ties[i] if ties else i))
    groups: list[list[int]] = []
    for i in order:
        if not groups or (len(groups[-1]) + 1) * lengths[i] > tokens_per_batch:
            groups.append([])
        groups[-1].append(i)
    return groups
