"""What an analysis will cost, from a rehearsal: the same steps, on a few layers of random weights.

Models of one and of two layers with the shape of the real one run the real steps on a sample of
the real instances; their difference is what a further layer costs. No weight of the model is read.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from brickwork.measure.activations import Wanted, collect, layout_of
from brickwork.measure.attribution import attribute, attribution_layout, kept_bytes
from brickwork.measure.masking import PASSES
from brickwork.measure.perplexity import instance_losses
from brickwork.measure.perturbation import planned_passes, whole_passes
from brickwork.measure.rows import Layout, open_rows
from brickwork.measure.scoring import attribution_side, rehearse_scoring
from brickwork.measure.sparsity import masking
from brickwork.measure.study import Study
from brickwork.model.device import find_device
from brickwork.model.load import LoadedModel, rehearsal_model
from brickwork.model.parts import layers_of
from brickwork.model.taps import tapped
from brickwork.model.train import Encoded
from brickwork.model.units import unit_counts

_WORDS = 256
# About so many operations go into each rehearsed step, within these numbers of tokens.
_OPERATIONS, _FEWEST, _MOST = 4e11, 256, 8192
_HEAD_ROWS, _HEAD_WORDS = 256, 8192
_PROCESS_BYTES = 600 << 20  # Python, torch and transformers without a model
_PASS_BYTES = 1 << 30  # logits, or what a backward pass keeps
_SORT_BYTES = 256 << 20


@dataclass(frozen=True)
class Estimate:
    """What an analysis will take: seconds for each step on this machine as it is now, and bytes."""

    seconds: dict[str, float]
    disk: int
    memory: int


def estimate(study: Study, *, device: str = "auto") -> Estimate:
    """Rehearse a study whose model may be an outline without weights.

    Args:
        study: opened with the model's outline.
        device: where the analysis would compute.
    """
    return Estimate(
        _seconds(study, device), sum(rows.bytes for rows in layouts(study)), _memory(study)
    )


def layouts(study: Study) -> tuple[Layout, Layout]:
    """The rows of activations and of attributions that an analysis writes."""
    model = study.loaded.model
    return (
        layout_of(model, len(study.localisation.sequences), Wanted()),
        attribution_layout(model, len(attribution_side(study).sequences)),
    )


def _memory(study: Study) -> int:
    model = study.loaded.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    widest = max(unit_counts(model, n)["mlp.neurons"] for n in range(layers_of(model)))
    samples, settings = len(study.localisation.sequences), study.settings
    # Two halves of a layer's rows, and the scores of its neurons under all permutations.
    null = 2 * 8 * widest * len(study.functions) * settings.permutations
    scoring = _SORT_BYTES + 2 * 4 * widest * samples + null
    longest = max(len(s.ids) for s in attribution_side(study).sequences)
    return _PROCESS_BYTES + weights + max(_PASS_BYTES, scoring, longest * kept_bytes(model))


def _seconds(study: Study, device: str) -> dict[str, float]:
    layers, target = layers_of(study.loaded.model), find_device(device)
    few = [_rehearse(study, rehearsal_model(study.loaded, n, vocabulary=_WORDS, device=device))
           for n in (1, 2)]  # fmt: skip
    rate = {step: first + max(few[1][step] - first, 0) * (layers - 1)
            for step, first in few[0].items()}  # fmt: skip
    evaluation, part = study.evaluation.sequences, attribution_side(study).sequences
    head, whole = _head_seconds(study, target), sum(len(s.ids) for s in evaluation)
    a_pass = head * _answers(evaluation)
    return {
        "collect": rate["collect"] * sum(s.response_start for s in study.localisation.sequences),
        "score": rehearse_scoring(study),
        # Backwards a matrix product costs as much again, for the gradient of its input.
        "attribute": rate["attribute"] * sum(len(s.ids) for s in part) + 2 * head * _answers(part),
        "mask": PASSES * (rate["mask"] * whole + a_pass),
        "perturb": planned_passes(study) * (rate["pass"] * whole + a_pass)
        + whole_passes(study) * head * (whole - _answers(evaluation)),
    }


def _answers(sequences: Sequence[Encoded]) -> int:
    return sum(len(s.ids) - s.response_start for s in sequences)


def _rehearse(study: Study, small: LoadedModel) -> dict[str, float]:
    """Seconds per token of every step on a small model."""
    parameters = sum(p.numel() for p in small.model.parameters())
    tokens = int(min(max(_OPERATIONS / (2 * parameters), _FEWEST), _MOST))
    prompts = _sample([Encoded(s.ids[: s.response_start], s.response_start)
                       for s in study.localisation.sequences], tokens)  # fmt: skip
    whole = _sample(study.evaluation.sequences, tokens)
    model = small.model

    def masked() -> None:
        with tapped(model, neurons=masking(model, "magnitude", 0.5, torch.Generator())):
            instance_losses(model, whole)

    with tempfile.TemporaryDirectory() as place:
        rows = open_rows(Path(place) / "a", layout_of(model, len(prompts), Wanted()))
        more = open_rows(Path(place) / "b", attribution_layout(model, len(whole)))
        instance_losses(model, whole)  # the first pass of a process is slower
        return {
            "collect": _timed(lambda: collect(small, prompts, rows, Wanted()), prompts),
            "pass": _timed(lambda: instance_losses(model, whole), whole),
            "mask": _timed(masked, whole),
            "attribute": _timed(lambda: attribute(small, whole, more), whole),
        }


def _timed(work: Callable[[], object], sequences: Sequence[Encoded]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) / sum(len(s.ids) for s in sequences)


def _sample(sequences: Sequence[Encoded], tokens: int) -> list[Encoded]:
    """Sequences of all lengths, together of about so many tokens, in a small model's words."""
    every = sum(len(s.ids) for s in sequences)
    by_length = sorted(sequences, key=lambda s: len(s.ids))
    stride = max(every // tokens, 1)
    some = by_length[stride // 2 :: stride] or by_length[:1]
    return [Encoded([i % _WORDS for i in s.ids], s.response_start) for s in some]


def _head_seconds(study: Study, device: torch.device) -> float:
    """Seconds that the logits of one position take."""
    config = study.loaded.model.config.get_text_config()
    vocabulary: int = config.vocab_size
    words, dtype = min(vocabulary, _HEAD_WORDS), study.loaded.dtype
    x = torch.randn(_HEAD_ROWS, config.hidden_size, device=device).to(dtype)
    weight = torch.randn(words, config.hidden_size, device=device).to(dtype)

    def once() -> float:
        started = time.perf_counter()
        (x @ weight.T).float().logsumexp(-1).sum().item()
        return time.perf_counter() - started

    seconds = median([once() for _ in range(6)][1:])  # the first is slower
    return seconds / _HEAD_ROWS * vocabulary / words
