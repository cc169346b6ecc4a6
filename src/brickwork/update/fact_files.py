"""Facts from files: in our own fields, and in those of the data sets that edits are measured on.

A file is JSONL or one JSON list, gzipped or not. Which form a record has is seen by its fields:

- ours: the fields of ``Fact``; neighbours are prompts, or objects with prompt and answer.
- CounterFact (Meng et al. 2022, arXiv:2202.05262), as its authors give it.
- flat: the same without the nested ``requested_rewrite``; the prompt has {} for the subject.
- EasyEdit (Zhang et al. 2024, arXiv:2401.01286): prompt, target_new, ground_truth.
- zsRE as MEND has it (Mitchell et al. 2021, arXiv:2110.11309): src, alt, answers.
- known facts, for tracing: prompt and attribute, which is both the old answer and the new.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from brickwork.errors import ConfigurationError, DataError, UnknownNameError, listed
from brickwork.measure.records import read_records
from brickwork.update.facts import Fact, Probe

_SLOT = "{}"
_TEMPLATE_SLOT = "{prompt}"


def read_facts(
    path: Path, *, template: str = _TEMPLATE_SLOT, most: int | None = None
) -> list[Fact]:
    """The facts of a file, in its order, each with an id of its own.

    An id that is missing is the number of the record; one that is there twice gets a number.

    Args:
        path: JSONL or a JSON list, gzipped or not; see the module for the fields.
        template: put around every prompt, which stands in it as ``{prompt}``: an instruction that
            the model needs to complete facts.
        most: read so many records; None: all.

    Raises:
        DataError: if the file cannot be read or holds no fact, or a record is none; the message
            names up to eight such records, and what each lacks.
        ConfigurationError: if the template has not exactly one ``{prompt}``.
    """
    _require_template(template)
    found: list[Fact] = []
    problems: list[str] = []
    for number, (where, record) in enumerate(islice(read_records(path), most), start=1):
        try:
            fact = fact_of(record)
            found.append(wrapped(fact, template) if fact.id else _named(fact, template, number))
        except (_UnreadableError, UnknownNameError) as error:
            problems.append(f"{where.removeprefix(f'{path}, ')}: {error}")
    if problems:
        raise DataError(
            f"{len(problems)} of {len(problems) + len(found)} records of {str(path)!r} are no "
            f"facts; mend them, or leave them out:{listed(problems)}"
        )
    if not found:
        raise DataError(f"facts were asked of {str(path)!r}, which holds none; write at least one.")
    return _distinct(found)


def fact_of(record: Mapping[str, Any]) -> Fact:
    """The fact that a record holds, in whichever form; without an id if it has none.

    Raises:
        BrickworkError: if a field is missing, is empty, is not of its kind, or is unknown in our
            own form.
    """
    form = next((form for form in _FORMS if form.marks <= record.keys()), _OURS)
    mixed = sorted(_ONLY_OURS & record.keys()) if form is not _OURS else []
    if mixed:
        raise _UnreadableError(
            f"it has fields of two forms: {', '.join(sorted(form.marks))} beside "
            f"{', '.join(mixed)}; write target, not target_new, in our own."
        )
    return form.read(_Record(record))


def wrapped(fact: Fact, template: str) -> Fact:
    """The fact with the template around all its prompts; the answers stay as they are.

    Raises:
        ConfigurationError: if the template has not exactly one ``{prompt}``.
    """
    _require_template(template)

    def around(prompt: str) -> str:
        return template.replace(_TEMPLATE_SLOT, prompt)

    return replace(
        fact,
        prompt=around(fact.prompt),
        paraphrases=tuple(map(around, fact.paraphrases)),
        generation=tuple(map(around, fact.generation)),
        neighbours=tuple(replace(p, prompt=around(p.prompt)) for p in fact.neighbours),
        same_subject=tuple(replace(p, prompt=around(p.prompt)) for p in fact.same_subject),
    )


def _require_template(template: str) -> None:
    if template.count(_TEMPLATE_SLOT) != 1:
        raise ConfigurationError(
            f"the template {template!r} has {template.count(_TEMPLATE_SLOT)} places for the "
            f"prompt; write {_TEMPLATE_SLOT} once, where the prompt shall stand."
        )


def _named(fact: Fact, template: str, number: int) -> Fact:
    return replace(wrapped(fact, template), id=str(number))


def _distinct(facts: Sequence[Fact]) -> list[Fact]:
    """The facts, those whose id was there before with the first number behind it that is free."""
    taken = {fact.id for fact in facts}
    seen: set[str] = set()
    found = []
    for fact in facts:
        name, count = fact.id, 1
        while name in seen or (count > 1 and name in taken):
            count += 1
            name = f"{fact.id}-{count}"
        seen.add(name)
        found.append(fact if name == fact.id else replace(fact, id=name))
    return found


class _UnreadableError(DataError):
    """What a record lacks; the caller says which record."""


@dataclass(frozen=True)
class _Record:
    """The fields of a record, by their names; a dot leads into a nested object."""

    fields: Mapping[str, Any]

    def text(self, name: str, default: str | None = None) -> str:
        """A text that is not empty, or the default where it is missing or null."""
        value = self._value(name)
        if value is None or (value == "" and default is not None):
            if default is not None:
                return default
            known = ", ".join(sorted(self.fields)[:8]) or "none"
            raise _UnreadableError(f"it has no {name} (its fields: {known}).")
        text = _text(value, name)
        if not text.strip():
            raise _UnreadableError(f"its {name} is empty.")
        return text

    def answer(self, name: str) -> str:
        """A text that is there, without the space around it.

        Data sets have a few that are empty; such a fact is told among those that fail.
        """
        return "" if self._value(name) == "" else self.text(name).strip()

    def number_or_text(self, name: str) -> str:
        """A text or a whole number as text; empty where it is missing."""
        value = self._value(name)
        return str(value) if type(value) is int else self.text(name, "")

    def texts(self, name: str) -> tuple[str, ...]:
        """Texts, or one text; none where it is missing or null."""
        value = self._value(name)
        many = [] if value in (None, "") else [value] if isinstance(value, str) else value
        if not isinstance(many, list):
            raise _UnreadableError(f"its {name} is {_shown(value)}, no text and no list of texts.")
        return tuple(_text(one, name) for one in many)

    def probes(self, name: str, answers: Sequence[str] = ()) -> tuple[Probe, ...]:
        """Prompts to leave alone: texts, or in our own form objects with prompt and answer."""
        value = self._value(name)
        if not isinstance(value, list):
            prompts = self.texts(name)
        elif any(isinstance(one, dict) for one in value):
            return tuple(_probe(one, name) for one in value)
        else:
            prompts = tuple(_text(one, name) for one in value)
        known = answers if len(answers) == len(prompts) else [*answers[:1]] * len(prompts)
        return tuple(
            Probe(prompt, answer)
            for prompt, answer in zip(prompts, known or [""] * len(prompts), strict=True)
        )

    def _value(self, name: str) -> Any:
        value: Any = self.fields
        for step in name.split("."):
            if not isinstance(value, Mapping):
                raise _UnreadableError(f"{name} was looked for in {_shown(value)}.")
            value = value.get(step)
            if value is None:
                return None
        return value


def _probe(value: Any, name: str) -> Probe:
    if isinstance(value, str):
        return Probe(_text(value, name))
    if not isinstance(value, dict):
        raise _UnreadableError(f"its {name} has {_shown(value)}, no text and no object.")
    for key in value:
        if key not in ("prompt", "answer"):
            raise UnknownNameError(f"field of {name}", key, ("prompt", "answer"))
    record = _Record(value)
    return Probe(record.text("prompt"), record.text("answer", ""))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _UnreadableError(f"its {name} is {_shown(value)}, not text.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _UnreadableError(f"its {name} holds half of a surrogate pair.")
    return value


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]


def _filled(prompt: str, subject: str) -> str:
    return prompt.replace(_SLOT, subject)


def _ours(record: _Record) -> Fact:
    known = [field.name for field in fields(Fact)]
    for name in record.fields:
        if name not in known:
            raise UnknownNameError("field of a fact", name, known)
    return Fact(
        id=record.number_or_text("id"),
        subject=record.text("subject"),
        prompt=record.text("prompt"),
        target=record.text("target"),
        target_true=record.text("target_true", ""),
        paraphrases=record.texts("paraphrases"),
        neighbours=record.probes("neighbours"),
        same_subject=record.probes("same_subject"),
        generation=record.texts("generation"),
        relation=record.text("relation", ""),
    )


def _counterfact(record: _Record) -> Fact:
    subject = record.text("requested_rewrite.subject")
    true = record.text("requested_rewrite.target_true.str", "").strip()
    return Fact(
        id=record.number_or_text("case_id"),
        subject=subject,
        prompt=_filled(record.text("requested_rewrite.prompt"), subject),
        target=record.answer("requested_rewrite.target_new.str"),
        target_true=true,
        paraphrases=record.texts("paraphrase_prompts"),
        neighbours=record.probes("neighborhood_prompts", [true]),
        generation=record.texts("generation_prompts"),
        relation=record.text("requested_rewrite.relation_id", ""),
    )


def _flat(record: _Record) -> Fact:
    subject, true = record.text("subject"), record.text("target_true", "").strip()
    return Fact(
        id=record.number_or_text("case_id"),
        subject=subject,
        prompt=_filled(record.text("prompt"), subject),
        target=record.answer("target_new"),
        target_true=true,
        paraphrases=record.texts("paraphrase_prompts"),
        neighbours=record.probes("neighborhood_prompts", [true]),
        generation=record.texts("generation_prompts"),
        relation=record.text("relation_id", ""),
    )


def _easyedit(record: _Record) -> Fact:
    truths = [text.strip() for text in record.texts("ground_truth")]
    answers = [text.strip() for text in record.texts("locality_ground_truth")]
    return Fact(
        id=record.number_or_text("case_id"),
        subject=record.text("subject"),
        prompt=record.text("prompt"),
        target=record.answer("target_new"),
        target_true=truths[0] if truths else "",
        paraphrases=record.texts("rephrase_prompt"),
        neighbours=record.probes("locality_prompt", answers),
    )


def _zsre(record: _Record) -> Fact:
    truths = [text.strip() for text in record.texts("answers")]
    answers = [text.strip() for text in record.texts("loc_ans")]
    return Fact(
        id=record.number_or_text("case_id"),
        subject=record.text("subject"),
        prompt=record.text("src"),
        target=record.answer("alt"),
        target_true=truths[0] if truths else "",
        paraphrases=record.texts("rephrase"),
        neighbours=record.probes("loc", answers[:1]),
    )


def _known(record: _Record) -> Fact:
    attribute = record.text("attribute").strip()
    return Fact(
        id=record.number_or_text("known_id"),
        subject=record.text("subject"),
        prompt=record.text("prompt"),
        target=attribute,
        target_true=attribute,
        relation=record.text("relation_id", ""),
    )


@dataclass(frozen=True)
class _Form:
    """One way to write facts: the fields that show it, and what reads it."""

    marks: frozenset[str]
    read: Callable[[_Record], Fact]


# The first whose marks a record has is taken.
_FORMS = (
    _Form(frozenset({"requested_rewrite"}), _counterfact),
    _Form(frozenset({"src", "alt"}), _zsre),
    _Form(frozenset({"target_new", "paraphrase_prompts"}), _flat),
    _Form(frozenset({"target_new", "neighborhood_prompts"}), _flat),
    _Form(frozenset({"target_new", "target_true"}), _flat),
    _Form(frozenset({"target_new"}), _easyedit),
    _Form(frozenset({"attribute", "prompt"}), _known),
)
_OURS = _Form(frozenset(), _ours)
_ONLY_OURS = frozenset({"target", "paraphrases", "neighbours", "same_subject", "generation"})
