"""Balanced k-means: groups of exactly equal size, of rows that lie close together.

For groups of equal size the sum of squared distances to the group's mean, of rows of length 1, is
the number of rows less what the mean similarities inside the groups come to: clustering rows, and
cutting the graph of their similarities into equal parts, are the same problem.

Source: Zhang et al. 2021, MoEfication (arXiv:2110.01786), who assign rows by a minimum-cost flow
(Malinen and Franti 2014). Here rows are assigned in the order of their regret, and then change
places in pairs (Kernighan and Lin 1970). A row is no member of its group when its distance to
the group is taken, as in Hartigan's method: in many dimensions the mean lies so near each of its
own rows that plain k-means stops where it began (Telgarsky and Vattani 2010).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from brickwork.errors import ConfigurationError, DataError

ITERATIONS = 200  # it converges after ten to a hundred
_SETTLED = 1e-3  # of the similarity inside groups; less is no gain
_ROUNDING = 1e-6  # of the largest cost, in float32
_SWEEPS = 2  # over all pairs of groups; the second finds next to nothing
Array = np.ndarray[Any, Any]


@torch.no_grad()
def balanced_clusters(
    rows: Float[Tensor, "neurons features"],
    groups: int,
    generator: torch.Generator,
    *,
    tries: int = 6,
    most: int = ITERATIONS,
) -> Int[Tensor, " neurons"]:
    """Put every row into one of so many groups of equal size, close rows together.

    Args:
        rows: of length 1 for a clustering by direction; rows of zeros are allowed.
        groups: how many; they must divide the number of rows.
        generator: on the CPU; draws the first centres.
        tries: rows that are tried for every first centre; the one that helps most is taken.
        most: iterations after which it stops even if it has not converged.

    Returns:
        The group of every row, on the CPU. Groups are numbered by their first row.

    Raises:
        ConfigurationError: if the groups cannot be equal, or nothing is to be tried.
        DataError: if a row holds a number that is not finite.

    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]])
    >>> balanced_clusters(rows, 2, torch.Generator().manual_seed(0)).tolist()
    [0, 1, 0, 1]
    """
    rows = rows.float()
    squares = torch.linalg.vector_norm(rows, dim=1).square()
    _require(squares, groups, tries, most)
    centres = _first_centres(rows, squares, groups, tries, generator)
    room = torch.full((groups,), len(rows) // groups)
    owners = assign(centres.square().sum(1) + rows @ (-2 * centres).T, room)
    found = _Clustering(rows, squares, owners, _sums(rows, owners, groups))
    for move in (_reassigned, _all_exchanged, _each_exchanged):
        better: _Clustering | None = found
        while better is not None and most > 0:
            found, most = better, most - 1
            better = found.moved(move)
    return _by_first_row(found.owners, groups)


@dataclass(frozen=True, eq=False)
class _Clustering:
    """Rows in groups of equal size, and the sum of the rows of each group."""

    rows: Float[Tensor, "neurons features"]
    squares: Float[Tensor, " neurons"]
    owners: Int[Tensor, " neurons"]
    sums: Float[Tensor, "groups features"]

    @cached_property
    def similarity(self) -> float:
        """How similar the rows of a group are to the others of it, summed over all rows."""
        every, own = self.sums.double().square().sum(), self.squares.double().sum()
        return (every - own).item()

    def moved(self, move: Callable[[Array, Array], Array]) -> "_Clustering | None":
        """The clustering after a move, None if it is no better."""
        costs = -(self.rows @ self.sums.T)
        here = self.owners.to(costs.device).unsqueeze(1)
        costs.scatter_add_(1, here, self.squares.unsqueeze(1))  # a row is not in its own group
        owners = torch.from_numpy(move(costs.cpu().numpy(), self.owners.numpy()))
        sums = self.sums + self._change(owners)
        other = _Clustering(self.rows, self.squares, owners, sums)
        least = max(_SETTLED * abs(self.similarity), _ROUNDING * self.squares.sum().item())
        return other if other.similarity > self.similarity + least else None

    def _change(self, owners: Int[Tensor, " neurons"]) -> Float[Tensor, "groups features"]:
        """What the sums gain and lose by other owners."""
        changed = (owners != self.owners).nonzero().squeeze(1)
        some: slice | Tensor = changed.to(self.rows.device)
        if len(changed) > len(owners) // 8:  # then multiplying all rows costs less than copying
            some = slice(None)
        numbers = torch.arange(len(self.sums)).unsqueeze(1)
        moves = (owners == numbers).float() - (self.owners == numbers).float()  # groups neurons
        return moves.to(self.rows.device)[:, some] @ self.rows[some]


def distortion(rows: Float[Tensor, "neurons features"], owners: Int[Tensor, " neurons"]) -> float:
    """The sum of the squared distances of all rows to the mean of their group."""
    groups = int(owners.max()) + 1
    sizes = torch.bincount(owners, minlength=groups).to(rows.device)
    means = _sums(rows.float(), owners, groups).double() / sizes[:, None]
    saved = sizes * means.square().sum(1)
    return (rows.double().square().sum() - saved.sum()).item()


def assign(
    costs: Float[Tensor, "neurons groups"], room: Int[Tensor, " groups"]
) -> Int[Tensor, " neurons"]:
    """Put every row into a group with room for it, at little cost in all.

    Rows choose in the order of their regret: what the second best group that is still open would
    cost more than the best. Then rows of two groups change places while that helps.

    Args:
        costs: of each row in each group.
        room: how many rows each group takes; exactly enough for all.

    Returns:
        The group of every row, on the CPU.
    """
    prices = costs.cpu().numpy()
    assert int(room.sum()) == len(prices), "the groups have room for all rows and no more"
    return torch.from_numpy(_all_exchanged(prices, _by_regret(prices, room.cpu().numpy())))


def _reassigned(costs: Array, owners: Array) -> Array:
    """All rows assigned anew."""
    return _all_exchanged(costs, _by_regret(costs, np.bincount(owners, minlength=costs.shape[1])))


def _require(squares: Float[Tensor, " neurons"], groups: int, tries: int, most: int) -> None:
    rows = len(squares)
    if groups < 1 or rows < 1 or rows % groups or min(tries, most) < 1:
        raise ConfigurationError(
            f"{rows} rows were to be split into {groups} equal groups ({tries} tries, at most "
            f"{most} iterations); take a number of groups that divides {rows}, and at least one "
            "try and one iteration."
        )
    bad = int((~squares.isfinite()).sum())
    if bad:
        raise DataError(
            f"{bad} of {rows} rows to be clustered hold numbers that are not finite; check the "
            "model's weights, or compute in float32."
        )


def _first_centres(
    rows: Float[Tensor, "neurons features"],
    squares: Float[Tensor, " neurons"],
    groups: int,
    tries: int,
    generator: torch.Generator,
) -> Float[Tensor, "groups features"]:
    """Greedy k-means++: each centre a row drawn by squared distance to the nearest centre so far.

    Source: Arthur and Vassilvitskii 2007, with several tries for every centre.
    """
    first = int(torch.randint(len(rows), (1,), generator=generator))
    chosen = [first]
    nearest = _squared_distances(rows, squares, [first])[:, 0]
    while len(chosen) < groups:
        weight = nearest.double().cpu()
        if not weight.sum() > 0:  # all rows lie on a centre
            weight = torch.ones_like(weight)
        tried = torch.multinomial(weight, tries, replacement=True, generator=generator).tolist()
        nearer = _squared_distances(rows, squares, tried).minimum(nearest[:, None])
        best = int(nearer.sum(0).argmin())
        nearest = nearer[:, best]
        chosen.append(tried[best])
    return rows[chosen]


def _squared_distances(
    rows: Float[Tensor, "neurons features"], squares: Float[Tensor, " neurons"], chosen: list[int]
) -> Float[Tensor, "neurons chosen"]:
    found = rows @ (-2 * rows[chosen]).T  # the factor on the few, not on a copy of all rows
    return found.add_(squares[:, None]).add_(squares[chosen]).clamp_(min=0)


def _sums(
    rows: Float[Tensor, "neurons features"], owners: Int[Tensor, " neurons"], groups: int
) -> Float[Tensor, "groups features"]:
    sums = rows.new_zeros(groups, rows.shape[1])
    return sums.index_add_(0, owners.to(rows.device), rows)


def _by_first_row(owners: Int[Tensor, " neurons"], groups: int) -> Int[Tensor, " neurons"]:
    first = torch.full((groups,), len(owners)).scatter_reduce_(
        0, owners, torch.arange(len(owners)), "amin"
    )
    number = torch.empty(groups, dtype=torch.int64)
    number[first.argsort()] = torch.arange(groups)
    return number[owners]


def _by_regret(costs: Array, room: Array) -> Array:
    """The greedy assignment; whoever preferred a group that has been filled chooses again."""
    owners = np.full(len(costs), -1)
    costs, room = costs.copy(), room.copy()
    costs[:, room == 0] = np.inf
    best, second, regret = _choices(costs)
    left = np.arange(len(costs))
    while len(left):
        order = left[np.argsort(-regret[left], kind="stable")]
        stop = _until_full(best[order], room)
        owners[order[:stop]] = best[order[:stop]]
        room -= np.bincount(best[order[:stop]], minlength=len(room))
        full = room == 0
        costs[:, full] = np.inf
        left = order[stop:]
        again = left[full[best[left]] | full[second[left]]]
        best[again], second[again], regret[again] = _choices(costs[again])
    return owners


def _choices(costs: Array) -> tuple[Array, Array, Array]:
    """The best and the second best group of every row, and how much the second costs more."""
    if costs.shape[1] == 1:
        only = np.zeros(len(costs), dtype=np.int64)
        return only, only, np.zeros(len(costs))
    two = np.argpartition(costs, 1, axis=1)[:, :2]
    price = np.take_along_axis(costs, two, 1)
    best = price.argmin(1)
    at = np.arange(len(costs))
    return two[at, best], two[at, 1 - best], price.max(1) - price.min(1)


def _until_full(wanted: Array, room: Array) -> int:
    """How many rows, in this order, can have what they want before a group is full."""
    by_group = np.argsort(wanted, kind="stable")
    counts = np.bincount(wanted, minlength=len(room))
    starts = np.cumsum(counts) - counts
    filled = (counts >= room) & (room > 0)
    return int(by_group[starts[filled] + room[filled] - 1].min()) + 1


def _all_exchanged(costs: Array, owners: Array) -> Array:
    """The assignment after rows of two groups have changed places wherever that costs less."""
    owners, least = owners.copy(), _least(costs)
    for _ in range(_SWEEPS):
        pairs = _promising(costs, owners, least)
        if not sum(_exchange(costs, owners, pair, least) for pair in pairs):
            break
    return owners


def _each_exchanged(costs: Array, owners: Array) -> Array:
    """The assignment after each group has changed one row with one other group, if that helps.

    What an exchange saves is then known exactly, for no group changes in two ways at once.
    """
    owners, used, least = owners.copy(), set[int](), _least(costs)
    for pair in _promising(costs, owners, least):
        if used.isdisjoint(pair):
            used.update(pair)
            _exchange(costs, owners, pair, least, most=1)
    return owners


def _least(costs: Array) -> float:
    """What is more than a rounding error."""
    return _ROUNDING * float(np.abs(costs).max(initial=0))


def _promising(costs: Array, owners: Array, least: float) -> list[tuple[int, int]]:
    """Pairs of groups whose best two rows would change places, the best pair first."""
    groups, saved = costs.shape[1], costs[np.arange(len(costs)), owners][:, None] - costs
    most = np.full((groups, groups), -np.inf, dtype=saved.dtype)
    order = np.argsort(owners, kind="stable")
    there, starts = np.unique(owners[order], return_index=True)
    most[there] = np.maximum.reduceat(saved[order], starts, axis=0)
    both = np.triu(most + most.T, 1)
    first, second = np.where(both > least)
    best = np.argsort(-both[first, second], kind="stable")
    return list(zip(first[best].tolist(), second[best].tolist(), strict=True))


def _exchange(
    costs: Array, owners: Array, pair: tuple[int, int], least: float, *, most: int | None = None
) -> int:
    """Let rows of two groups change places, in place, at most so many; the number of exchanges."""
    sides = []
    for here, there in (pair, pair[::-1]):
        own = np.flatnonzero(owners == here)
        saved = costs[own, here] - costs[own, there]
        order = np.argsort(-saved, kind="stable")
        sides.append((own[order], saved[order]))
    fewer = min(len(own) for own, _ in sides)
    gains = (sides[0][1][:fewer] + sides[1][1][:fewer])[:most]
    count = int((gains > least).sum())  # gains fall, so these are the first ones
    owners[sides[0][0][:count]], owners[sides[1][0][:count]] = pair[1], pair[0]
    return count
