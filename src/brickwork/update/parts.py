"""One fact out of many: an edit without the rows of its tensors that a fact has for itself.

The rows of the other facts stay as they are, to the bit. They were planned beside the fact that
goes: radii of a codebook, say, do not grow back.
"""

import math
from collections.abc import Collection, Mapping

import torch
from pydantic import JsonValue
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.forms import find_form
from brickwork.brick.lora import LoraOptions
from brickwork.errors import EditError, UnknownNameError
from brickwork.update.edit import Edit, function_of

# The axis of a form along which a fact can have rows of its own.
_AXES: Mapping[str, str] = {
    "lora": "rank", "patch": "neurons", "codebook": "entries", "memory": "entries",
}  # fmt: skip


def row_axes(brick: Brick) -> dict[str, int]:
    """The tensors of a well-formed brick that have rows for facts, and the axis that counts them.

    Returns:
        The axis by the tensor's name; empty for forms whose rows are not a fact's own.
    """
    found = {}
    form = find_form(brick.spec.form)
    for site, slots in brick.by_site.items():
        schema = next(schema for schema in form.slots if set(schema) == set(slots))
        for slot, axes in schema.items():
            if _AXES.get(form.name) in axes:
                found[f"{site}/{slot}"] = axes.index(_AXES[form.name])
    return found


def without_facts(edit: Edit, ids: Collection[str]) -> Edit:
    """The edit as it is without some of its facts; the others act as before, to the bit.

    Args:
        edit: of a method whose rows each serve one fact.
        ids: of the facts that go; not all.

    Returns:
        Another edit: brick, hash, facts, owners and keys are those of the facts that stay.

    Raises:
        UnknownNameError: if it teaches no fact of that name.
        EditError: if its rows serve several facts, or nothing would be left.
    """
    record, known = edit.record, [fact.id for fact in edit.record.facts]
    for one in ids:
        if one not in known:
            raise UnknownNameError(f"fact of {edit.label}", one, known)
    if not ids:
        return edit
    if record.owners is None:
        raise EditError(
            f"{_some(ids)} shall be taken out of {edit.label}, but what {record.method} writes "
            f"serves its {len(known)} facts together; revoke the whole edit, and plan it again "
            "without that fact."
        )
    stay = [number for number, one in enumerate(known) if one not in ids]
    place = {number: new for new, number in enumerate(stay)}
    rows = [row for row, owner in enumerate(record.owners) if owner in place]
    if not rows:
        raise EditError(
            f"{_some(ids)} shall be taken out of {edit.label}, which does nothing for other "
            "facts; revoke the whole edit."
        )
    facts = tuple(record.facts[number] for number in stay)
    owners = tuple(place[record.owners[row]] for row in rows)
    return Edit(
        _without(edit, ids, rows, stay),
        record.model_copy(update={"facts": facts, "owners": owners}),
        {site: keys[stay] for site, keys in edit.keys.items()},
        edit.id,
    )


def _without(edit: Edit, ids: Collection[str], rows: list[int], stay: list[int]) -> Brick:
    axes, spec = row_axes(edit.brick), edit.brick.spec
    tensors = {
        name: _selected(tensor, axes[name], rows) if name in axes else tensor
        for name, tensor in edit.brick.tensors.items()
    }
    owners, lineage = edit.record.owners, spec.lineage
    assert owners is not None
    options = spec.options
    if spec.form == "lora":
        options = _rescaled(spec.options, before=len(owners), after=len(rows))
    before = lineage.arguments.get("without", [])
    gone = [*(before if isinstance(before, list) else []), *sorted(ids)]
    changes = {
        "options": options,
        "function": function_of([edit.record.facts[number] for number in stay]),
        "lineage": lineage.model_copy(
            update={
                "arguments": {**lineage.arguments, "without": gone},
                "data": f"{len(stay)} facts",
            }
        ),
        "peft": None,
    }
    return Brick(spec.model_copy(update=changes), tensors)


def _selected(tensor: Tensor, axis: int, rows: list[int]) -> Tensor:
    return tensor.index_select(axis, torch.tensor(rows, device=tensor.device))


def _rescaled(options: Mapping[str, JsonValue], *, before: int, after: int) -> dict[str, JsonValue]:
    """Options under which ranks that are fewer are scaled as they were."""
    old = LoraOptions.model_validate(options)
    changed: dict[str, JsonValue] = {"alpha": _alpha(old.alpha, old.rslora, before, after)}
    if old.alphas:
        changed["alphas"] = {
            site: _alpha(alpha, old.rslora, before, after) for site, alpha in old.alphas.items()
        }
    return {**options, **changed}


def _alpha(alpha: float, rslora: bool, before: int, after: int) -> float:
    def scaling(alpha: float, rank: int) -> float:
        return LoraOptions(alpha=alpha, rslora=rslora).scaling("", rank)

    wanted = scaling(alpha, before)
    found = wanted * (math.sqrt(after) if rslora else after)
    # The product is rounded, and so is the quotient: a neighbour may be what gives equal bits.
    near = (found, math.nextafter(found, math.inf), math.nextafter(found, -math.inf))
    return next((one for one in near if scaling(one, after) == wanted), found)


def _some(ids: Collection[str]) -> str:
    return f"the fact {next(iter(ids))!r}" if len(ids) == 1 else f"{len(ids)} facts"
