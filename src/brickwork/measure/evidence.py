"""What a partition is made from: labelled instances, run once, and the scores of an analysis."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from brickwork.errors import DataError
from brickwork.measure.batch import RunningBatch
from brickwork.measure.coactivation import Coactivation
from brickwork.measure.instances import Instance, encode_instances
from brickwork.measure.perplexity import TOKENS_PER_BATCH, token_mask
from brickwork.measure.profiles import FunctionMeans, NeuronScores, read_scores
from brickwork.measure.residents import ActivationRates
from brickwork.measure.study import Watch, digest
from brickwork.model.load import LoadedModel
from brickwork.model.taps import NeuronTap, Routed, tapped
from brickwork.model.train import Encoded, groups_by_length, pack


@dataclass(frozen=True, eq=False)
class Evidence:
    """What besides its weights is known of a model.

    Attributes:
        instances: labelled; they are run through the model, prompts and responses.
        data: what to call them.
        analysis: the folder of an analysis of the model.
        longest: tokens after which an instance is cut.
    """

    instances: Sequence[Instance] = ()
    data: str = ""
    analysis: Path | None = None
    longest: int = 512


@dataclass(frozen=True, eq=False)
class Measured:
    """What was found of a model's neurons; None for what was not looked at.

    Attributes:
        coactivation: who is active with whom.
        rates: how often each neuron is active, for resident ones.
        means: activations by functionality, where there is no analysis.
        scores: of the analysis.
    """

    coactivation: Coactivation | None = None
    rates: ActivationRates | None = None
    means: FunctionMeans | None = None
    scores: NeuronScores | None = None


def measure_neurons(
    loaded: LoadedModel,
    evidence: Evidence,
    *,
    coactivation: bool,
    rates: bool,
    seed: int,
    watch: Watch,
) -> Measured:
    """Read the analysis, and run the instances if there are any.

    Args:
        loaded: the model; it is left as it is.
        evidence: what there is.
        coactivation: whether it is wanted.
        rates: whether they are wanted.
        seed: of the sketches of the co-activation.
        watch: shows progress.

    Raises:
        DataError: if the analysis is not of this model, or nothing is left of the instances.
        ConfigurationError: if the model has no tokenizer.
    """
    scores = None if evidence.analysis is None else read_scores(evidence.analysis, loaded)
    if not evidence.instances:
        return Measured(scores=scores)
    running, model = RunningBatch(), loaded.model
    generator = torch.Generator().manual_seed(int(digest(str(seed), "sketches")[:15], 16))
    functions = sorted({instance.functionality for instance in evidence.instances})
    found = Measured(
        Coactivation(model, running, generator) if coactivation else None,
        ActivationRates(model, running) if rates else None,
        FunctionMeans(loaded, functions) if scores is None else None,
        scores,
    )
    parts = [part for part in (found.coactivation, found.rates, found.means) if part is not None]
    if parts:
        tables = [part.taps() for part in parts]
        taps = {layer: _in_turn([taps[layer] for taps in tables]) for layer in tables[0]}
        _run(loaded, evidence, _Pass(taps, running, found.means), watch)
    return found


def _in_turn(taps: Sequence[NeuronTap]) -> NeuronTap:
    def tap(h: Tensor, routed: Routed | None) -> None:
        for each in taps:
            each(h, routed)

    return tap


@dataclass(frozen=True, eq=False)
class _Pass:
    """What looks on while the instances run."""

    taps: dict[int, NeuronTap]
    running: RunningBatch
    means: FunctionMeans | None

    def begin(self, batch: Sequence[Encoded], names: Sequence[str], device: torch.device) -> None:
        self.running.tokens = token_mask(batch).to(device)
        if self.means is not None:
            labels = torch.tensor([self.means.functions.index(name) for name in names])
            self.means.begin(batch, labels, self.running.tokens.shape[1])


@torch.inference_mode()
def _run(loaded: LoadedModel, evidence: Evidence, looking: _Pass, watch: Watch) -> None:
    config = loaded.model.config.get_text_config()
    longest = min(evidence.longest, getattr(config, "max_position_embeddings", evidence.longest))
    encoded = encode_instances(loaded, evidence.instances, longest).sequences
    pairs = [(s, i.functionality) for s, i in zip(encoded, evidence.instances, strict=True) if s]
    if not pairs:
        raise DataError(
            f"none of {len(encoded)} instances has a prompt and a response within {longest} "
            "tokens; give shorter ones, or raise the limit."
        )
    groups = groups_by_length([len(s.ids) for s, _ in pairs], TOKENS_PER_BATCH)
    with (
        watch("running the instances", len(pairs)) as advance,
        tapped(loaded.model, neurons=looking.taps),
    ):
        for group in groups:
            batch, names = zip(*(pairs[i] for i in group), strict=True)
            looking.begin(batch, names, loaded.device)
            ids = pack(batch, pad=0, prompt_weight=0.0).ids
            loaded.model.base_model(input_ids=ids.to(loaded.device), use_cache=False)
            advance(len(group))
