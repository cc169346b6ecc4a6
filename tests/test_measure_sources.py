"""The control by source: what knows a functionality keeps it inside a source, others do not."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from brickwork.errors import DataError
from brickwork.measure.average_precision import null_mean
from brickwork.measure.sources import FEWEST, source_controls
from tests.test_measure_functionality import FUNCTIONS, noise


def sourced() -> tuple[Tensor, Tensor, list[str]]:
    """240 samples of three functionalities from three sources.

    ``mixed`` and ``other`` hold coding and math, ``verses`` poetry alone. Unit 0 knows coding,
    and unit 1 the source ``verses``.
    """
    labels = torch.tensor([0, 1] * 80 + [2] * 80)
    sources = ["mixed"] * 80 + ["other"] * 80 + ["verses"] * 80
    activity = noise(50, samples=240)
    activity[labels == 0, 0] += 9.0
    activity[160:, 1] += 9.0
    return activity, labels, sources


def test_units_that_know_a_functionality_know_it_inside_a_source() -> None:
    activity, labels, sources = sourced()
    found = source_controls([activity, activity], labels, FUNCTIONS, sources)
    assert [(c.source, c.function) for c in found] == [
        ("mixed", "coding"), ("mixed", "math"), ("other", "coding"), ("other", "math"),
    ]  # fmt: skip
    coding, math = found[0], found[1]
    assert (coding.positives, coding.negatives) == (40, 40)
    assert coding.within == coding.elsewhere == 1.0
    assert coding.chance == null_mean(80, 40)
    assert coding.chance_elsewhere == null_mean(160, 40)
    # One unit of noise, on 80 samples: a standard deviation of 0.06.
    assert math.within == pytest.approx(math.chance, abs=0.24)


def test_a_unit_that_knows_a_source_is_at_chance_inside_another() -> None:
    # Coding is alone in a source elsewhere, and unit 3 knows that source and nothing else.
    labels = torch.tensor([0] * 80 + [1] * 80 + [0, 1] * 80)
    sources = ["code only"] * 80 + ["sums only"] * 80 + ["mixed"] * 160
    activity = noise(50, samples=320)
    activity[:80, 3] += 9.0
    found = source_controls([activity], labels, FUNCTIONS[:2], sources)
    coding = next(c for c in found if c.function == "coding")
    assert coding.source == "mixed"
    assert coding.elsewhere == 1.0
    # One unit of noise, on 160 samples: a standard deviation of 0.04.
    assert coding.within == pytest.approx(coding.chance, abs=0.16)


def test_source_controls_are_means_over_layers_held_one_at_a_time() -> None:
    activity, labels, sources = sourced()
    others = [noise(50, samples=240, seed=seed) for seed in (1, 2)]
    held: list[int] = []

    def layers() -> Iterator[Tensor]:
        for number, layer in enumerate([activity, *others]):
            held.append(number)
            yield layer

    together = source_controls(layers(), labels, FUNCTIONS, sources)
    alone = [source_controls([a], labels, FUNCTIONS, sources) for a in (activity, *others)]
    assert held == [0, 1, 2]
    for found, *parts in zip(together, *alone, strict=True):
        assert found.within == pytest.approx(sum(p.within for p in parts) / 3)
        assert found.elsewhere == pytest.approx(sum(p.elsewhere for p in parts) / 3)


def test_sources_with_too_few_samples_or_no_name_are_no_control() -> None:
    activity, labels, _ = sourced()

    def controls(sources: list[str]) -> list[tuple[str, str]]:
        found = source_controls([activity], labels, FUNCTIONS, sources)
        return [(control.source, control.function) for control in found]

    assert controls([""] * 240) == []
    assert controls(["one"] * 240) == []  # there is no elsewhere
    enough = 2 * FEWEST  # half of them coding, half math
    names = ("coding", "math")
    assert controls(["few"] * (enough - 1) + ["rest"] * (241 - enough)) == []
    assert controls(["few"] * enough + ["rest"] * (240 - enough)) == [
        (source, name) for source in ("few", "rest") for name in names
    ]


def test_refuses_source_controls_without_a_layer() -> None:
    _, labels, sources = sourced()
    with pytest.raises(DataError, match="2 sources were to be compared"):
        source_controls([], labels, FUNCTIONS, sources)
