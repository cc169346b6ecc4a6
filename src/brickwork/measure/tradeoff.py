"""What a merge keeps of its parents: losses of base, parents and child, side by side.

Plain data without torch, so that a report can be drawn from it alone.
"""

from typing import Literal

from brickwork.measure.results import Result

TRADEOFF_FILE = "tradeoff.json"
FORMAT = 1
LEAST_GAIN = 0.02  # nats; less is noise, and a share of it says nothing

Role = Literal["base", "parent", "child"]


class Member(Result):
    """One model, or one brick on its base.

    Attributes:
        name: as the recipe calls it.
        role: what it is in the merge.
        losses: nats per response token, for each functionality (or task).
    """

    name: str
    role: Role
    losses: dict[str, float]


class Tradeoff(Result):
    """The members of one merge, measured on the same instances.

    Attributes:
        method: of the merge.
        data: a name for the data.
        by: what instances are told apart by.
        instances: of each functionality (or task).
        members: base (if there is one), parents and children, in this order.
    """

    format: int = FORMAT
    brickwork: str
    method: str
    data: str
    by: Literal["functionality", "task"]
    instances: dict[str, int]
    seed: int
    members: tuple[Member, ...]

    def of(self, role: Role) -> list[Member]:
        """The members of a role."""
        return [member for member in self.members if member.role == role]


def best_parents(tradeoff: Tradeoff) -> dict[str, Member]:
    """For each functionality the parent with the lowest loss; empty if there is no parent."""
    parents = tradeoff.of("parent")
    return {
        name: min(parents, key=lambda parent: parent.losses[name])
        for name in tradeoff.instances
        if parents
    }


def kept_gains(tradeoff: Tradeoff, child: Member) -> dict[str, float]:
    """The share of the best parent's gain over the base that a child keeps, by functionality.

    1 is as good as the best parent, 0 as the base, below 0 worse than the base. Functionalities
    at which no parent gains as much as ``LEAST_GAIN`` nats are left out; so are all if there is no
    base.
    """
    bases, best = tradeoff.of("base"), best_parents(tradeoff)
    found = {}
    for name, parent in best.items() if bases else ():
        before = bases[0].losses[name]
        gain = before - parent.losses[name]
        if gain >= LEAST_GAIN:
            found[name] = (before - child.losses[name]) / gain
    return found


def rises(tradeoff: Tradeoff, child: Member) -> dict[str, float]:
    """How much a child's loss lies above the best parent's, in nats, by functionality."""
    best = best_parents(tradeoff)
    return {name: child.losses[name] - parent.losses[name] for name, parent in best.items()}
