"""Facts screened and taught: what ``brickwork edit`` does once it knows what is asked."""

import time
from collections.abc import Mapping, Sequence
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
        document |= _taught(job, prepared, batches, serving)
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
        "replaced": [list(one) for older in prepared.replaced.values() for one in older],
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
    document: dict[str, Any] = {"edits": []}
    if not prepared.facts:
        return document
    clock = _Clock()
    place = find_place(job, prepared.facts, serving)
    document |= place.as_document() | {"seconds_to_locate": clock.lap()}
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
    """Every edit after the other; what became of each, and whether the model says the facts."""
    from dataclasses import replace

    from brickwork.update.sequence import holds, teach_facts

    assert job.ledger is not None, "only a dry run has none"
    context, asked = made_with
    clock, edits, taught = _Clock(), [], set()
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
                taught.update(ids)
                edits.append({"id": one.edit.id, "facts": ids, "seconds": clock.lap()})
    _require_success(job, edits, failed, prepared)
    kept = [one for one in prepared.facts if one.fact.id in taught]
    held = holds(context, kept, job.ledger, serving)
    return {
        "edits": edits, "failed": failed, "conflicts": conflicts,
        "holds": held, "seconds_to_edit": sum(edit["seconds"] for edit in edits),
    }  # fmt: skip


def _require_success(
    job: Job,
    edits: Sequence[Mapping[str, Any]],
    failed: Sequence[Mapping[str, str]],
    prepared: "Prepared",
) -> None:
    from brickwork.errors import EditError, listed

    if not edits and not prepared.skipped:
        reasons = listed([f"{one['id']}: {one['reason']}" for one in failed])
        raise EditError(
            f"none of {len(failed)} facts could be taught by {job.method.name}:{reasons}"
        )


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
