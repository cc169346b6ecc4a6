"""What speaks against an edit, found from facts and tensors alone before it acts.

Three kinds are looked for: facts that were taught before, with the same or with another answer;
linear edits that write where another one reads; and codebooks whose entries claim the same states.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from brickwork.update.edit import Edit, TaughtFact
from brickwork.update.facts import Fact
from brickwork.update.key_damage import damages, overlaps

# Of ROME edits about different subjects of the tests' small world, 99 in 100 pairs of different
# relations stay below 0.3, and of one relation below 0.6. Damage up to 0.5 costs an edit's answer
# 0.03 of its probability at most, on average, and no wording; above that 0.16, and some wordings
# (benchmarks/edit_interference.py).
BOUND = 0.5

Kind = Literal["contradiction", "repetition", "interference", "overlap"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Party:
    """A fact of a conflict.

    Attributes:
        fact: its id; empty for an edit whose facts have no rows of their own.
        edit: what the edit is called that teaches it; empty for facts that no edit teaches yet.
    """

    fact: str
    edit: str = ""

    def __str__(self) -> str:
        named = f"the fact {self.fact!r}"
        return f"{named} of {self.edit}" if self.fact and self.edit else self.edit or named


@dataclass(frozen=True)
class Conflict:
    """Two facts that do not go together.

    Attributes:
        kind: what it is.
        new: the fact that is to be taught.
        old: the one that it meets, of an older edit or earlier in the same batch.
        size: of an interference, what the one edit writes at the key of the other's fact, as a
            share of what the other writes there; of an overlap, by which part of their sum the
            radii overlap; 1 for facts that contradict or repeat each other.
        advice: what was found, and what to do about it.
    """

    kind: Kind
    new: Party
    old: Party
    size: float
    advice: str


_Named = tuple[Fact | TaughtFact, Party]


def find_conflicts(
    new: Edit | Sequence[Fact], old: Sequence[Edit], *, bound: float = BOUND
) -> list[Conflict]:
    """Every conflict of new facts with each other and with older edits.

    Facts that no edit teaches yet can only contradict and repeat; what they write is known once
    their edit is planned.

    Args:
        new: the edit, or the facts, to be taught.
        old: the edits that act, or may act, in their order.
        bound: interference up to this is not reported.

    Returns:
        Contradictions, repetitions, interferences and overlaps, in this order, the worst first.
    """
    found = {(one.new, one.old): one for one in _contested(new, old)}
    if isinstance(new, Edit):
        for conflict in (*_interferences(new, old, bound), *_overlaps(new, old)):
            known = found.setdefault((conflict.new, conflict.old), conflict)
            if known.kind == conflict.kind and known.size < conflict.size:
                found[conflict.new, conflict.old] = conflict
    return sorted(found.values(), key=lambda one: (KINDS.index(one.kind), -one.size))


def _contested(new: Edit | Sequence[Fact], old: Sequence[Edit]) -> Iterator[Conflict]:
    """Facts of one subject and relation: as ``find_conflicts`` wants them, the later one first."""
    known: dict[tuple[str, str, str], list[_Named]] = {}
    for edit in old:
        for older in edit.record.facts:
            for question in _questions(older):
                known.setdefault(question, []).append((older, Party(older.id, edit.label)))
    label, asked = (new.label, new.record.facts) if isinstance(new, Edit) else ("", new)
    for fact in asked:
        named, questions = (fact, Party(fact.id, label)), _questions(fact)
        met = [one for question in questions for one in known.get(question, ())]
        for other in dict.fromkeys(met):
            yield _contest(named, other)
        for question in questions:
            known.setdefault(question, []).append(named)


def _questions(fact: Fact | TaughtFact) -> list[tuple[str, str, str]]:
    """What it answers: the subject, with the relation's name and with the prompt around it."""
    before, _, after = fact.prompt.rpartition(fact.subject or fact.prompt)
    subject = _normal(fact.subject)
    found = [(subject, "prompt", f"{_normal(before)}\0{_normal(after)}")]
    if fact.relation:
        found.append((subject, "relation", _normal(fact.relation)))
    return found


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _contest(one: _Named, other: _Named) -> Conflict:
    (fact, new), (older, old) = one, other
    if _normal(fact.target) == _normal(older.target):
        return Conflict(
            "repetition", new, old, 1.0,
            f"{new} teaches {fact.target!r}, as {old} does already; leave {new} out.",
        )  # fmt: skip
    return Conflict(
        "contradiction", new, old, 1.0,
        f"{new} teaches {fact.target!r} where {old} teaches {older.target!r}; revoke {old}, or "
        f"leave {new} out.",
    )  # fmt: skip


def _interferences(new: Edit, old: Sequence[Edit], bound: float) -> Iterator[Conflict]:
    """Damage that the new edit does to the old ones, and that they do to it.

    What acted already when the new edit was planned does it no damage: it was planned with it.
    """
    victims = [(edit, number) for edit in old for number in range(len(edit.record.facts))]
    (done,) = damages([new], old)
    for index in (done.size > bound).nonzero().flatten().tolist():
        edit, number = victims[index]
        source, victim = _source(new, done.source, index), _party(edit, number)
        size = float(done.size[index])
        yield Conflict(
            "interference", source, victim, size,
            f"{source} writes {size:.0%} of what {victim} writes at its key on top of that; plan "
            "both in one edit of many facts, such as memit, or see whether the old one holds.",
        )  # fmt: skip
    apart = [edit for edit in old if edit.brick.hash not in new.record.depends_on]
    for edit, suffered in zip(apart, damages(apart, [new]), strict=True):
        for index in (suffered.size > bound).nonzero().flatten().tolist():
            source, victim = _source(edit, suffered.source, index), _party(new, index)
            size = float(suffered.size[index])
            yield Conflict(
                "interference", victim, source, size,
                f"{source} writes {size:.0%} of what {victim} writes at its key on top of that; "
                f"plan {new.label} again while {edit.label} acts.",
            )  # fmt: skip


def _overlaps(new: Edit, old: Sequence[Edit]) -> Iterator[Conflict]:
    for edit in old:
        for (mine, theirs), size in overlaps(new, edit).items():
            facts = new.record.facts[mine], edit.record.facts[theirs]
            if _normal(facts[0].target) == _normal(facts[1].target):
                continue  # either entry gives the same answer
            one, other = _party(new, mine), _party(edit, theirs)
            yield Conflict(
                "overlap", one, other, size,
                f"{one} and {other} claim the same states, {size:.0%} of their radii, for "
                "different answers, and the nearer one has them; plan the new edit with a smaller "
                "radius, or in one edit with the old.",
            )  # fmt: skip


def _source(edit: Edit, numbers: Tensor | None, index: int) -> Party:
    if numbers is not None:
        return _party(edit, int(numbers[index]))
    return _party(edit, 0) if len(edit.record.facts) == 1 else Party("", edit.label)


def _party(edit: Edit, number: int) -> Party:
    return Party(edit.record.facts[number].id, edit.label)
