"""Where edits get in each other's way, from their tensors alone.

A linear edit writes ``Delta k`` at a key ``k``. At the key of another edit's fact that is damage,
and what the other edit itself writes there is the measure of it: at 1 as much is added as was
taught. No model is needed, unlike for a share of the whole value ``v``, of which most is there
without any edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from brickwork.brick.lora import LoraOptions
from brickwork.update.edit import Edit


@dataclass(frozen=True, eq=False)
class Damage:
    """What one edit does at the keys of others.

    Attributes:
        size: for each fact of the others, what is written at its key as a share of what its own
            edit writes there.
        source: which fact of the edit writes most of it; None where no fact has rows of its own.
    """

    size: Float[Tensor, " facts"]
    source: Int64[Tensor, " facts"] | None


def damages(writers: Sequence[Edit], readers: Sequence[Edit]) -> list[Damage]:
    """What each writer does at the keys of all facts of the readers, in their order.

    What is written is taken over all sites together; there is one matrix product for each.
    Edits that are not linear neither write nor read.
    """
    total = sum(len(edit.record.facts) for edit in readers)
    sums = [_Sums(edit, torch.zeros(total)) for edit in writers]
    own = torch.zeros(total)
    for site in dict.fromkeys(site for edit in readers for site in edit.keys):
        facts, keys = _keys_at(site, readers)
        present = [one for one in sums if _linear(one.edit, site)]
        if present:
            reads = torch.cat([_at(one.edit, site)[0] for one in present]) @ keys.T  # ranks facts
            ranks = [len(_at(one.edit, site)[0]) for one in present]
            for one, read in zip(present, reads.split(ranks), strict=True):
                one.add(site, facts, read)
        own[facts] += _own(site, readers)
    length = own.sqrt()
    return [
        Damage(
            torch.where(length > 0, one.squares.sqrt() / length, 0.0),
            None if one.by_fact is None else one.by_fact.argmax(dim=0),
        )
        for one in sums
    ]


def overlaps(new: Edit, old: Edit) -> dict[tuple[int, int], float]:
    """Facts of two codebooks that claim the same states for different values.

    Two entries do so if their keys are closer than the sum of their radii.

    Returns:
        By the numbers of the two facts, by which part of the sum of their radii they overlap, the
        worst of their entries; empty if the edits are no codebooks, or no fact has entries of its
        own, or they are seen through different projections.
    """
    found: dict[tuple[int, int], float] = {}
    owners = new.record.owners, old.record.owners
    if owners[0] is None or owners[1] is None or new.brick.spec.form != old.brick.spec.form:
        return found
    for site, mine in new.brick.by_site.items():
        theirs = old.brick.by_site.get(site, {})
        if "radius" not in theirs or not _same_projection(mine, theirs):
            continue
        distance = torch.cdist(
            _plain(mine["key"]), _plain(theirs["key"]),
            compute_mode="donot_use_mm_for_euclid_dist",
        )  # fmt: skip
        reach = _plain(mine["radius"])[:, None] + _plain(theirs["radius"])
        rows, columns = (distance < reach).nonzero().unbind(1)
        differs = (_plain(mine["value"])[rows] != _plain(theirs["value"])[columns]).any(dim=-1)
        for row, column in zip(rows[differs].tolist(), columns[differs].tolist(), strict=True):
            pair = owners[0][row], owners[1][column]
            size = 1 - float(distance[row, column] / reach[row, column])
            found[pair] = max(size, found.get(pair, 0.0))
    return found


@dataclass
class _Sums:
    """Squares of what an edit writes at keys, over the sites so far."""

    edit: Edit
    squares: Float[Tensor, " facts"]
    by_fact: Float[Tensor, "own facts"] | None = None

    def __post_init__(self) -> None:
        if self.edit.record.owners is not None:
            self.by_fact = torch.zeros(len(self.edit.record.facts), len(self.squares))

    def add(self, site: str, facts: Tensor, read: Float[Tensor, "rank facts"]) -> None:
        """Add what is written at a site, where the edit reads this at the facts' keys."""
        _, B = _at(self.edit, site)
        self.squares[facts] += (B @ read).square().sum(dim=0)
        if self.by_fact is not None:
            owners = torch.tensor(self.edit.record.owners)
            rows = read.square() * B.square().sum(dim=0)[:, None]
            added = torch.zeros(len(self.by_fact), len(facts)).index_add_(0, owners, rows)
            self.by_fact[:, facts] += added


def _keys_at(site: str, edits: Sequence[Edit]) -> tuple[Tensor, Float[Tensor, "facts in"]]:
    """The numbers, among all, of the facts that have a key at a site, and the keys."""
    numbers: list[int] = []
    keys, first = [], 0
    for edit in edits:
        last = first + len(edit.record.facts)
        if site in edit.keys and _linear(edit, site):
            numbers += range(first, last)
            keys.append(_plain(edit.keys[site]))
        first = last
    return torch.tensor(numbers, dtype=torch.int64), torch.cat(keys) if keys else torch.zeros(0, 0)


def _own(site: str, edits: Sequence[Edit]) -> Float[Tensor, " facts"]:
    """Squares of what each edit writes at its own keys, as ``_keys_at`` numbers them."""
    parts = [torch.zeros(0)]
    for edit in edits:
        if site in edit.keys and _linear(edit, site):
            A, B = _at(edit, site)
            parts.append((B @ (A @ _plain(edit.keys[site]).T)).square().sum(dim=0))
    return torch.cat(parts)


def _linear(edit: Edit, site: str) -> bool:
    return edit.brick.spec.form == "lora" and site in edit.brick.by_site


def _at(edit: Edit, site: str) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]:
    """``A``, and ``B`` with the scaling."""
    slots = edit.brick.by_site[site]
    options = LoraOptions.model_validate(edit.brick.spec.options)
    return _plain(slots["A"]), options.scaling(site, len(slots["A"])) * _plain(slots["B"])


def _same_projection(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    if "projection" not in one:
        return "radius" in one
    mine, theirs = _plain(one["projection"]), _plain(other["projection"])
    return mine.shape == theirs.shape and torch.equal(mine, theirs)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().float()
