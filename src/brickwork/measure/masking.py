"""Loss on responses when the neurons that matter least to each token are masked."""

from collections.abc import Mapping

from brickwork.measure.passes import Passes, Taps
from brickwork.measure.results import Indicator, MaskedLoss, Sparsity
from brickwork.measure.sparsity import EDGES, masking
from brickwork.measure.study import Study

_TENTHS = tuple(tenth / 10 for tenth in range(10))
# Random neurons are a control: what a few of them cost says enough.
RATIOS: Mapping[Indicator, tuple[float, ...]] = {
    "activation": _TENTHS,
    "magnitude": _TENTHS,
    "random": (0.0, 0.1, 0.3, 0.5),
}
PASSES = sum(len(ratios) - 1 for ratios in RATIOS.values())


def mask_curves(study: Study, passes: Passes) -> Sparsity:
    """The sparsity of the whole model, and its losses for every indicator and masked share."""
    wanted = [(indicator, ratio) for indicator, ratios in RATIOS.items() for ratio in ratios]
    with study.watch("masking neurons", len(wanted)) as advance:
        masked = []
        for indicator, ratio in wanted:
            masked.append(_masked(study, passes, indicator, ratio))
            advance(1)
    return Sparsity(edges=EDGES, layers=passes.sparsity.summary(), masked=masked)


def _masked(study: Study, passes: Passes, indicator: Indicator, ratio: float) -> MaskedLoss:
    name = f"mask-{indicator}-{ratio:g}"
    taps = Taps(masking(study.loaded.model, indicator, ratio, study.generator(name)))
    losses = passes.losses(name, taps=taps) if ratio > 0 else passes.unchanged
    return MaskedLoss(
        indicator=indicator,
        ratio=ratio,
        losses=passes.response_losses(losses),
        increase=passes.increase(losses),
    )
