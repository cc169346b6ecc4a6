"""What a growth is told, checked when it is read; the command line has an option for each field.

Nothing here needs torch, so that a command can list its options at once.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

Shares = Literal["even", "uneven"]
Start = Literal["split", "zero"]
# Far beyond any model: what is planned from a larger number would not fit in memory.
Count = Annotated[int, Field(ge=1, le=1 << 22)]
Multiple = Annotated[float, Field(gt=1, le=1024)]
Times = Annotated[int, Field(ge=2, le=1024)]


class Options(BaseModel):
    """The options of one growth; an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class WidthOptions(Options):
    """Neurons of each FFN afterwards."""

    neurons: Count | None = None
    """Neurons of each FFN, or of each expert, afterwards."""
    times: Multiple | None = None
    """Or as a multiple of what there are."""
    part: Literal["dense", "experts"] | None = None
    """Of models that have both, whether dense FFNs or experts grow."""


class SplitOptions(WidthOptions):
    """As WidthOptions, for neurons that are copied."""

    shares: Shares = "uneven"
    """Shares that copies have of what is read of them; uneven ones let them learn apart."""


class HeadOptions(Options):
    """How new heads begin."""

    start: Start = "split"
    """New heads are copies whose outputs are divided, or say nothing at first (zero)."""
    shares: Shares = "uneven"
    """Shares of copies in what they say; uneven ones let them learn apart."""


class GroupOptions(HeadOptions):
    """Groups of heads afterwards."""

    kv_heads: Count
    """Key and value heads afterwards, each with as many query heads as before."""


class QueryOptions(HeadOptions):
    """Query heads afterwards."""

    heads: Count
    """Query heads afterwards, of all groups together."""


class WiderOptions(Options):
    """How wide heads become."""

    times: Times
    """How many times as wide each head becomes."""


class HiddenOptions(Options):
    """Hidden size afterwards."""

    size: Count | None = None
    """Hidden size afterwards."""
    times: Multiple | None = None
    """Or as a multiple of what it is."""


class DuplicateOptions(HiddenOptions):
    """As HiddenOptions, for numbers that are copied."""

    shares: Shares = "uneven"
    """Shares that copies have of what is read of them; uneven ones let them learn apart."""


class PlaceOptions(Options):
    """Places of new layers."""

    after: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    """Old layers behind each of which a new one comes; a number may come twice."""


class BlockOptions(Options):
    """Number of new layers."""

    blocks: PositiveInt
    """New layers, one behind every group of old ones of equal size."""


class StackOptions(Options):
    """The seam of two copies."""

    overlap: NonNegativeInt
    """Layers left out at the end of the first copy and at the start of the second."""


class VocabularyOptions(Options):
    """New tokens."""

    tokens: Annotated[tuple[str, ...], Field(min_length=1)]
    """What is added, as text."""


class UpcycleOptions(Options):
    """What the mixture will be."""

    experts: Times
    """Experts of every layer, each a copy of its FFN."""
    top_k: Count = 2
    """Experts for each token."""
    redrawn: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of every expert's neurons that is drawn anew, so that experts differ."""


class CopiesOptions(Options):
    """How many more experts."""

    times: Times = 2
    """How many times as many experts, and as many for each token."""
    shares: Shares = "uneven"
    """Shares of copies in what they say; uneven ones let them learn apart."""


class ContextOptions(Options):
    """Longer texts."""

    tokens: PositiveInt
    """Tokens of the longest text afterwards."""
