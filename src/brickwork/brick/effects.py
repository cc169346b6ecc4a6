"""How the tensors of a brick act on a base: the words in which forms and models meet.

A form translates a brick into effects; the model and the runtime know effects and nothing of
forms. ``weight`` is the strength a configuration gives to a brick: 1 as built, 0 nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Add:
    """``y + weight * scaling * B A x`` at a linear map."""

    site: str
    A: Float[Tensor, "rank in"]
    B: Float[Tensor, "out rank"]
    scaling: float


@dataclass(frozen=True)
class Scale:
    """``(1 + weight * (factor - 1))`` times the output, or the input, of a linear map."""

    site: str
    factor: Float[Tensor, " axis"]
    on: Literal["out", "in"]


@dataclass(frozen=True)
class Shift:
    """``y + weight * vector`` at a linear map, a norm or the residual stream after a block."""

    site: str
    vector: Float[Tensor, " out"]


@dataclass(frozen=True)
class Prefix:
    """Keys and values that every token attends to in one attention; only whole (weight 1)."""

    site: str
    key: Float[Tensor, "kv_heads tokens head_dim"]
    value: Float[Tensor, "kv_heads tokens head_dim"]


@dataclass(frozen=True)
class Embed:
    """Input vectors before the tokens of the prompt; only whole (weight 1)."""

    site: str
    vectors: Float[Tensor, "tokens hidden"]


Effect = Add | Scale | Shift | Prefix | Embed


@dataclass(frozen=True)
class EffectRow:
    """One row of EFFECTS: what the effect does, and whether a weight other than 1 has a meaning."""

    meaning: str
    weighted: bool
    primitive: type | None


# A form may name an effect whose primitive is None; such a brick can be stored, checked and
# listed, and every attempt to run it is refused.
EFFECTS: Mapping[str, EffectRow] = {
    "add": EffectRow("low-rank term added to a linear map", True, Add),
    "scale": EffectRow("factor on the inputs or outputs of a linear map", True, Scale),
    "shift": EffectRow("vector added to an output", True, Shift),
    "prefix": EffectRow("keys and values before those of the context", False, Prefix),
    "embed": EffectRow("input vectors before those of the prompt", False, Embed),
    "mask": EffectRow("units of the base switched off", False, None),
    "replace": EffectRow("weights or a module of the base exchanged", False, None),
    "insert": EffectRow("a block added between blocks", False, None),
}
