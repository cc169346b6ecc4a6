"""A recipe for merging whole models: mergekit's YAML as it is, and a few keys more.

Keys that mergekit would pass over in silence are refused here, with the nearest known ones.
Ours beyond mergekit: ``seed``, and ``statistics`` beside a ``model``.
"""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from brickwork.combine.document import read_document
from brickwork.combine.method import Parameter
from brickwork.combine.methods import methods
from brickwork.combine.parameters import Setting, Settings, parse_setting, read_values
from brickwork.combine.plan import ModelRef
from brickwork.combine.reference import parse_reference
from brickwork.errors import ConfigurationError, listed

DTYPE_NAMES = ("bfloat16", "float16", "float32", "float64")


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def _dtype(written: Any) -> Any:
    name = written.removeprefix("torch.") if isinstance(written, str) else written
    if name is not None and name not in DTYPE_NAMES:
        raise ValueError(f"must be one of {', '.join(DTYPE_NAMES)}")
    return name


def _tokenizer_source(written: Any) -> Any:
    return written if written in (None, "union", "base") else parse_reference(written)


def _settings(written: Any) -> Any:
    return {} if written is None else written


Ref = Annotated[ModelRef, BeforeValidator(parse_reference)]
Parameters = Annotated[
    dict[str, Annotated[Setting, BeforeValidator(parse_setting)]], BeforeValidator(_settings)
]
DtypeName = Annotated[str | None, BeforeValidator(_dtype)]
TokenizerSource = Annotated[ModelRef | Literal["union", "base"], BeforeValidator(_tokenizer_source)]


class ModelInput(_Document):
    """A whole model that takes part."""

    model: Ref
    parameters: Parameters = Field(default_factory=dict)
    statistics: Path | None = None


class SliceInput(_Document):
    """Some layers of a model: ``layer_range`` is the first, and the one after the last."""

    model: Ref
    layer_range: tuple[NonNegativeInt, NonNegativeInt]
    parameters: Parameters = Field(default_factory=dict)
    statistics: Path | None = None


class OutputSlice(_Document):
    """Layers of the output that follow each other, and what each is merged from."""

    sources: Annotated[tuple[SliceInput, ...], Field(min_length=1)]
    base_model: Ref | None = None
    residual_weight: float | None = None
    parameters: Parameters = Field(default_factory=dict)


class Module(_Document):
    """A part of the model with its own layers."""

    slices: tuple[OutputSlice, ...] | None = None
    models: tuple[ModelInput, ...] | None = None
    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_form(self) -> "Module":
        if bool(self.slices) == bool(self.models):
            raise ValueError("give either slices or models")
        return self


class ModelToken(_Document):
    """The embedding of another token, by its text or its number in a model's vocabulary."""

    kind: Literal["model_token"]
    model: Ref
    token_id: NonNegativeInt | None = None
    token: str | None = None

    @model_validator(mode="after")
    def _one_name(self) -> "ModelToken":
        if (self.token_id is None) == (self.token is None):
            raise ValueError("give either token_id or token")
        return self


class ZeroToken(_Document):
    """An embedding of zeros."""

    kind: Literal["zero"]


def _token_kind(written: Any) -> str:
    kind = written.get("kind") if isinstance(written, dict) else None
    return str(kind) if kind in ("model_token", "zero") else "model"


class TokenChoice(_Document):
    """Where a token's embedding comes from; ``force``: also for models that have the token."""

    source: (
        Annotated[
            Annotated[ModelToken, Tag("model_token")]
            | Annotated[ZeroToken, Tag("zero")]
            | Annotated[Ref, Tag("model")],
            Discriminator(_token_kind),
        ]
        | None
    ) = None
    force: bool = False


class TokenizerChoice(_Document):
    """The output's tokenizer."""

    source: TokenizerSource = "union"
    tokens: dict[str, TokenChoice] | None = None
    pad_to_multiple_of: PositiveInt | None = None


class Recipe(_Document):
    """How models become one; the keys mean what they mean to mergekit."""

    merge_method: str
    models: tuple[ModelInput, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    modules: dict[str, Module] | None = None
    base_model: Ref | None = None
    dtype: DtypeName = None
    out_dtype: DtypeName = None
    tokenizer_source: TokenizerSource | None = None
    tokenizer: TokenizerChoice | None = None
    chat_template: str | None = None
    parameters: Parameters = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _one_of_each(self) -> "Recipe":
        given = [form for form in ("models", "slices", "modules") if getattr(self, form)]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of models, slices and modules, not "
                + (" and ".join(given) or "none of them")
            )
        if self.tokenizer and self.tokenizer_source:
            raise ValueError("give either tokenizer_source or tokenizer")
        return self

    @property
    def vocabulary(self) -> TokenizerChoice | None:
        """The output's tokenizer; None: the recipe does not say, so vocabularies must agree."""
        if self.tokenizer_source is not None:
            return TokenizerChoice(source=self.tokenizer_source)
        return self.tokenizer

    def modules_or_self(self) -> "dict[str, Module | Recipe]":
        """Whatever lists models or slices, by its path in the document."""
        if self.modules:
            return {f"modules.{name}": module for name, module in self.modules.items()}
        return {"": self}

    def inputs(self) -> dict[str, ModelInput | SliceInput]:
        """Every mention of a model beside the bases, by its path in the document, in order."""
        found: dict[str, ModelInput | SliceInput] = {}
        for path, part in self.modules_or_self().items():
            for number, model in enumerate(part.models or ()):
                found[_join(path, "models", number)] = model
            for number, piece in enumerate(part.slices or ()):
                for place, source in enumerate(piece.sources):
                    found[_join(path, "slices", number, "sources", place)] = source
        return found

    def refs(self) -> tuple[ModelRef, ...]:
        """The models that take part, each once: the base first, then in the recipe's order."""
        bases = [
            piece.base_model
            for part in self.modules_or_self().values()
            for piece in part.slices or ()
        ]
        mentioned = [self.base_model, *(given.model for given in self.inputs().values()), *bases]
        return tuple(dict.fromkeys(ref for ref in mentioned if ref is not None))

    def settings(self) -> dict[str, Settings]:
        """All settings of parameters, by the path of what they are written at."""
        found: dict[str, Settings] = {"": self.parameters}
        for path, part in self.modules_or_self().items():
            found[path] = part.parameters
            for number, piece in enumerate(part.slices or ()):
                found[_join(path, "slices", number)] = piece.parameters
        return found | {path: given.parameters for path, given in self.inputs().items()}


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        ConfigurationError: with everything that is wrong with it.
    """
    return parse_recipe(read_document(path), str(path))


def parse_recipe(document: Any, where: str = "the recipe") -> Recipe:
    """A recipe from parsed YAML.

    Raises:
        ConfigurationError: naming every key that is missing, unknown or of the wrong kind, every
            parameter that no method knows, and every value that is none.
    """
    for key, kind in _OTHER_KINDS.items():
        if isinstance(document, dict) and key in document:
            raise ConfigurationError(
                f"{where} has the key {key!r}, so it is {kind}, not a recipe for merging whole "
                "models; read it as what it is."
            )
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        problems = _complaints(error)
    else:
        problems = list(_bad_settings(recipe))
    if problems:
        raise ConfigurationError(f"{where} is not valid:{listed(problems, 20)}")
    return recipe


def recipe_notes(recipe: Recipe) -> list[str]:
    """What the recipe says that has no effect, one line each."""
    known = {parameter.name for parameter in methods()[recipe.merge_method].parameters}
    idle: dict[str, list[str]] = {}
    for path, settings in recipe.settings().items():
        for name in settings.keys() - known:
            idle.setdefault(name, []).append(path or "the top level")
    notes = [
        f"{recipe.merge_method} has no parameter {name!r}, so its settings have no effect "
        f"({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''})"
        for name, paths in sorted(idle.items())
    ]
    parts = recipe.modules_or_self().values()
    if any(s.residual_weight is not None for p in parts for s in p.slices or ()):
        notes.append("residual_weight has no effect; mergekit reads it, too, but never uses it")
    return notes


_OTHER_KINDS = {
    "experts": "a recipe for a mixture of experts",
    "bricks": "a recipe for merging bricks",
    "genome": "a search over recipes",
}
_LEVELS: dict[str, type[BaseModel]] = {
    "models": ModelInput, "slices": OutputSlice, "sources": SliceInput, "modules": Module,
    "tokenizer": TokenizerChoice, "tokens": TokenChoice, "model_token": ModelToken,
    "zero": ZeroToken,
}  # fmt: skip


def _complaints(error: ValidationError) -> list[str]:
    items = error.errors()
    # A tuple whose only item is wrong counts as empty, too; one complaint about it is enough.
    deeper = {item["loc"][:n] for item in items for n in range(len(item["loc"]))}
    return [_complaint(i) for i in items if i["type"] != "too_short" or i["loc"] not in deeper]


def _complaint(item: Any) -> str:
    *above, key = item["loc"] or ("",)
    path = _join(*item["loc"]) or "the document"
    if item["type"] == "extra_forbidden":
        level = next((_LEVELS[step] for step in reversed(above) if step in _LEVELS), Recipe)
        return f"{path}: there is no such key{_nearest(str(key), level.model_fields)}"
    message = item["msg"].removeprefix("Value error, ")
    found = item["input"]
    shown = repr(found) if isinstance(found, str | int | float) and key else ""
    return f"{path}: {message}" + (f", not {shown}" if 0 < len(shown) <= 60 else "")


def _bad_settings(recipe: Recipe) -> Iterator[str]:
    """Settings of parameters that no method has, or with values that this method cannot take."""
    if recipe.merge_method not in methods():
        yield (
            f"merge_method: no merge method is called {recipe.merge_method!r}"
            + _nearest(recipe.merge_method, methods())
        )
        return
    row = methods()[recipe.merge_method]
    own = {parameter.name: parameter for parameter in row.parameters}
    foreign = {p.name for other in methods().values() for p in other.parameters}
    written = [
        (_join(path, "parameters", name), name, setting)
        for path, settings in recipe.settings().items()
        for name, setting in settings.items()
    ]
    for path, name, setting in written:
        if name in own:
            yield from _bad_values(path, setting, own[name])
        elif name not in foreign:
            yield f"{path}: {row.name} has no such parameter{_nearest(name, own)}"


def _bad_values(path: str, setting: Setting, parameter: Parameter) -> Iterator[str]:
    try:
        for condition in setting:
            read_values(condition.values, parameter)
    except ValueError as error:
        yield f"{path}: {error}"


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known: {', '.join(names)}" if names else "; it has none"


def _join(*steps: str | int) -> str:
    return ".".join(str(step) for step in steps if step != "")
