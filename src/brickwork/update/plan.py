"""Plan an edit: facts in, a brick out; the model is not changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from pydantic import BaseModel, JsonValue, ValidationError

from brickwork.brick.brick import Brick
from brickwork.brick.check import require_fit
from brickwork.brick.spec import BrickSpec, Lineage, explain
from brickwork.errors import ConfigurationError, EditError, UnknownNameError
from brickwork.update.edit import (
    Edit,
    EditRecord,
    FailedFact,
    StatisticsUsed,
    TaughtFact,
    function_of,
)
from brickwork.update.facts import Fact
from brickwork.update.method import Draft, EditContext, EditMethod
from brickwork.update.methods import find_edit_method
from brickwork.update.words import EncodedFact, encode_fact


class NothingTaughtError(EditError):
    """No fact of an edit can be taught; carries why, for each."""

    def __init__(self, failures: Sequence[FailedFact]) -> None:
        self.failures = tuple(failures)
        first = f"; the first: {failures[0].reason}" if failures else ""
        super().__init__(
            f"none of {len(failures)} facts can be taught{first} Mend the facts, or leave them out."
        )


@dataclass(frozen=True)
class Asked:
    """What an edit is asked to be.

    Attributes:
        method: a row of METHODS.
        options: those that differ from the method's defaults.
        name: of the brick.
        located: whether causal tracing found the site.
        statistics: where the context's covariance is from.
        depends_on: hashes of the bricks of the edits that act already.
        notes: what is worth knowing of a fact, by its id.
    """

    method: str
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    name: str = "edit"
    located: bool = False
    statistics: StatisticsUsed | None = None
    depends_on: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


def plan_edit(context: EditContext, facts: Sequence[Fact], asked: Asked) -> Edit:
    """An edit that teaches the facts, as far as they can be taught; the rest is listed in it.

    Raises:
        EditError: if no fact can be taught, or the method needs what the context has not.
        ConfigurationError: if an option is not valid.
        UnknownNameError: if no method or no option has the name.
    """
    method = find_edit_method(asked.method)
    options = method_options(method, asked.options)
    require_needs(method, context)
    if method.facts == "one" and len(facts) != 1:
        raise EditError(
            f"an edit by {method.name} holds one fact, but {len(facts)} were given; plan one edit "
            "for each, or take a method for many, such as memit."
        )
    encoded, failures = _encoded(context, facts)
    if not encoded:
        raise NothingTaughtError(failures)
    draft = method.draft(context, encoded, options)
    kept = [one for number, one in enumerate(encoded) if number not in draft.failures]
    failures += [FailedFact(id=encoded[n].fact.id, reason=r) for n, r in draft.failures.items()]
    if not kept:
        raise NothingTaughtError(failures)
    record = _record(context, asked, options, draft, kept)
    record = record.model_copy(update={"failures": tuple(failures)})
    brick = _brick(context, asked, record, draft)
    require_fit(brick, context.loaded.base)
    return Edit(brick, record, draft.keys)


def method_options(method: EditMethod, given: Mapping[str, JsonValue]) -> BaseModel:
    """The method's options: those given, and its defaults for the rest.

    Raises:
        ConfigurationError: if a value is not valid.
        UnknownNameError: if the method has no option of that name.
    """
    known = method.options_type.model_fields
    for name in given:
        if name not in known:
            raise UnknownNameError(f"option of {method.name}", name, known)
    try:
        options = method.options_type.model_validate(dict(given))
    except ValidationError as error:
        raise ConfigurationError(
            f"the options of {method.name} are not valid: {explain(error)}; see "
            "docs/reference/tables.md."
        ) from None
    for name, value in options.model_dump().items():
        if isinstance(value, float) and not isfinite(value):
            raise ConfigurationError(
                f"the options of {method.name} are not valid: {name} is {value}; write a number."
            )
    return options


def require_needs(method: EditMethod, context: EditContext) -> None:
    """Refuse a context that lacks what the method cannot do without.

    Raises:
        EditError: naming what is not there.
    """
    has = {
        "covariance": context.covariance is not None,
        "corpus": bool(context.corpus),
        "training": bool(context.training),
    }
    lacks = [need for need in method.needs if not has[need]]
    if lacks:
        raise EditError(
            f"an edit by {method.name} needs {' and '.join(lacks)}, which was not given; measure "
            "the covariance with `brickwork statistics`, or name texts with --data."
        )


def _encoded(
    context: EditContext, facts: Sequence[Fact]
) -> tuple[list[EncodedFact], list[FailedFact]]:
    found, failures = [], []
    for fact in facts:
        try:
            found.append(encode_fact(context.loaded, fact, raw=context.raw))
        except EditError as error:
            failures.append(FailedFact(id=fact.id, reason=str(error)))
    return found, failures


def _record(
    context: EditContext,
    asked: Asked,
    options: BaseModel,
    draft: Draft,
    kept: Sequence[EncodedFact],
) -> EditRecord:
    taught = [
        TaughtFact(
            note=asked.notes.get(one.fact.id, ""),
            **{
                name: getattr(one.fact, name)
                for name in ("id", "subject", "prompt", "target", "target_true", "relation")
            },
        )
        for one in kept
    ]
    return EditRecord(
        method=asked.method,
        options=options.model_dump(mode="json"),
        seed=context.seed,
        layers=context.site.layers,
        place=context.site.place,
        located=asked.located,
        raw=context.raw,
        facts=tuple(taught),
        owners=draft.owners,
        base=context.loaded.base.fingerprint,
        statistics=asked.statistics,
        depends_on=asked.depends_on,
    )


def _brick(context: EditContext, asked: Asked, record: EditRecord, draft: Draft) -> Brick:
    method = find_edit_method(asked.method)
    facts = record.facts
    lineage = Lineage(
        method=method.name,
        arguments={"options": record.options, "seed": record.seed, "site": str(context.site)},
        data=f"{len(facts)} facts",
        parents=record.depends_on,
    )
    sites = dict.fromkeys(name.rpartition("/")[0] for name in draft.tensors)
    spec = BrickSpec(
        name=asked.name,
        form=draft.form,
        base=context.loaded.base.fingerprint,
        sites=tuple(sites),
        options=dict(draft.options),
        function=function_of(facts),
        lineage=lineage,
    )
    return Brick(spec, dict(draft.tensors))
