"""``plan_merge``: a recipe for whole models becomes a plan, from headers alone."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from brickwork.combine.checkpoints import open_checkpoint
from brickwork.combine.layout import Draft, Input, draft_tensors, lay_spans, output_head
from brickwork.combine.method import Method, Value
from brickwork.combine.methods import find_method
from brickwork.combine.output_config import output_config
from brickwork.combine.parameters import resolve
from brickwork.combine.plan import MergePlan, ModelRef, Operand, TensorPlan
from brickwork.combine.preflight import (
    lone_copy,
    setting_notes,
    span_problems,
    tensor_problems,
    vocabulary_problems,
)
from brickwork.combine.recipe import Recipe, recipe_notes
from brickwork.errors import MergeError, listed

# With its neutral parameters it copies, which needs no arithmetic.
_COPIES = "passthrough"


def plan_merge(recipe: Recipe, fetch: Callable[[ModelRef], Path]) -> MergePlan:
    """What a merge will do, tensor by tensor.

    Everything that speaks against it is found here. Only whether non-float buffers are equal, and
    whether all values are finite, shows when the tensors are read. Tensors on the vocabulary axis
    have the donor's shape; aligning vocabularies is a step of its own.

    Args:
        recipe: as read.
        fetch: gives the folder of a model's checkpoint; the adapter of ``base+lora`` is not its
            business.

    Raises:
        MergeError: with all problems.
        ModelError: if a checkpoint cannot be fetched or is damaged.
    """
    row = find_method(recipe.merge_method)
    opened = {ref: open_checkpoint(ref, fetch(ref)) for ref in recipe.refs()}
    donor = opened[recipe.refs()[0]]
    spans = lay_spans(recipe, opened)
    problems, notes = vocabulary_problems(list(opened.values()), recipe)
    _require_none(span_problems(row, recipe, spans))
    drafts, left_out = draft_tensors(spans, donor)
    _require_none(problems + tensor_problems(row, recipe, drafts))
    tensors = _Planner(row, recipe).plan(drafts)
    config, config_notes = output_config(
        donor, spans, (tensor.dtype for tensor in tensors), head=output_head(spans)
    )
    return MergePlan(
        tensors,
        {ref: checkpoint.folder for ref, checkpoint in opened.items()},
        config,
        donor.ref,
        seed=recipe.seed,
        notes=[
            *recipe_notes(recipe),
            *notes,
            *left_out,
            *config_notes,
            *setting_notes(donor, list(opened.values())),
        ],
    )


class _Planner:
    """Drafts that fit become plans; parameters that no setting gives are collected."""

    def __init__(self, row: Method, recipe: Recipe) -> None:
        self._row = row
        self._cast = _dtype(recipe.dtype)
        self._written = _dtype(recipe.out_dtype) or self._cast
        self._unset: Counter[str] = Counter()

    def plan(self, drafts: Iterable[Draft]) -> list[TensorPlan]:
        """The plans of all drafts.

        Raises:
            MergeError: naming every parameter that is needed and not given.
        """
        plans = [self._plan(draft) for draft in drafts]
        _require_none(
            [
                f"{what} has no value for {number} tensors; set it under `parameters`"
                for what, number in self._unset.items()
            ]
        )
        return plans

    def _plan(self, draft: Draft) -> TensorPlan:
        inputs = [draft.span.inputs[number] for number, _ in draft.held()]
        operands = _operands(draft, inputs)
        held = [i.checkpoint.held[o.tensor] for i, o in zip(inputs, operands, strict=True)]
        dtype = reduce(torch.promote_types, [one.dtype for one in held])
        real = dtype.is_floating_point
        vocabulary = operands[0].tensor in inputs[0].checkpoint.vocabulary
        plan = TensorPlan(
            draft.name,
            held[0].shape,
            (self._written or dtype) if real else dtype,
            "copy",
            operands,
            cast=self._cast if real else None,
            vocabulary=vocabulary,
        )
        if not real or lone_copy(self._row, draft):
            return plan
        base = self._base(draft, inputs)
        values = self._values(draft, inputs, base)
        if self._row.name == _COPIES and values == _neutral(self._row):
            return plan
        others = tuple(one for n, one in enumerate(operands) if n != base)
        return replace(
            plan,
            method=self._row.name,
            operands=others,
            base=None if base is None else operands[base],
            parameters=values,
        )

    def _base(self, draft: Draft, inputs: Sequence[Input]) -> int | None:
        """The number of the input that the others are compared with."""
        if self._row.base == "operand" or draft.span.base is None:
            return None
        return [given.checkpoint.ref for given in inputs].index(draft.span.base)

    def _values(self, draft: Draft, inputs: Sequence[Input], base: int | None) -> dict[str, Any]:
        """Every parameter of the method: one value, or one for each operand."""
        values: dict[str, Any] = {}
        for parameter in self._row.parameters:
            if parameter.scope == "shared":
                scopes = draft.span.scopes
                value = resolve(parameter, scopes, name=draft.name, depth=draft.depth)
                values[parameter.name] = self._set(value, parameter.name)
                continue
            own = []
            for number, given in enumerate(inputs):
                if number == base:
                    continue
                scopes = (given.settings, *draft.span.scopes)
                name = _name_for_filters(draft, draft.held()[number][0])
                value = resolve(parameter, scopes, name=name, depth=draft.depth)
                own.append(self._set(value, f"{parameter.name} of {given.checkpoint.ref}"))
            values[parameter.name] = tuple(own)
        return values

    def _set(self, value: Value | None, what: str) -> Value | None:
        if value is None:
            self._unset[what] += 1
        return value


def _neutral(row: Method) -> dict[str, Any]:
    """The parameters with which the method changes nothing."""
    return {p.name: p.default if p.scope == "shared" else (p.default,) for p in row.parameters}


def _operands(draft: Draft, inputs: Sequence[Input]) -> tuple[Operand, ...]:
    """One for each input that has the tensor; a model that takes part twice gets two keys."""
    seen: Counter[ModelRef] = Counter()
    operands = []
    for given, (_, tensor) in zip(inputs, draft.held(), strict=True):
        ref = given.checkpoint.ref
        seen[ref] += 1
        key = str(ref) if seen[ref] == 1 else f"{ref}#{seen[ref]}"
        operands.append(Operand(ref, tensor, key, given.statistics))
    return tuple(operands)


def _name_for_filters(draft: Draft, number: int) -> str:
    """An input's own name for the tensor; a tied head is asked for as a head."""
    tensor = draft.tensors[number]
    embedding = draft.span.inputs[number].checkpoint.vocabulary.embedding
    return draft.name if tensor == embedding else tensor


def _dtype(name: str | None) -> torch.dtype | None:
    found: torch.dtype | None = getattr(torch, name) if name else None
    return found


def _require_none(problems: Sequence[str]) -> None:
    if problems:
        raise MergeError(f"the models cannot be merged as asked:{listed(list(problems), 20)}")
