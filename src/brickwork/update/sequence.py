"""Many facts: screened, planned as edits one on top of the other, and kept as each is done.

A run that was killed goes on where it was, for facts that the ledger teaches are not done again.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain

from brickwork.brick.brick import Brick
from brickwork.errors import ConfigurationError, EditError, listed
from brickwork.model.load import LoadedModel
from brickwork.update.conflicts import Conflict, find_conflicts
from brickwork.update.edit import Edit, FailedFact, keys_of
from brickwork.update.facts import Fact
from brickwork.update.ledger import Ledger
from brickwork.update.method import EditContext, EditMethod
from brickwork.update.methods import find_edit_method
from brickwork.update.parts import without_facts
from brickwork.update.plan import Asked, NothingTaughtError, plan_edit, require_needs
from brickwork.update.screen import says, screen_facts
from brickwork.update.words import EncodedFact, encode_fact

# Inside, the model runs with these bricks, whatever batch it is given.
Serving = Callable[[Sequence[Brick]], AbstractContextManager[None]]


@dataclass(frozen=True)
class Prepared:
    """What was found of facts before any edit is planned.

    Attributes:
        facts: those to teach, in their order.
        skipped: those that need no edit: the model, or the ledger, has them already.
        known: of those, the ones that edits teach that act.
        failures: those that cannot be taught.
        conflicts: facts that do not go together with each other or with what is taught already.
        replaced: for facts that take the place of older ones, those: edit and fact.
        notes: what is worth knowing of those to teach, by their ids.
    """

    facts: tuple[EncodedFact, ...]
    skipped: tuple[FailedFact, ...]
    known: tuple[EncodedFact, ...]
    failures: tuple[FailedFact, ...]
    conflicts: tuple[Conflict, ...]
    replaced: Mapping[str, tuple[tuple[str, str], ...]]
    notes: Mapping[str, str]

    def require_peace(self) -> None:
        """Refuse facts that contradict each other, or an older one that they do not replace.

        Raises:
            EditError: naming each contradiction, and what to do about it.
        """
        found = [
            one
            for one in self.conflicts
            if one.kind == "contradiction" and one.new.fact not in self.replaced
        ]
        if found:
            advice = listed([one.advice for one in found])
            if any(one.old.edit for one in found):
                advice += (
                    "\nrevoke the older fact first, or let the new one take its place (--replace)."
                )
            raise EditError(f"nothing was changed, for facts contradict others:{advice}")


def prepare_facts(
    loaded: LoadedModel,
    facts: Sequence[Fact],
    ledger: Ledger | None,
    serving: Serving,
    *,
    raw: bool = False,
    replacing: bool = False,
) -> Prepared:
    """Sort facts before they are taught; nothing is changed.

    Args:
        loaded: the model.
        facts: with ids that differ.
        ledger: what is taught already; None: nothing.
        serving: lets the model run with bricks.
        raw: give prompts to the model as they are, without the chat template.
        replacing: facts take the place of older ones that they contradict.

    Raises:
        EditError: if an older fact that is to be replaced cannot be parted from others.
    """
    new, known, told = _apart(facts, ledger)
    acting = ledger.active() if ledger else []
    with serving([edit.brick for edit in acting]):
        screening = screen_facts(loaded, new, raw=raw)
    conflicts = find_conflicts([one.fact for one in screening.kept], acting)
    replaced = _replaced(conflicts) if replacing else {}
    if ledger is not None:  # an older fact that cannot be parted from others is told now
        _remaining(ledger, list(dict.fromkeys(chain.from_iterable(replaced.values()))))
    return Prepared(
        screening.kept,
        (*told, *screening.skipped),
        tuple(encode_fact(loaded, one, raw=raw) for one in known),
        screening.failures,
        tuple(conflicts),
        replaced,
        screening.notes,
    )


def _replaced(conflicts: Sequence[Conflict]) -> dict[str, tuple[tuple[str, str], ...]]:
    """The older facts that each new one contradicts, if it contradicts no other new one."""
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    open_ones = set()
    for one in conflicts:
        if one.kind != "contradiction":
            continue
        if one.old.edit:
            found[one.new.fact] = (*found.get(one.new.fact, ()), (one.old.edit, one.old.fact))
        else:
            open_ones.add(one.new.fact)
    return {fact: older for fact, older in found.items() if fact not in open_ones}


def _apart(
    facts: Sequence[Fact], ledger: Ledger | None
) -> tuple[list[Fact], list[Fact], list[FailedFact]]:
    """Facts that the ledger does not teach, those that act, and why facts need no edit."""
    taught, seen = {}, dict[tuple[str, str, str], str]()
    if ledger is not None:
        for entry in ledger.entries:
            for fact in ledger.edit(entry.id).record.facts:
                taught[fact.subject, fact.prompt, fact.target] = entry
    new, known, told = [], [], []
    for one in facts:
        key = (one.subject, one.prompt, one.target)
        if key in seen:
            told.append(FailedFact(id=one.id, reason=f"it is the fact {seen[key]!r} once more."))
            continue
        seen[key] = one.id
        found = taught.get(key)
        if found is None:
            new.append(one)
            continue
        acts = found.state == "applied"
        hint = "" if acts else ", which is disabled: apply it"
        told.append(FailedFact(id=one.id, reason=f"{found.id} teaches it already{hint}."))
        known += [one] * acts
    return new, known, told


@dataclass(frozen=True, eq=False)
class Taught:
    """One edit of a sequence, as it is done.

    Attributes:
        edit: with its name in the ledger; None: none of its facts could be taught.
        failures: of its facts.
        conflicts: interferences and overlaps with the edits that act.
    """

    edit: Edit | None
    failures: tuple[FailedFact, ...]
    conflicts: tuple[Conflict, ...] = ()


def batches_of(
    method: EditMethod, facts: Sequence[EncodedFact], batch: int | None
) -> list[list[EncodedFact]]:
    """The facts of each edit: one by one for a method for one, else so many, else all.

    Raises:
        ConfigurationError: if many are asked of a method for one.
    """
    if method.facts == "one":
        if batch not in (None, 1):
            raise ConfigurationError(
                f"edits of {batch} facts were asked of {method.name}, which makes an edit for each "
                "fact; leave the number out, or take a method for many, such as memit."
            )
        batch = 1
    size = batch or max(len(facts), 1)
    return [list(facts[start : start + size]) for start in range(0, len(facts), size)]


def teach_facts(
    batches: Sequence[Sequence[EncodedFact]],
    prepared: Prepared,
    ledger: Ledger,
    serving: Serving,
    *,
    context: EditContext,
    asked: Asked,
) -> Iterator[Taught]:
    """Plan an edit for each batch while the earlier ones act, and add it to the ledger.

    Args:
        batches: the facts of each edit.
        prepared: what was found of them.
        ledger: of the context's model; each edit is in it when it is told of.
        serving: lets the model run with bricks.
        context: what the method works with; the keys of earlier edits are put in.
        asked: what each edit shall be; notes and dependencies are put in.

    Raises:
        EditError: if the facts contradict older ones, or the method lacks what it needs.
    """
    prepared.require_peace()
    require_needs(find_edit_method(asked.method), context)
    for facts in batches:
        yield _taught([one.fact for one in facts], prepared, ledger, serving, context, asked)


def _taught(
    facts: Sequence[Fact],
    prepared: Prepared,
    ledger: Ledger,
    serving: Serving,
    context: EditContext,
    asked: Asked,
) -> Taught:
    ids = {fact.id for fact in facts}
    older = _older(ledger, prepared, ids)
    done = 0.0

    def advance(count: float) -> None:
        nonlocal done
        done += count
        context.advance(count)

    try:
        acting = _remaining(ledger, older)
        here = replace(context, earlier=keys_of(acting), advance=advance)
        wanted = replace(
            asked,
            depends_on=tuple(edit.brick.hash for edit in acting),
            notes={id: note for id, note in prepared.notes.items() if id in ids},
        )
        with serving([edit.brick for edit in acting]):
            edit = plan_edit(here, facts, wanted)
    except NothingTaughtError as error:
        context.advance(len(facts) - done)
        return Taught(None, error.failures)
    failed = {one.id for one in edit.record.failures}
    if failed.intersection(prepared.replaced):
        # An older fact goes only for a new one that comes, and the others are planned beside it.
        rest = [fact for fact in facts if fact.id not in failed]
        context.advance(len(facts) - done)
        quiet = replace(context, advance=lambda _facts: None)
        again = _taught(rest, prepared, ledger, serving, quiet, asked)
        return replace(again, failures=(*edit.record.failures, *again.failures))
    conflicts = [c for c in find_conflicts(edit, acting) if c.kind in ("interference", "overlap")]
    for id, fact in older:
        _take_back(ledger, id, fact)
    entry = ledger.add(edit)
    context.advance(len(facts) - done)
    return Taught(ledger.edit(entry.id), edit.record.failures, tuple(conflicts))


def _older(ledger: Ledger, prepared: Prepared, ids: Collection[str]) -> list[tuple[str, str]]:
    """The older facts that these take the place of, if they act still: edit and fact, each once."""
    acting = {(edit.id, fact.id) for edit in ledger.active() for fact in edit.record.facts}
    found = chain.from_iterable(prepared.replaced.get(id, ()) for id in sorted(ids))
    return [one for one in dict.fromkeys(found) if one in acting]


def _remaining(ledger: Ledger, older: Sequence[tuple[str, str]]) -> list[Edit]:
    """The edits that act once the older facts are taken back, one by one as the ledger does."""
    found = {edit.id: edit for edit in ledger.active()}
    for id, fact in older:
        if [one.id for one in found[id].record.facts] == [fact]:
            del found[id]
        else:
            found[id] = without_facts(found[id], [fact])
    return list(found.values())


def _take_back(ledger: Ledger, id: str, fact: str) -> None:
    """Let one fact act no more: an edit of its own is disabled, one of many is revoked."""
    if [one.id for one in ledger.edit(id).record.facts] == [fact]:
        ledger.disable(id)
    else:
        ledger.revoke(id, fact)


def holds(
    loaded: LoadedModel, facts: Sequence[EncodedFact], ledger: Ledger, serving: Serving
) -> dict[str, bool]:
    """For each fact whether the model says it now, under all edits that act, by its id."""
    with serving([edit.brick for edit in ledger.active()]):
        said = says(loaded.model, [(one.prompt.ids, one.target) for one in facts])
    return {one.fact.id: told for one, told in zip(facts, said.tolist(), strict=True)}
