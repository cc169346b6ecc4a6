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


@dataclass(frozen=True)
class Mask:
    """Inputs of a linear map, or neurons of experts, that are kept (1) or silent (0).

    Where several masks of a row name one site, what any of them keeps is kept.
    """

    site: str
    keep: Float[Tensor, " in"]


@dataclass(frozen=True)
class Skip:
    """This share, times the weight, of what a block does is left out; 1 leaves the block out.

    Where several skips of a row name one block, each takes its share of what the others leave.
    """

    site: str
    share: Float[Tensor, " one"]


@dataclass(frozen=True)
class Exit:
    """A token leaves after this block if the likeliest next one has at least this probability."""

    site: str
    confidence: Float[Tensor, " one"]


@dataclass(frozen=True)
class Route:
    """Neurons of an FFN that are chosen by its input; the site is its output projection.

    Attributes:
        tensors: the slots of one kind of router, by name.
        density: share of the neurons that are kept.
        level: whether every token has its own, or the whole prompt one choice.
    """

    site: str
    tensors: Mapping[str, Tensor]
    density: float
    level: Literal["token", "prompt"]


@dataclass(frozen=True)
class Patch:
    """``y + weight * relu(y K^T + b) V`` on what a block hands on: added neurons."""

    site: str
    key: Float[Tensor, "neurons hidden"]
    bias: Float[Tensor, " neurons"]
    value: Float[Tensor, "neurons hidden"]


@dataclass(frozen=True)
class Codebook:
    """States that come near a key change what the block hands on; all others pass as they are.

    The state that a block reads is compared, token by token, with every key by their Euclidean
    distance, after the projection if there is one. Where the nearest key, of all the codebooks of
    a row at the site without a projection or of one with, is no farther than its radius, its value
    takes the place of what the block hands on (by the share ``weight``), or ``weight`` times the
    value is added to it. Of several such keys the one counts that is nearest as a share of its
    radius.

    Attributes:
        projection: to the space of the keys; None: they are states themselves.
        replaces: whether values take the place of states, or are added.
    """

    site: str
    key: Float[Tensor, "entries width"]
    value: Float[Tensor, "entries hidden"]
    radius: Float[Tensor, " entries"]
    projection: Float[Tensor, "width hidden"] | None
    replaces: bool


Effect = Add | Scale | Shift | Prefix | Embed | Mask | Skip | Exit | Route | Patch | Codebook


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
    "mask": EffectRow("units of the base switched off", False, Mask),
    "skip": EffectRow("blocks left out, whole or in part", True, Skip),
    "exit": EffectRow("tokens that leave before the last block", False, Exit),
    "route": EffectRow("units chosen for each token or prompt", False, Route),
    "patch": EffectRow("neurons added after a block", True, Patch),
    "codebook": EffectRow("states changed where they come near a key", True, Codebook),
    "replace": EffectRow("weights or a module of the base exchanged", False, None),
    "insert": EffectRow("a block added between blocks", False, None),
    "none": EffectRow("nothing: it is read by whoever trains", False, None),
}
