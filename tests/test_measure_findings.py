"""Findings: each verdict follows from the numbers, and the evidence states them."""

from typing import Any

import pytest

from brickwork.measure.findings import findings
from brickwork.measure.results import Analysis, Finding, Interval
from tests.analysis import synthetic_analysis


def found(analysis: Analysis) -> dict[str, Finding]:
    made = findings(
        analysis.sparsity, analysis.functionality, analysis.perturbation, analysis.overlap
    )
    return {finding.name: finding for finding in made}


def changed(document: dict[str, Any], path: str, value: Any) -> None:
    """Set every field at a path, where ``*`` stands for all entries."""
    head, _, rest = path.partition(".")
    keys = list(document) if isinstance(document, dict) else range(len(document))
    for key in keys if head == "*" else [int(head) if isinstance(document, list) else head]:
        if rest:
            changed(document[key], rest, value)
        else:
            document[key] = value


def with_(path: str, value: Any) -> Analysis:
    document = synthetic_analysis().model_dump()
    changed(document, path, value)
    return Analysis.model_validate(document)


def flat(value: float) -> dict[str, float]:
    return Interval(value=value, low=value, high=value).model_dump()


@pytest.mark.parametrize(
    ("activation", "magnitude", "verdict"),
    [(0.8, 0.9, "holds"), (0.5, 0.9, "holds in part"), (0.5, 0.6, "does not hold")],
)
def test_sparsity(activation: float, magnitude: float, verdict: str) -> None:
    document = synthetic_analysis().model_dump()
    changed(document, "sparsity.layers.*.activation_below", activation)
    changed(document, "sparsity.layers.*.magnitude_below", magnitude)
    finding = found(Analysis.model_validate(document))["Sparse activation"]
    assert finding.verdict == verdict
    assert f"{activation:.0%} of activations" in finding.evidence


def test_masking_is_judged_at_the_papers_ratios() -> None:
    document = synthetic_analysis().model_dump()
    for masked in document["sparsity"]["masked"]:
        limit = {"activation": 0.7, "magnitude": 0.8, "random": 0.0}[masked["indicator"]]
        changed(masked["increase"], "*", flat(0.02 if masked["ratio"] <= limit else 9.0))
    finding = found(Analysis.model_validate(document))["Masking is nearly free"]
    assert finding.verdict == "holds"
    assert "with 80% masked by magnitude the perplexity rises by 2.0%" in finding.evidence
    assert "With 10% masked at random it rises by 900.0%." in finding.evidence
    for masked in document["sparsity"]["masked"]:
        if masked["ratio"] == 0.8:
            changed(masked["increase"], "*", flat(0.5))
    finding = found(Analysis.model_validate(document))["Masking is nearly free"]
    assert finding.verdict == "holds in part"
    assert "rises by 50.0% on average" in finding.evidence


def test_masking_is_judged_without_its_control_too() -> None:
    document = synthetic_analysis().model_dump()
    masked = document["sparsity"]["masked"]
    document["sparsity"]["masked"] = [m for m in masked if m["indicator"] != "random"]
    finding = found(Analysis.model_validate(document))["Masking is nearly free"]
    assert "random" not in finding.evidence


def test_functional_neurons_must_hold_up_on_the_other_half() -> None:
    path = "functionality.neurons.*.functions.*.other_half"
    assert found(with_(path, 0.99))["Functional neurons"].verdict == "holds"
    assert found(with_(path, 0.01))["Functional neurons"].verdict == "does not hold"


def test_sources_that_were_not_given_are_not_judged() -> None:
    assert (
        found(with_("functionality.sources", []))["Not only the source"].verdict == "not measured"
    )


@pytest.mark.parametrize(("within", "verdict"), [(0.58, "holds"), (0.22, "does not hold")])
def test_the_source_control_counts_what_is_left_above_chance(within: float, verdict: str) -> None:
    control = {
        "source": "s", "function": "Math", "positives": 30, "negatives": 90,
        "within": within, "elsewhere": 0.6, "chance": 0.2, "chance_elsewhere": 0.2,
    }  # fmt: skip
    finding = found(with_("functionality.sources", [control]))["Not only the source"]
    assert finding.verdict == verdict
    assert f"Math in s {within:.2f} (chance 0.20" in finding.evidence


def perturbed(own: float, others: float, random: float) -> Finding:
    document = synthetic_analysis().model_dump()
    ablation = document["perturbation"]["ablations"][0]
    assert (ablation["units"], ablation["chosen"]) == ("neurons", "activation")
    for row in ablation["rows"]:
        for name in row["increase"]:
            control = row["kind"] == "random"
            mine = name == row["removed"]
            row["increase"][name] = flat(random if control else own if mine else others)
    return found(Analysis.model_validate(document))["Specialisation of functional neurons"]


def test_specialisation_needs_to_beat_both_the_others_and_chance() -> None:
    assert perturbed(own=1.0, others=0.1, random=0.05).verdict == "holds"
    assert perturbed(own=0.1, others=0.5, random=0.05).verdict == "does not hold"
    assert perturbed(own=0.5, others=0.1, random=0.6).verdict == "does not hold"
    assert "+100% [+100%, +100%] (others +10%, random +5%)" in perturbed(1.0, 0.1, 0.05).evidence


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.02, "holds"), (0.07, "holds in part"), (0.3, "does not hold")]
)
def test_partition_names_the_right_null(share: float, verdict: str) -> None:
    document = synthetic_analysis().model_dump()
    size = len(document["overlap"]["functions"])
    pooled = document["overlap"]["pooled"]
    pooled["values"] = [[1.0 if i == j else share for j in range(size)] for i in range(size)]
    pooled["null"] = {"value": 0.016, "low": 0.0, "high": 0.06}
    pooled["null_mean"] = {"value": 0.016, "low": 0.01, "high": 0.022}
    finding = found(Analysis.model_validate(document))["Partition"]
    assert finding.verdict == verdict
    assert "permuted labels give 1.6% on average [1.0%, 2.2%]" in finding.evidence
    above = 6 if share > 0.06 else 0
    assert f"Of 6 pairs {above} lie above the 95% range of single pairs" in finding.evidence
    assert "(0.0% to 6.0%)" in finding.evidence
