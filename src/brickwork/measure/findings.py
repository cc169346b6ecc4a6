"""What the paper found, asked of this model: each claim with a verdict, numbers and controls.

The claims are those of Xiao et al. 2024 (arXiv:2409.02877), sections 4.3 to 4.6. A verdict follows
from a fixed rule, which the evidence states, so that it can be disputed.
"""

from collections.abc import Sequence
from statistics import mean

from brickwork.measure.perturbation import control_name
from brickwork.measure.results import (
    Ablation,
    Choice,
    Finding,
    Functionality,
    Overlap,
    Perturbation,
    Sparsity,
    Verdict,
)

_SPARSE, _FREE = 0.75, 0.05
_MASKED = {"activation": 0.7, "magnitude": 0.8}


def findings(
    sparsity: Sparsity, functionality: Functionality, perturbation: Perturbation, overlap: Overlap
) -> list[Finding]:
    """The findings, in the order of the paper."""
    found = [
        _few_neurons_fire(sparsity),
        _masking_is_cheap(sparsity),
        _neurons_know(functionality),
        _not_the_source(functionality),
    ]
    titles: dict[Choice, str] = {
        "activation": "functional neurons",
        "selectivity": "selective neurons, residents left out",
    }
    found += [
        _specialised(ablation, title)
        for choice, title in titles.items()
        for ablation in perturbation.ablations
        if (ablation.units, ablation.method, ablation.chosen) == ("neurons", "zero", choice)
    ]
    return [*found, _partitioned(overlap)]


def _verdict(shares: Sequence[bool]) -> Verdict:
    """Holds if everywhere, in part if in half of the cases or more."""
    if all(shares):
        return "holds"
    return "holds in part" if sum(shares) * 2 >= len(shares) else "does not hold"


def _few_neurons_fire(sparsity: Sparsity) -> Finding:
    shares = {
        "activations": [layer.activation_below for layer in sparsity.layers],
        "output magnitudes": [layer.magnitude_below for layer in sparsity.layers],
    }
    said = "; ".join(
        f"{mean(values):.0%} of {name} (layers: {min(values):.0%} to {max(values):.0%})"
        for name, values in shares.items()
    )
    return Finding(
        name="Sparse activation",
        claim="About 80% of a layer's neurons say less than a fifth of what the loudest says.",
        verdict=_verdict([mean(values) >= _SPARSE for values in shares.values()]),
        evidence=(
            f"Below 0.2 of the token's largest in the layer lie {said}. Held if the mean is "
            f"{_SPARSE:.0%} or more for both."
        ),
    )


def _masking_is_cheap(sparsity: Sparsity) -> Finding:
    cheap, said = [], []
    for indicator, ratio in _MASKED.items():
        curve = {m.ratio: m.increase for m in sparsity.masked if m.indicator == indicator}
        rises = {f: curve[ratio][f].value for f in curve[ratio]}
        worst = max(rises, key=lambda f: rises[f])
        rise = mean(rises.values())
        cheap.append(rise <= _FREE)
        said.append(
            f"with {ratio:.0%} masked by {indicator} the perplexity rises by {rise:.1%} on "
            f"average, most on {worst} ({rises[worst]:.1%})"
        )
    return Finding(
        name="Masking is nearly free",
        claim=(
            "Masking the 70% of neurons with the smallest activations, or the 80% with the "
            "smallest outputs, hardly changes the loss."
        ),
        verdict=_verdict(cheap),
        evidence=(
            f"{_sentence('; '.join(said))} {_random_mask(sparsity)}Held if the mean rise is at "
            f"most {_FREE:.0%} for both; neurons are masked token by token, at prompts and "
            "responses alike."
        ),
    )


def _random_mask(sparsity: Sparsity) -> str:
    """What masking any neurons does, in a sentence."""
    drawn = [m for m in sparsity.masked if m.indicator == "random" and m.ratio > 0]
    if not drawn:
        return ""
    least = min(drawn, key=lambda m: m.ratio)
    rise = mean(interval.value for interval in least.increase.values())
    return f"With {least.ratio:.0%} masked at random it rises by {rise:.1%}. "


def _neurons_know(functionality: Functionality) -> Finding:
    layers = functionality.neurons
    names = list(layers[0].functions)
    best = {f: max(layer.functions[f].other_half for layer in layers) for f in names}
    known = {
        f: mean(layer.functions[f].other_half > layer.functions[f].null.best_95 for layer in layers)
        for f in names
    }
    stable = [
        layer.functions[f].split_half
        for layer in layers
        for f in names
        if layer.functions[f].split_half is not None
    ]
    chance = mean(scores.null.best for layer in layers for scores in layer.functions.values())
    said = ", ".join(f"{f} {best[f]:.2f} ({known[f]:.0%} of layers)" for f in names)
    return Finding(
        name="Functional neurons",
        claim="In most layers single neurons tell which functionality an instance needs.",
        verdict=_verdict([share > 0.5 for share in known.values()]),
        evidence=(
            "Best score of a neuron chosen on one half of the instances and scored on the other, "
            "and the share of layers where that is more than the best of the layer reaches in 95% "
            f"of permutations of the labels: {said}. Permuted labels give {chance:.2f} for the "
            f"best of a layer. Scores on the two halves correlate by {_mean(stable)} on average. "
            "Held if it is so in more than half of the layers, for every functionality."
        ),
    )


def _not_the_source(functionality: Functionality) -> Finding:
    claim = "Functional neurons follow the functionality, not the source or format of the text."
    controls = functionality.sources
    if not controls:
        return Finding(
            name="Not only the source", claim=claim, verdict="not measured",
            evidence="The data names no source that holds two functionalities (option --source).",
        )  # fmt: skip
    kept = [
        _corrected(c.within, c.chance) / max(_corrected(c.elsewhere, c.chance_elsewhere), 1e-9)
        for c in controls
    ]
    said = ", ".join(
        f"{c.function} in {_short(c.source)} {c.within:.2f} (chance {c.chance:.2f}, elsewhere "
        f"{c.elsewhere:.2f} with chance {c.chance_elsewhere:.2f})"
        for c in controls
    )
    return Finding(
        name="Not only the source",
        claim=claim,
        verdict=_verdict([share >= 0.5 for share in kept]),
        evidence=(
            "Neurons chosen without a source, scored inside it, where the source tells nothing: "
            f"{said}. Of their advantage over chance {mean(kept):.0%} is left on average. Held if "
            "half of it or more is left in every case."
        ),
    )


def _specialised(ablation: Ablation, title: str) -> Finding:
    controls = [row for row in ablation.rows if row.kind == "random"]
    own = [row for row in ablation.rows if row.kind == "function"]
    largest, above, said = [], [], []
    for row in own:
        f = row.removed
        others = [value.value for g, value in row.increase.items() if g != f]
        like = [c for c in controls if c.removed == control_name(f)] or controls
        chance = max((c.increase[f].value for c in like), default=0.0)
        largest.append(row.increase[f].value > max(others))
        above.append(row.increase[f].low > chance)
        said.append(
            f"{f} {_rise(row.increase[f].value)} [{_rise(row.increase[f].low)}, "
            f"{_rise(row.increase[f].high)}] (others {_rise(mean(others))}, random "
            f"{_rise(chance)})"
        )
    return Finding(
        name=f"Specialisation of {title}",
        claim="Without its functional neurons a functionality suffers, and the others far less.",
        verdict=_verdict([a and b for a, b in zip(largest, above, strict=True)]),
        evidence=(
            f"Rise of the response perplexity on evaluation instances: {'; '.join(said)}. The own "
            f"functionality suffers most in {sum(largest)} of {len(own)} cases, and more than "
            f"under any random removal in {sum(above)}. Held if both, for every functionality; "
            "intervals are 95%."
        ),
    )


def _partitioned(overlap: Overlap) -> Finding:
    pooled, names = overlap.pooled, overlap.functions
    pairs = [
        (pooled.values[i][j], names[i], names[j])
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]
    shares = [share for share, _, _ in pairs]
    most = max(pairs)
    null = pooled.null_mean
    few, below = [share <= 0.1 for share in shares], mean(shares) <= overlap.independent
    verdict = _verdict([*few, below])
    return Finding(
        name="Partition",
        claim="Functionalities have neurons of their own: their functional neurons hardly overlap.",
        verdict=verdict,
        evidence=(
            f"Two functionalities share {mean(shares):.1%} of their functional neurons on average, "
            f"at most {most[0]:.1%} ({most[1]} and {most[2]}). Independent sets would share "
            f"{overlap.independent:.0%}, but that is the wrong comparison: a neuron high for one "
            f"of several exclusive labels is low for the others, and permuted labels give "
            f"{null.value:.1%} on average [{null.low:.1%}, {null.high:.1%}]. "
            f"{_against_null(shares, pooled.null.low, pooled.null.high)} Held if every pair shares "
            "at most 10% and the mean is no more than that of independent sets."
        ),
    )


def _against_null(shares: Sequence[float], low: float, high: float) -> str:
    above, below = sum(s > high for s in shares), sum(s < low for s in shares)
    return (
        f"Of {len(shares)} pairs {above} lie above the 95% range of single pairs under permuted "
        f"labels ({low:.1%} to {high:.1%}), {below} below."
    )


def _corrected(score: float, chance: float) -> float:
    return (score - chance) / (1 - chance)


def _rise(increase: float) -> str:
    return f"{increase:+.0%}" if increase < 100 else f"x {1 + increase:.3g}"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):.2f}" if known else "(not defined)"


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
