"""Where a family of models keeps its parts: one row per family, as data (``architectures/*.toml``).

A *role* is a part in words that all families share; a row maps each role to a module path. The
words are below, under ``ROLES``. An outside package adds rows through the entry-point group
``brickwork.architectures``: each entry is an ``Architecture``, say from ``read_architecture``.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from brickwork.brick.spec import explain
from brickwork.errors import ModelError, UnknownNameError

# The words of addresses; a row has those that its family has. ``unembed`` is in no row: every
# model says itself where it is (``get_output_embeddings``).
ROLES: Mapping[str, str] = {
    "embed": "input embedding",
    "positions": "learned positions",
    "unembed": "linear map to the vocabulary",
    "final_norm": "norm before the unembedding",
    "block": "decoder block; its address is the layer alone, layers.3",
    "attn": "attention",
    "attn.q": "queries",
    "attn.k": "keys",
    "attn.v": "values",
    "attn.qkv": "queries, keys and values in one map",
    "attn.o": "output of attention",
    "mlp": "FFN, where it is a module of its own",
    "mlp.gate": "gate of a gated FFN",
    "mlp.up": "input projection of any FFN",
    "mlp.gate_up": "gate and input projection in one map",
    "mlp.down": "output projection of any FFN",
    "mlp.router": "router of an MoE",
    "mlp.experts": "experts of an MoE",
    "norms.attn": "norm before attention",
    "norms.attn_out": "norm after attention",
    "norms.mlp": "norm before the FFN",
    "norms.mlp_out": "norm after the FFN",
    "norms.q": "norm of the queries",
    "norms.k": "norm of the keys",
}

# Which map holds a role that has no module of its own, and its place there.
FUSED_ROLES: Mapping[str, tuple[str, int]] = {
    "attn.q": ("attn.qkv", 0),
    "attn.k": ("attn.qkv", 1),
    "attn.v": ("attn.qkv", 2),
    "mlp.gate": ("mlp.gate_up", 0),
    "mlp.up": ("mlp.gate_up", 1),
}

FfnForm = Literal["gated", "fused_gated", "vanilla", "moe_gated"]
FFN_ROLES: Mapping[FfnForm, tuple[str, ...]] = {
    "gated": ("mlp.gate", "mlp.up", "mlp.down"),
    "fused_gated": ("mlp.gate_up", "mlp.down"),
    "vanilla": ("mlp.up", "mlp.down"),
    "moe_gated": ("mlp.router", "mlp.experts"),
}


@dataclass(frozen=True)
class FfnRow:
    """One form that the FFN of a layer can have; ``activation`` is the module of its function."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    form: FfnForm
    activation: str


@dataclass(frozen=True)
class ExpertsRow:
    """Where an MoE keeps its experts: parameters with one matrix per expert on axis 0.

    Attributes:
        gate_up: parameter with axes ``experts 2*neurons hidden``, all gates before all ups.
        down: parameter with axes ``experts hidden neurons``.
        top_k: name of the configuration's number of experts per token.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    gate_up: str
    down: str
    top_k: str


@dataclass(frozen=True)
class Architecture:
    """Where one family keeps its parts.

    Attributes:
        model_type: the family's name in a model's ``config.json``.
        source: the paper.
        orientation: axes of a linear map's weight, ``out in`` (Linear) or ``in out`` (Conv1D).
        roles: role -> module path, with ``{layer}`` for the number of the block.
        ffn: forms of its FFNs; a layer has the first whose roles exist there.
        fused: how a fused map orders its outputs: ``stacked`` one role after the other, or
            ``interleaved`` head by head, each with its query, key and value.
        experts: where an MoE keeps its experts.
        norm_base: what a norm adds to its weight.
        embed_scaled: whether embeddings are multiplied by the root of the hidden size.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model_type: str
    source: str
    orientation: Literal["out in", "in out"]
    roles: Mapping[str, str]
    ffn: tuple[FfnRow, ...]
    fused: Mapping[str, Literal["stacked", "interleaved"]] = field(default_factory=dict)
    experts: ExpertsRow | None = None
    norm_base: float = 0.0
    embed_scaled: bool = False

    def path(self, role: str, layer: int | None = None) -> str | None:
        """The module path of a role in a layer; None if the family has no such module."""
        template = self.roles.get(role)
        return template and template.replace("{layer}", str(layer))

    @property
    def blocks(self) -> str:
        """The module path of the list of decoder blocks."""
        return self.roles["block"].partition(".{layer}")[0]


def read_architecture(file: Traversable) -> Architecture:
    """The row that a TOML file holds.

    Raises:
        ModelError: if it is not a valid row; names every field that is wrong.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
        row = TypeAdapter(Architecture).validate_python(document)
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{file.name} is not TOML: {error}.") from None
    except ValidationError as error:
        raise ModelError(f"{file.name} does not describe a family: {explain(error)}.") from None
    problems = _problems(row)
    if problems:
        raise ModelError(f"{file.name} does not describe a family: {'; '.join(problems)}.")
    return row


def _problems(row: Architecture) -> list[str]:
    """What is wrong with a row whose fields are all of the right type."""
    words = set(ROLES) - {"unembed"}
    found = [
        f"{role!r} is no role (roles: {', '.join(sorted(words))})"
        for role in sorted({*row.roles, *row.fused} - words)
    ]
    needed = {"block", *(role for ffn in row.ffn for role in FFN_ROLES[ffn.form])}
    found += [f"the role {role!r} is missing" for role in sorted(needed - set(row.roles))]
    fused = {container for container, _ in FUSED_ROLES.values()} & set(row.roles)
    if fused != set(row.fused):
        found.append(f"'fused' must say how {sorted(fused)} order their outputs, and no more")
    if row.experts is None and any(ffn.form == "moe_gated" for ffn in row.ffn):
        found.append("'experts' must say where the experts are")
    return found


@cache
def architectures() -> Mapping[str, Architecture]:
    """All rows by ``model_type``, those of installed packages included."""
    folder = files("brickwork.model") / "architectures"
    found: list[Any] = [read_architecture(file) for file in folder.iterdir()]
    found += [entry.load() for entry in entry_points(group="brickwork.architectures")]
    rows: dict[str, Architecture] = {}
    for row in sorted(found, key=lambda row: str(row.model_type)):
        if row.model_type in rows:
            raise ModelError(f"two rows describe the family {row.model_type!r}; remove one.")
        rows[row.model_type] = row
    return rows


def architecture_for(model_type: str) -> Architecture:
    """The row of a family.

    Raises:
        UnknownNameError: if no row describes it; lists the nearest names.
    """
    if model_type not in architectures():
        raise UnknownNameError("model family", model_type, architectures())
    return architectures()[model_type]
