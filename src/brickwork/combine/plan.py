"""What a merge of whole models will do, tensor by tensor, before any weight is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class ModelRef:
    """A model as a recipe names it: ``model``, ``model@revision``, ``model+lora``.

    Attributes:
        model: a folder, a Hub id, or ``reference``.
        revision: branch, tag or commit of a Hub id.
        lora: an adapter added to it: a folder or a Hub id; empty: none.
        lora_revision: of the adapter.
    """

    model: str
    revision: str | None = None
    lora: str = ""
    lora_revision: str | None = None

    def __str__(self) -> str:
        """As a recipe writes it.

        >>> str(ModelRef("org/base", "v2", "adapter"))
        'org/base@v2+adapter'
        """
        model = f"{self.model}@{self.revision}" if self.revision else self.model
        if not self.lora:
            return model
        return f"{model}+{self.lora}" + (f"@{self.lora_revision}" if self.lora_revision else "")


@dataclass(frozen=True)
class Operand:
    """One tensor of one model.

    Attributes:
        ref: the model.
        tensor: the tensor's name in that model.
        key: names it in random streams and errors; no two operands of a tensor have the same.
        statistics: the folder of the model's statistics, for methods that weigh by them.
    """

    ref: ModelRef
    tensor: str
    key: str
    statistics: Path | None = None


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor of the output comes to be.

    Attributes:
        name: in the output.
        shape: in the output.
        dtype: in the output.
        method: a row of METHODS, or ``copy``: the first operand, bit for bit if it has ``dtype``
            already, else rounded to ``cast`` and then to ``dtype``; if there are more operands,
            all must be equal to the byte.
        operands: what it is merged from, without the base.
        base: what they are compared with; None if the method has none.
        parameters: the method's, complete; those of the scope ``operand`` as tuples.
        cast: what operands are rounded to before the arithmetic; None: nothing.
        vocabulary: whether its first axis is the vocabulary, which a tokenizer may rearrange.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    method: str
    operands: tuple[Operand, ...]
    base: Operand | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cast: torch.dtype | None = None
    vocabulary: bool = False


@dataclass(frozen=True)
class MergePlan:
    """A whole merge.

    Attributes:
        tensors: in the order in which they are written.
        folders: where each model's checkpoint lies.
        config: the output's ``config.json``.
        donor: the model whose other files (generation configuration, tokenizer) are taken over.
        seed: of every random choice.
        notes: what a user should know: what was decided or passed over, one line each.
    """

    tensors: Sequence[TensorPlan]
    folders: Mapping[ModelRef, Path]
    config: Mapping[str, Any]
    donor: ModelRef
    seed: int = 0
    notes: Sequence[str] = ()
