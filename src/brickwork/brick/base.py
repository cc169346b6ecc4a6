"""The base model as bricks see it: its fingerprint and the sites where a brick can sit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

SiteKind = Literal["linear", "norm", "embedding", "attention", "block", "experts"]


class Fingerprint(BaseModel):
    """What identifies a base. All hashes are sha256 in hex; ``name`` is a hint, never compared.

    ``weights`` is taken over values rounded to bfloat16, so that a checkpoint is the same base in
    float32 and in bfloat16 (in float16 only if its values survive that). ``tokenizer`` is None
    where a base has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    architecture: str
    shapes: str
    weights: str
    tokenizer: str | None = None


@dataclass(frozen=True)
class Site:
    """A module of the base where a brick can sit.

    Attributes:
        path: module path in the base, ``model.layers.0.self_attn.q_proj``.
        address: the same place in words that all families share, ``layers.0.attn.q``.
        kind: what can be plugged here.
        sizes: named axis lengths: ``in`` and ``out`` for a linear map, ``out`` for a norm,
            ``hidden`` for a block or embedding, ``kv_heads`` and ``head_dim`` for attention,
            ``in`` for experts: their neurons, all experts one after the other.
        layer: number of the decoder block, None outside the blocks.
    """

    path: str
    address: str
    kind: SiteKind
    sizes: Mapping[str, int]
    layer: int | None = None


@dataclass(frozen=True)
class Base:
    """A base model without its weights: all that is needed to tell whether a brick fits."""

    fingerprint: Fingerprint
    sites: Mapping[str, Site]

    def of_kind(self, kind: SiteKind) -> list[Site]:
        """The sites of one kind, in the model's order."""
        return [site for site in self.sites.values() if site.kind == kind]
