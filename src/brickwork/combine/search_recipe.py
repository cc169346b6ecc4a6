"""The document that ``brickwork search`` reads: what is combined, and what is searched for."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from brickwork.brick.spec import Finite, explain
from brickwork.combine.document import read_document
from brickwork.errors import ConfigurationError

Sampler = Literal["nsga2", "tpe", "random"]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LearnSpec(_Document):
    """One weight for each brick, learned from examples."""

    by: Literal["lorahub", "loss", "entropy"] = "lorahub"
    """Without gradients, by the gradient of the loss, or by that of the entropy."""
    layerwise: bool = False
    """A weight for each layer of each brick; not for lorahub."""
    steps: int = Field(40, ge=1, le=100_000)
    bound: Finite = Field(1.5, gt=0)
    rate: Finite = Field(0.05, gt=0)
    regularisation: Finite = Field(0.05, ge=0)

    @model_validator(mode="after")
    def _few_numbers(self) -> "LearnSpec":
        if self.layerwise and self.by == "lorahub":
            raise ValueError(
                "lorahub searches without gradients, for which a weight in each layer is too many; "
                "say `by: loss` or `by: entropy`"
            )
        return self


class SearchSpec(_Document):
    """A search over methods and their parameters."""

    methods: tuple[str, ...] = Field(min_length=1)
    parameters: dict[str, Any] = {}
    """For each parameter a range [low, high], a list of choices, or one value."""
    blocks: int = Field(1, ge=1, le=1000)
    """Of how many blocks of layers each has weights of its own."""
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Ranks of the combined LoRA to choose among; none: what the parents need together."""
    objectives: tuple[str, ...] = Field(("loss",), min_length=1)
    """``loss``, ``loss:FUNCTIONALITY`` or ``size``; each is to be small."""
    trials: int = Field(60, ge=1, le=1_000_000)
    population: int = Field(12, ge=2, le=10_000)
    sampler: Sampler = "nsga2"


class SearchRecipe(_Document):
    """What is combined, and how the combination is found."""

    base: str = Field("reference", min_length=1)
    bricks: tuple[str, ...] = ()
    """Names in the store."""
    models: tuple[str, ...] = ()
    """Whole models of one shape, fine-tuned from the base."""
    learn: LearnSpec | None = None
    search: SearchSpec | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> "SearchRecipe":
        if bool(self.bricks) == bool(self.models):
            raise ValueError("name either `bricks` or `models`")
        if (self.learn is None) == (self.search is None):
            raise ValueError("say either `learn` or `search`")
        if self.learn is not None and self.models:
            raise ValueError("coefficients are learned for `bricks`; for `models` say `search`")
        if self.search is not None and self.search.ranks and self.models:
            raise ValueError("only combined bricks have a rank; leave `ranks` out for `models`")
        names = self.bricks or self.models
        if len(set(names)) != len(names):
            raise ValueError("a brick or model is named twice")
        return self


def parse_search_recipe(document: Any, where: str = "the recipe") -> SearchRecipe:
    """A recipe from parsed YAML.

    Raises:
        ConfigurationError: naming every field that is missing, unknown or out of range.
    """
    try:
        return SearchRecipe.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"{where} is not valid: {explain(error)}.") from None


def read_search_recipe(path: Path) -> SearchRecipe:
    """The recipe in a YAML file."""
    return parse_search_recipe(read_document(path), str(path))
