"""What a row of METHODS says, what an edit method is given, and what it gives back."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor

from brickwork.model.load import LoadedModel
from brickwork.model.train import Encoded
from brickwork.update.words import EncodedFact, Place


@dataclass(frozen=True)
class EditSite:
    """Where an edit is made.

    Attributes:
        layers: ascending; a method that edits one layer takes the last.
        place: the token of the prompt whose states the edit reads and changes.
    """

    layers: tuple[int, ...]
    place: Place

    def __str__(self) -> str:
        return f"layers.{','.join(map(str, self.layers))}@{self.place}"


@dataclass(frozen=True, eq=False)
class Covariance:
    """What the output projection of a layer's FFN reads, over a corpus.

    Attributes:
        matrix: the mean of ``k k^T`` over the tokens, not centred, in float32.
        tokens: how many those were.
    """

    matrix: Float[Tensor, "neurons neurons"]
    tokens: int


@dataclass(frozen=True, eq=False)
class EditContext:
    """What a method works with. The model already runs the edits that act before this one.

    Attributes:
        loaded: the model; a method leaves it as it is, to the bit.
        site: where to edit.
        covariance: of the keys of a layer; None where no statistics were given.
        earlier: the keys of edits that act already, by the path of the linear map.
        corpus: texts that have nothing to do with the facts.
        training: facts to learn from, which are not edited.
        raw: whether prompts are given to the model without the chat template.
        seed: decides every random choice.
        advance: told the number of facts that have just been done.
    """

    loaded: LoadedModel
    site: EditSite
    covariance: Callable[[int], Covariance] | None = None
    earlier: Mapping[str, Float[Tensor, "keys in"]] = field(default_factory=dict)
    corpus: Sequence[Encoded] = ()
    training: Sequence[EncodedFact] = ()
    raw: bool = False
    seed: int = 0
    advance: Callable[[float], None] = lambda _facts: None


@dataclass(frozen=True, eq=False)
class Draft:
    """What a method makes of its facts: the tensors of one brick.

    Attributes:
        form: the brick's form.
        tensors: as ``<site>/<slot>``.
        options: of the form.
        owners: for each row of the tensors (a rank, a neuron, an entry of a codebook) the number
            of the fact that it is for, so that one fact can be taken out of many; None where a
            row serves several facts. It counts the facts that are taught: those without failures.
        keys: what the linear map at a site reads where the facts are recalled, a row for each
            fact that is taught; empty for methods without keys.
        failures: facts that could not be learned, by their number among all, and why.
    """

    form: str
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    owners: tuple[int, ...] | None = None
    keys: Mapping[str, Float[Tensor, "facts in"]] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EditMethod:
    """One row of METHODS.

    Attributes:
        name: as the command line writes it.
        meaning: one line for people.
        target: ``"module:function"`` that takes an ``EditContext``, the encoded facts and the
            options, and returns a ``Draft``.
        options: ``"module:class"`` of the pydantic model of its options, each with a default.
        form: of the bricks that it makes.
        facts: whether one edit holds a single fact or many.
        layers: how many layers it edits by default; they end at the one that was located.
        needs: what of the context it cannot do without.
        source: the paper.
        depth: where its layers end by default, from 0, the first, to 1, the last; None: where
            the fact was located.
    """

    name: str
    meaning: str
    target: str
    options: str
    form: str
    facts: Literal["one", "many"]
    layers: int
    needs: tuple[Literal["covariance", "corpus", "training"], ...]
    source: str
    depth: float | None = None

    @cached_property
    def options_type(self) -> type[BaseModel]:
        """The class of its options."""
        found: type[BaseModel] = _load(self.options)
        return found

    def last_layer(self, located: int, layers: int) -> int:
        """Where its layers end in a model of so many, unless the user names the site."""
        return located if self.depth is None else math.ceil(self.depth * (layers - 1))

    def draft(
        self, context: EditContext, facts: Sequence[EncodedFact], options: BaseModel
    ) -> Draft:
        """The tensors that teach these facts."""
        drafted: Draft = _load(self.target)(context, facts, options)
        return drafted


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
