"""What an analysis finds, as one document: the schema of ``analysis.json``.

The document holds numbers and names only, so that a report, a notebook or another program can
read it without a model. Scores of single units are too many for it; they lie beside it in
``scores.safetensors``. The figures follow Xiao et al. 2024 (arXiv:2409.02877), section 4.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Units = Literal["neurons", "heads", "layers"]
Indicator = Literal["activation", "magnitude", "random"]
Choice = Literal["activation", "selectivity", "attribution", "random", "resident", "each"]
Method = Literal["zero", "mean", "resample", "skip"]
Scope = Literal["layer", "model"]
RowKind = Literal["function", "random", "resident", "layer"]
Verdict = Literal["holds", "holds in part", "does not hold", "not measured"]
FORMAT = 1
FILE = "analysis.json"


class Result(BaseModel):
    """A part of the document: nothing besides its fields, and never changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Interval(Result):
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class ModelFacts(Result):
    """What was analysed."""

    name: str
    family: str
    fingerprint: str
    """sha256 of the weights, rounded to bfloat16."""
    parameters: int
    hidden: int
    neurons: list[int]
    """Neurons of each layer's FFN; for experts, those of all experts together."""
    heads: list[int]
    """Query heads of each layer."""
    dtype: str
    device: str


class FunctionFacts(Result):
    """One functionality in the data."""

    name: str
    localisation: int
    """Instances that units were scored and chosen on."""
    evaluation: int
    """Instances that losses were measured on; none of them is among the others."""
    prompt_tokens: int
    response_tokens: int


class DataFacts(Result):
    """What it was analysed on."""

    name: str
    sha256: str
    functions: list[FunctionFacts]
    longest: int
    """Tokens after which an instance is cut."""
    cut: int
    """Instances that were cut."""
    left_out: int
    """Instances without a prompt, or whose response was cut away."""
    sources: int
    """Different sources that the data names; 0 if it names none."""


class Settings(Result):
    """What decides the numbers besides the model and the data."""

    share: float
    """Share of the units of a layer that count as functional, 0.05 in the paper."""
    scope: Scope = "layer"
    """Whether neurons to be taken away are the best of every layer, or of the whole model. Heads
    are always the best of the whole model, at least one."""
    evaluation: int
    """Evaluation instances for each functionality, at most."""
    permutations: int
    """Permutations of the labels that the nulls are made of."""
    resamples: int
    """Bootstrap resamples behind each interval."""
    seed: int


class LayerSparsity(Result):
    """How few neurons of a layer a token needs, over all tokens of the evaluation instances."""

    layer: int
    activation: list[float]
    """Share of (token, neuron) pairs whose indicator, divided by the token's largest in the
    layer, is at or below each of the edges."""
    magnitude: list[float]
    activation_below: float
    """The share below 0.2."""
    magnitude_below: float


class MaskedLoss(Result):
    """Response loss with the weakest neurons of every token and layer masked."""

    indicator: Indicator
    """What says which neurons are the weakest; ``random`` masks any, as a control."""
    ratio: float
    """Share of each layer's neurons that is masked, per token."""
    losses: dict[str, Interval]
    """Nats per response token, for each functionality."""
    increase: dict[str, Interval]
    """Relative increase of the perplexity on responses, instance by instance."""


class Sparsity(Result):
    """Section 4.3 of the paper."""

    edges: list[float]
    layers: list[LayerSparsity]
    masked: list[MaskedLoss]
    """Every indicator from ratio 0 on, which is the whole model and the same for all."""


class Null(Result):
    """Scores under permuted labels, which say what is to be expected of units that know nothing."""

    mean: float
    """Of a single unit."""
    single_95: float
    """95 % of single units score less."""
    per_mille: float
    """Mean over permutations of the score that the best 5 per mille of the layer reach."""
    best: float
    """Mean over permutations of the layer's best unit."""
    best_95: float
    """95 % of the layers under permuted labels have no better best unit."""


class FunctionScores(Result):
    """The functionality scores (average precision) of one layer for one functionality."""

    null: Null
    best: Interval
    """The best unit; the interval resamples the instances and keeps the unit."""
    best_unit: int
    best_p: float
    """Share of permutations whose best unit is at least as good, both counted plus one."""
    per_mille: float
    """The score that 5 per mille of the units reach."""
    mean: float
    above_null: int
    """Units above ``Null.best_95``."""
    other_half: float
    """Score on one half of the instances of the unit that is best on the other half."""
    split_half: float | None
    """Spearman correlation of all units' scores on the two halves; None for one unit."""
    split_overlap: float | None
    """Shared part of the functional units found on the two halves; None for less than 20 units."""


class LayerScores(Result):
    """One layer."""

    layer: int
    units: int
    functions: dict[str, FunctionScores]
    resident: list[int]
    """Units with one of the largest outputs of the layer for every functionality."""


class SourceControl(Result):
    """Whether functional neurons tell functionalities apart where the source cannot.

    For one source and functionality: the best 5 per mille of each layer's neurons, chosen on the
    instances of all *other* sources, scored on this source's instances alone.
    """

    source: str
    function: str
    positives: int
    negatives: int
    within: float
    """Mean score of the chosen neurons inside the source."""
    elsewhere: float
    """Mean score of the same neurons where they were chosen."""
    chance: float
    """Expected score inside the source of a neuron that knows nothing."""
    chance_elsewhere: float


class Agreement(Result):
    """How far two ways to score neurons agree in a layer, for each functionality."""

    layer: int
    correlation: dict[str, float]
    """Spearman correlation of the scores."""
    overlap: dict[str, float]
    """Shared part of the functional neurons; ``Settings.share`` is to be expected by chance."""


class Functionality(Result):
    """Section 4.4 of the paper: how well single units tell that a functionality is needed."""

    neurons: list[LayerScores]
    heads: list[LayerScores]
    """Scored by the norm of what a head adds to the residual stream."""
    layers: list[LayerScores]
    """Scored by how much a block changes the residual stream; every layer is its only unit."""
    sources: list[SourceControl]
    """Empty if the data names no source with two functionalities."""
    attribution: list[Agreement]
    """Scores by |gradient times activation| against scores by |activation|."""
    attribution_instances: int


class AblationRow(Result):
    """What taking some units away does to every functionality."""

    kind: RowKind
    """Why these units: for a functionality, as a control, as residents, or one by one."""
    removed: str
    """The functionality that they were chosen for, ``random 2``, ``layers.3``, ..."""
    units: int
    increase: dict[str, Interval]
    """Relative increase of the perplexity on responses: 0.5 is 50 % more."""
    whole: dict[str, Interval] | None
    """The same on prompts and responses together, where it was measured."""


class Ablation(Result):
    """One way to choose units, and one way to take them away."""

    name: str
    """A short name of letters, digits and hyphens."""
    title: str
    units: Units
    chosen: Choice
    method: Method
    rows: list[AblationRow]


class BaseLoss(Result):
    """The whole model's loss on one functionality."""

    response: Interval
    """Nats per response token."""
    whole: Interval
    """Nats per token of prompt and response, the first token left out."""


class Perturbation(Result):
    """Section 4.5 of the paper: specialisation by taking units away, on evaluation instances."""

    base: dict[str, BaseLoss]
    ablations: list[Ablation]


class OverlapMatrix(Result):
    """Shared part of the functional neurons of every two functionalities."""

    values: list[list[float]]
    """In the order of ``Overlap.functions``; 1 on the diagonal."""
    null: Interval
    """Mean and 95 % range of single pairs under permuted labels."""
    null_mean: Interval
    """The same of the mean of all pairs."""


class Overlap(Result):
    """Section 4.6 of the paper: do functionalities have neurons of their own."""

    functions: list[str]
    layers: list[OverlapMatrix]
    pooled: OverlapMatrix
    """Over all layers together."""
    independent: float
    """What two independent random sets would share: ``Settings.share`` after rounding down."""
    linkage: list[list[float]]
    """Average-linkage clustering of the functionalities by 1 - pooled overlap (scipy's form)."""


class Finding(Result):
    """One claim of the paper, checked on this model and data."""

    name: str
    claim: str
    verdict: Verdict
    evidence: str
    """Sentences with numbers, controls and intervals."""


class Analysis(Result):
    """The whole document."""

    format: Literal[1]
    brickwork: str
    """The version that wrote it."""
    command: str
    """How to make it again."""
    seconds: dict[str, float]
    """Wall time of each step, over all runs that it took."""
    peak_memory: int
    """Bytes that the process held at most."""
    model: ModelFacts
    data: DataFacts
    settings: Settings
    sparsity: Sparsity
    functionality: Functionality
    perturbation: Perturbation
    overlap: Overlap
    findings: list[Finding]
