"""Thresholds: the best balanced accuracy by trying all, and sense where there is little to try."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brickwork.route.calibrate import Calibration, balanced_threshold, calibrate
from brickwork.route.index import build_index
from brickwork.route.texts import BrickTexts
from tests.letters import Letters, brick

FRUIT = brick("fruit", "aab", "abb", "aabb", "abab")
METAL = brick("metal", "xxy", "xyy", "xxyy", "xyxy")
levels = st.lists(st.integers(0, 6), min_size=1, max_size=9)


def calibrated(*bricks: BrickTexts, background: tuple[str, ...] = ()) -> Calibration:
    vectors = Letters().embed(background) if background else None
    return calibrate(build_index(bricks, Letters()), vectors)


def balance(threshold: float, on: list[int], off: list[int]) -> float:
    kept = sum(score > threshold for score in on) / len(on)
    return (kept + sum(score <= threshold for score in off) / len(off)) / 2


@settings(max_examples=50)
@given(levels, levels)
def test_no_threshold_has_a_better_balanced_accuracy(on: list[int], off: list[int]) -> None:
    found = balanced_threshold(np.array(on, float), np.array(off, float))
    best = max(balance(place / 2 - 0.25, on, off) for place in range(16))
    assert balance(found, on, off) == pytest.approx(best)


def test_separable_bricks_keep_their_own_and_turn_away_the_others() -> None:
    found = calibrated(FRUIT, METAL)
    assert (found.kept, found.turned_away, found.note) == (1, 1, "")
    assert ((found.thresholds > 0) & (found.thresholds < 0.95)).all()


def test_background_that_scores_high_raises_the_thresholds() -> None:
    plain = calibrated(FRUIT, METAL)
    noisy = calibrated(FRUIT, METAL, background=("abcd", "xycd", "abxy") * 3)
    assert (noisy.thresholds > plain.thresholds).all()


def test_at_most_a_quarter_of_the_off_topic_instructions_passes() -> None:
    muddled = [brick(f"b{n}", *("".join(t) for t in ("abcd", "abce", "abde"))) for n in range(2)]
    found = calibrated(*muddled, brick("other", "abcf", "abdf", "bcdf"))
    assert found.turned_away >= 0.75


def test_the_order_of_bricks_is_no_matter() -> None:
    third = brick("third", "mno", "mnn")
    one, other = calibrated(FRUIT, METAL, third), calibrated(third, METAL, FRUIT)
    assert np.array_equal(one.thresholds, other.thresholds)


def test_twins_do_not_teach_each_other_to_turn_away_what_both_serve() -> None:
    twin = brick("fruit-2", "aab", "baab", "abba", "baba")
    alone, beside = calibrated(FRUIT, METAL), calibrated(FRUIT, METAL, twin)
    assert beside.thresholds[0] == pytest.approx(alone.thresholds[0], abs=0.1)
    assert beside.kept == 1


def test_one_exemplar_each_still_gives_thresholds_from_the_other_bricks() -> None:
    found = calibrated(brick("a", "aab"), brick("b", "abb"), brick("c", "xyz"))
    assert "no brick has two exemplars" in found.note
    assert np.isnan(found.kept)
    assert found.turned_away >= 0.75


@pytest.mark.parametrize("exemplars", [("aab", "abb"), ("aab", "abb", "abbb")])
def test_a_single_brick_guesses_from_its_own_exemplars(exemplars: tuple[str, ...]) -> None:
    found = calibrated(brick("a", *exemplars))
    assert "the threshold is a guess" in found.note
    assert np.isnan(found.turned_away)
    assert found.thresholds[0] == pytest.approx(0.75 * found.reach[0])
    background = calibrated(brick("a", *exemplars), background=("xyz", "xxy"))
    assert background.note == ""


@pytest.mark.parametrize(("exemplars", "function"), [(("aab",), ""), ((), "fruit")])
def test_a_single_text_passes_alone(exemplars: tuple[str, ...], function: str) -> None:
    found = calibrated(brick("a", *exemplars, function=function))
    assert "only the brick's very text" in found.note
    assert found.thresholds.tolist() == pytest.approx([0.999])


def test_two_or_three_exemplars_beside_a_richer_brick_borrow_its_reach() -> None:
    poor, rich = calibrated(brick("a", "aab", "acc"), METAL).reach
    own_alone = calibrated(brick("a", "aab", "acc")).reach[0]
    assert own_alone < poor < rich
