"""Measures of a stream, against matrices worked out by hand and a loop over numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brickwork.errors import GrowthError
from brickwork.grow.stream_measures import (
    average,
    backward_transfer,
    changes,
    forward_transfer,
    gain_share,
    gains,
)

# Before the stream, after a, after b, after c; worked out by hand below.
LOSSES = [[4.0, 5.0, 6.0], [1.0, 4.0, 6.5], [2.0, 1.0, 5.0], [2.5, 1.5, 2.0]]


def test_the_measures_of_a_small_stream_are_as_worked_out_by_hand() -> None:
    assert average(LOSSES) == 2.0  # of 2.5, 1.5 and 2
    assert backward_transfer(LOSSES) == 1.0  # a went from 1 to 2.5, b from 1 to 1.5
    assert forward_transfer(LOSSES) == -1.0  # b from 5 to 4 before it came, c from 6 to 5
    assert gains(LOSSES) == [1.5, 3.5, 4.0]
    assert changes(LOSSES) == [-1.5, -3.5, -4.0]
    assert gain_share(LOSSES, [*LOSSES[:3], [1.0, 1.0, 1.0]]) == 0.75  # 9 of 12


@given(st.integers(2, 6).flatmap(lambda n: st.lists(
    st.lists(st.integers(-9, 9).map(float), min_size=n, max_size=n), min_size=n + 1, max_size=n + 1
)))  # fmt: skip
def test_transfer_equals_the_papers_formulas(matrix: list[list[float]]) -> None:
    # Lopez-Paz & Ranzato 2017: R[i, j] on task j after task i, b the model before the stream.
    b, R = np.array(matrix[0]), np.array(matrix[1:])
    tasks = len(R)
    backward = sum(R[tasks - 1, i] - R[i, i] for i in range(tasks - 1)) / (tasks - 1)
    forward = sum(R[i - 1, i] - b[i] for i in range(1, tasks)) / (tasks - 1)
    # Whole numbers: sums are exact, and one division rounds alike but for its last bit.
    assert backward_transfer(matrix) == pytest.approx(backward, abs=1e-12)
    assert forward_transfer(matrix) == pytest.approx(forward, abs=1e-12)


def test_one_task_has_no_transfer() -> None:
    assert backward_transfer([[3.0], [1.0]]) is None
    assert forward_transfer([[3.0], [1.0]]) is None


def test_a_matrix_that_is_none_of_a_stream_is_refused() -> None:
    with pytest.raises(GrowthError, match="2 rows with \\[2\\] columns"):
        backward_transfer([[1.0, 2.0], [1.0, 2.0]])


def test_a_share_of_no_gain_is_refused() -> None:
    with pytest.raises(GrowthError, match=r"gains 0\.000 nats"):
        gain_share([[1.0], [0.5]], [[1.0], [1.0]])
