"""A recipe for one mixture of experts out of dense models: mergekit-moe's YAML as it is.

Keys that mergekit passes over in silence are refused. Ours beyond mergekit: ``seed``.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from brickwork.brick.spec import Finite, explain
from brickwork.combine.document import read_document
from brickwork.combine.plan import ModelRef
from brickwork.combine.recipe import DtypeName, Ref
from brickwork.errors import ConfigurationError

GateMode = Literal[
    "hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"
]  # fmt: skip
_RANDOM = ("random", "uniform_random")
Prompts = tuple[Annotated[str, Field(min_length=1)], ...]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Expert(_Document):
    """A model whose FFNs become one expert of every layer, and what it is to be chosen for."""

    source_model: Ref
    positive_prompts: Prompts | None = None
    negative_prompts: Prompts | None = None
    noise_scale: Finite | None = Field(None, ge=0)
    residual_scale: Finite | None = None


class MixtureRecipe(_Document):
    """How dense models become one mixture; the keys mean what they mean to mergekit-moe.

    ``gate_mode``: what prompts are known by: ``hidden`` (or ``hidden_last``): the state of their
    last token before each layer; ``hidden_avg``: the mean over their tokens; ``cheap_embed``: the
    sum of their embeddings; ``random``, ``uniform_random``: nothing, routers are random.
    """

    base_model: Ref
    experts: Annotated[tuple[Expert, ...], Field(min_length=1)]
    gate_mode: GateMode = "hidden"
    dtype: DtypeName = None
    experts_per_token: PositiveInt = 2
    shared_experts: tuple[Expert, ...] = ()
    architecture: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _sound(self) -> "MixtureRecipe":
        count = len(self.experts)
        if self.experts_per_token > count:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}, but there are {count} experts"
            )
        if self.random:
            return self
        bare = [str(expert.source_model) for expert in self.every if not expert.positive_prompts]
        if bare:
            raise ValueError(
                f"gate_mode {self.gate_mode} needs positive_prompts for every expert, and "
                f"{', '.join(bare)} has none; add them, or set gate_mode: random"
            )
        asked = {(expert.positive_prompts, expert.negative_prompts) for expert in self.experts}
        if count > 1 and len(asked) == 1:
            raise ValueError(
                "all experts have the same prompts, so that the router could not tell them apart; "
                "say for each what it is to be chosen for"
            )
        return self

    @property
    def random(self) -> bool:
        """Whether routers are random, so that prompts have no part in them."""
        return self.gate_mode in _RANDOM

    @property
    def every(self) -> tuple[Expert, ...]:
        """The routed experts, then the shared ones."""
        return *self.experts, *self.shared_experts

    def refs(self) -> tuple[ModelRef, ...]:
        """The models that take part, each once, the base first."""
        return tuple(dict.fromkeys((self.base_model, *(e.source_model for e in self.every))))


def read_mixture(path: Path) -> MixtureRecipe:
    """The recipe in a YAML file.

    Raises:
        ConfigurationError: with everything that is wrong with it.
    """
    return parse_mixture(read_document(path), str(path))


def parse_mixture(document: Any, where: str = "the recipe") -> MixtureRecipe:
    """A recipe from parsed YAML.

    Raises:
        ConfigurationError: naming every key that is missing, unknown or of the wrong kind.
    """
    if isinstance(document, dict) and document.get("shared_experts", ()) is None:
        document = document | {"shared_experts": ()}
    try:
        return MixtureRecipe.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"{where} is not valid: {explain(error)}.") from None
