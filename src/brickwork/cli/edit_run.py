"""Facts screened and taught: what ``brickwork edit`` does once it knows what is asked."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brickwork.cli.console import progress, stderr_console
from brickwork.cli.edit_context import Job, find_place, plan_statistics, prepare_context

if TYPE_CHECKING:
    from brickwork.update.conflicts import Conflict
    from brickwork.update.edit import FailedFact
    from brickwork.update.facts import Fact
    from brickwork.update.sequence import Prepared, Serving, Taught
    from brickwork.update.words import EncodedFact


def carry_out(job: Job, facts: "Sequence[Fact]") -> dict[str, Any]:
    """Screen the facts, find the place and, but for a dry run, edit; what was found and done."""
    from brickwork.runtime.configured import ConfiguredModel
    from brickwork.update.sequence import batches_of, prepare_facts

    started = time.perf_counter()
    serving = ConfiguredModel(job.loaded).applied
    prepared = prepare_facts(
        job.loaded, facts, job.ledger, serving,
        raw=job.options["raw"], replacing=job.options["replace"],
    )  # fmt: skip
    batches = batches_of(job.method, prepared.facts, job.options["batch"])
    document = _found(job, facts, prepared)
    if job.options["dry_run"]:
        document |= _planned(job, prepared, batches, serving)
    else:
        prepared.require_peace()
        document["edits"] = []
        if prepared.facts:
            document |= _taught(job, prepared, batches, serving)
        _require_success(job, document)
        taught = [id for edit in document["edits"] for id in edit["facts"]]
        document["replaced"] = _replaced(prepared, taught)
        document |= _held(job, prepared, taught, serving)
        document |= _baked(job)
    document["seconds"] = time.perf_counter() - started
    return document


def _found(job: Job, facts: "Sequence[Fact]", prepared: "Prepared") -> dict[str, Any]:
    folder = job.options["ledger"]
    return {
        "model": job.loaded.name,
        "method": job.method.name,
        "ledger": None if folder is None else str(folder),
        "asked": len(facts),
        "skipped": [_failed(one) for one in prepared.skipped],
        "failed": [_failed(one) for one in prepared.failures],
        "notes": dict(prepared.notes),
        "conflicts": [_conflict(one) for one in prepared.conflicts],
        "replaced": _replaced(prepared, prepared.replaced),
    }


def _planned(
    job: Job,
    prepared: "Prepared",
    batches: "Sequence[Sequence[EncodedFact]]",
    serving: "Serving",
) -> dict[str, Any]:
    """What would be done, and what it would take."""
    document: dict[str, Any] = {
        "dry_run": True,
        "facts": [one.fact.id for one in prepared.facts],
        "edits": [{"facts": [one.fact.id for one in batch]} for batch in batches],
    }
    if prepared.facts:
        place = find_place(job, prepared.facts, serving)
        document |= place.as_document() | plan_statistics(job, place)
    return document


def _taught(
    job: Job,
    prepared: "Prepared",
    batches: "Sequence[Sequence[EncodedFact]]",
    serving: "Serving",
) -> dict[str, Any]:
    clock = _Clock()
    place = find_place(job, prepared.facts, serving)
    document = place.as_document() | {"seconds_to_locate": clock.lap()}
    context, asked = prepare_context(job, place)
    used = asked.statistics
    document["statistics"] = None if used is None else used.model_dump(mode="json")
    document["seconds_to_measure"] = clock.lap()
    done = _sequence(job, prepared, batches, serving, (context, asked))
    return document | done


def _sequence(
    job: Job,
    prepared: "Prepared",
    batches: "Sequence[Sequence[EncodedFact]]",
    serving: "Serving",
    made_with: Any,
) -> dict[str, Any]:
    """Every edit after the other, and what became of each."""
    from dataclasses import replace

    from brickwork.update.sequence import teach_facts

    assert job.ledger is not None, "only a dry run has none"
    context, asked = made_with
    clock, edits = _Clock(), []
    failed = [_failed(one) for one in prepared.failures]
    conflicts = [_conflict(one) for one in prepared.conflicts]
    with progress("editing", len(prepared.facts)) as advance:
        context = replace(context, advance=advance)
        for one in teach_facts(
            batches, prepared, job.ledger, serving, context=context, asked=asked
        ):
            failed += [_failed(failure) for failure in one.failures]
            conflicts += [_conflict(conflict) for conflict in one.conflicts]
            _warn(one)
            if one.edit is not None:
                ids = [fact.id for fact in one.edit.record.facts]
                edits.append({"id": one.edit.id, "facts": ids, "seconds": clock.lap()})
    return {
        "edits": edits, "failed": failed, "conflicts": conflicts,
        "seconds_to_edit": sum(edit["seconds"] for edit in edits),
    }  # fmt: skip


def _require_success(job: Job, document: Mapping[str, Any]) -> None:
    """Refuse to call it done if nothing is taught, or nothing can be in the checkpoint."""
    from brickwork.errors import EditError, listed

    failed, skipped = document["failed"], document["skipped"]
    reasons = listed([f"{one['id']}: {one['reason']}" for one in (*failed, *skipped)])
    if failed and not document["edits"] and not skipped:
        raise EditError(
            f"none of {len(failed)} facts could be taught by {job.method.name}:{reasons}"
        )
    assert job.ledger is not None, "only a dry run has none"
    if job.options["out"] is not None and not job.ledger.active():
        raise EditError(
            f"a checkpoint with edits was asked for with -o, but no edit acts:{reasons}\n"
            "nothing was written; the model is what was asked for, or the facts are to be mended."
        )


def _replaced(prepared: "Prepared", taught: Iterable[str]) -> list[list[str]]:
    """The older facts, edit and fact, whose place is taken by those that are taught."""
    return [list(one) for id in taught for one in prepared.replaced.get(id, ())]


def _held(
    job: Job, prepared: "Prepared", taught: Sequence[str], serving: "Serving"
) -> dict[str, Any]:
    """Whether the model says the facts, those taught before among them, or the old answers."""
    from dataclasses import replace

    from brickwork.update.sequence import holds

    assert job.ledger is not None, "only a dry run has none"
    kept = [one for one in prepared.facts if one.fact.id in taught]
    facts = [*prepared.known, *kept]
    held = holds(job.loaded, facts, job.ledger, serving)
    older = [replace(one, target=one.true) for one in facts if one.true and not held[one.fact.id]]
    return {"holds": held, "says_old": holds(job.loaded, older, job.ledger, serving)}


def _warn(taught: "Taught") -> None:
    for conflict in taught.conflicts:
        stderr_console().print(
            f"Note: {conflict.advice}", style="yellow", markup=False, soft_wrap=True
        )


def _baked(job: Job) -> dict[str, Any]:
    from brickwork.cli.edit_bake import bake_ledger

    if job.options["out"] is None:
        return {}
    assert job.ledger is not None, "only a dry run has none"
    return {"baked": bake_ledger(job.ledger, job.model, job.options["out"], job.options)}


def _failed(one: "FailedFact") -> dict[str, str]:
    return {"id": one.id, "reason": one.reason}


def _conflict(one: "Conflict") -> dict[str, Any]:
    parties = {
        name: {"fact": party.fact, "edit": party.edit}
        for name, party in (("new", one.new), ("old", one.old))
    }
    return {"kind": one.kind, **parties, "size": one.size, "advice": one.advice}


class _Clock:
    """Seconds since it was last asked."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """The seconds since then."""
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        return passed
