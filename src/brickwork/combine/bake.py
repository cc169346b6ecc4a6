"""Bricks written into the weights of a checkpoint, which plain transformers then loads.

Every weight becomes ``F_out W F_in + sum of scaling * B A``, as the runtime computes it from
bricks, summed in float32 and rounded once; what no brick changes is copied to the byte.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from brickwork.brick.brick import Brick
from brickwork.brick.effects import Add, Scale
from brickwork.brick.forms import effects_of
from brickwork.combine.checkpoints import open_checkpoint
from brickwork.combine.engine import MergeSummary, write_merge
from brickwork.combine.lora_source import LowRank, stored_name
from brickwork.combine.operands import Source
from brickwork.combine.plan import MergePlan, ModelRef, Operand, TensorPlan
from brickwork.combine.sources import COPY, Extras
from brickwork.errors import MergeError, listed
from brickwork.model.load import outline_model
from brickwork.model.shards import Held


@dataclass(eq=False)
class _Change:
    """What bricks do to one tensor of the checkpoint, seen as a matrix."""

    updates: list[LowRank] = field(default_factory=list)
    rows: Float[Tensor, " rows"] | None = None
    columns: Float[Tensor, " columns"] | None = None

    def scale(self, factor: Float[Tensor, " axis"], *, rows: bool) -> None:
        """Take in a factor on the rows, or on the columns."""
        before, factor = self.rows if rows else self.columns, factor.to(torch.float32)
        product = factor if before is None else before * factor
        if rows:
            self.rows = product
        else:
            self.columns = product


class _Baked:
    """Rows of a weight with all that bricks do to it."""

    def __init__(self, weight: Source, change: _Change) -> None:
        self._weight, self._change = weight, change
        self.shape = weight.shape

    def read(self, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """See ``Source.read``."""
        rows, change = self._weight.read(start, stop), self._change
        if change.rows is not None:
            rows = rows * change.rows[start:stop, None].to(rows.dtype)
        if change.columns is not None:
            rows = rows * change.columns.to(rows.dtype)
        for update in change.updates:
            left, right = update.left[start:stop].to(rows.dtype), update.right.to(rows.dtype)
            rows = torch.addmm(rows, left, right, alpha=update.scaling)
        return rows


def bake_bricks(
    checkpoint: Path,
    bricks: Sequence[Brick],
    out: Path,
    *,
    name: str = "",
    files: Mapping[str, bytes] | None = None,
    advance: Callable[[int], None] = lambda _bytes: None,
) -> MergeSummary:
    """Write the checkpoint with the bricks in its weights as a new one: all of it, or nothing.

    It is read and written in pieces, so memory does not grow with the model. Configuration,
    tokenizer and the dtype of each tensor stay those of the checkpoint.

    Args:
        checkpoint: the folder of the base that the bricks are for.
        bricks: of the forms ``lora`` and ``ia3``, at full weight; at least one.
        out: where; there must be nothing yet.
        name: what the base is called in the record and in errors; empty: as its folder.
        files: to be written beside the weights.
        advance: told the bytes of output that have just been finished.

    Raises:
        MergeError: if a brick is no change of weights, or changes one that is not stored for
            itself; or the place is taken or too small.
    """
    require_bakeable(bricks)
    ref = ModelRef(name or checkpoint.name)
    source = open_checkpoint(ref, checkpoint)
    if source.quantised:
        raise MergeError(
            f"bricks were to be baked into {ref}, whose weights are no plain numbers "
            f"({source.quantised}); bake into the checkpoint that it was quantised from."
        )
    changes = _changes(outline_model(str(checkpoint)).model, bricks, source.held, str(ref))
    plan = MergePlan(
        [
            TensorPlan(name, held.shape, held.dtype, COPY, (Operand(ref, name, str(ref)),))
            for name, held in source.held.items()
        ],
        {ref: checkpoint},
        source.config,
        ref,
    )
    extras = Extras(
        rearranged=partial(_changed, changes),
        files=files or {},
        record={"operation": "bake", "bricks": [_said(brick) for brick in bricks]},
    )
    return write_merge(plan, out, extras=extras, advance=advance)


def require_bakeable(bricks: Sequence[Brick]) -> None:
    """Refuse bricks that are no change of weights, each by its name.

    Raises:
        MergeError: if there is such a brick, or none at all.
    """
    if not bricks:
        raise MergeError("bricks were to be baked, but there are none; name at least one.")
    others = [
        f"{brick.spec.name} ({brick.hash[:8]}) is of the form {brick.spec.form}"
        for brick in bricks
        if not all(isinstance(effect, Add | Scale) for effect in effects_of(brick))
    ]
    if others:
        raise MergeError(
            f"{len(others)} of {len(bricks)} bricks act on states and are no change of weights, so "
            f"they cannot be baked:{listed(others)}\nleave them out, or run them as bricks."
        )


def _changed(
    changes: Mapping[str, _Change], tensor: TensorPlan, sources: Mapping[Operand, Source]
) -> Mapping[Operand, Source]:
    change = changes.get(tensor.name)
    if change is None:
        return sources
    return {operand: _Baked(source, change) for operand, source in sources.items()}


def _changes(
    outline: PreTrainedModel, bricks: Sequence[Brick], held: Mapping[str, Held], model: str
) -> dict[str, _Change]:
    """What bricks do to the tensors of a checkpoint, by their names there."""
    found: dict[str, _Change] = {}
    uses = Counter(id(p) for _, p in outline.named_parameters(remove_duplicate=False))

    def change(parameter: str) -> _Change:
        shapes = {name: one.shape for name, one in held.items()}
        name = stored_name(parameter, f"{outline.base_model_prefix}.", shapes)
        shape = tuple(outline.get_parameter(parameter).shape)
        if uses[id(outline.get_parameter(parameter))] > 1:
            raise MergeError(
                f"bricks change {parameter} of {model}, which is tied to another weight and would "
                "change that, too; leave these bricks out, or untie the weights first."
            )
        if name is None or shapes[name] != shape:
            there = "no such tensor" if name is None else f"one of the shape {list(shapes[name])}"
            raise MergeError(
                f"bricks change {parameter} of {model}, {list(shape)}, and its checkpoint has "
                f"{there}; save the model again with this version of transformers."
            )
        return found.setdefault(name, _Change())

    for brick in bricks:
        for effect in effects_of(brick):
            assert isinstance(effect, Add | Scale)
            module = outline.get_submodule(effect.site)
            turned = not isinstance(module, nn.Linear)  # else it is a Conv1D
            weight = change(f"{effect.site}.weight")
            if isinstance(effect, Add):
                a, b = effect.A.to(torch.float32), effect.B.to(torch.float32)
                weight.updates.append(LowRank(a, b, effect.scaling, turned))
                continue
            weight.scale(effect.factor, rows=(effect.on == "out") != turned)
            if effect.on == "out" and getattr(module, "bias", None) is not None:
                change(f"{effect.site}.bias").scale(effect.factor, rows=False)
    return found


def _said(brick: Brick) -> dict[str, Any]:
    return {"name": brick.spec.name, "form": brick.spec.form, "hash": brick.hash}
