"""What a stream of tasks did, from the matrix of its losses or accuracies.

The first row of a matrix is the model before the stream, row ``i`` the model after ``i`` tasks;
column ``j`` is what it is measured on. All functions take losses and accuracies alike: a sign that
is good for accuracies is bad for losses.
"""

from collections.abc import Sequence
from math import fsum

from brickwork.errors import GrowthError

Matrix = Sequence[Sequence[float]]


def average(matrix: Matrix) -> float:
    """The mean over all tasks after the last one.

    >>> average([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0]])
    1.5
    """
    return _mean(matrix[-1])


def backward_transfer(matrix: Matrix) -> float | None:
    """By how much tasks changed since each was learned: of losses, above 0 is forgetting.

    The last task, which nothing came after, does not count; of one task there is no telling.

    Source:
        Lopez-Paz & Ranzato 2017, Gradient Episodic Memory (arXiv:1706.08840), BWT.

    >>> backward_transfer([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0]])
    1.0
    """
    changes = [matrix[-1][task] - matrix[task + 1][task] for task in range(_tasks(matrix) - 1)]
    return _mean(changes) if changes else None


def forward_transfer(matrix: Matrix) -> float | None:
    """By how much tasks changed before each was learned: of losses, below 0 is a head start.

    The first task, which nothing came before, does not count; of one task there is no telling.

    Source:
        Lopez-Paz & Ranzato 2017 (arXiv:1706.08840), FWT. They compare with random weights, we with
        the model before the stream.

    >>> forward_transfer([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0]])
    -1.0
    """
    changes = [matrix[task][task] - matrix[0][task] for task in range(1, _tasks(matrix))]
    return _mean(changes) if changes else None


def gains(matrix: Matrix) -> list[float]:
    """By how much each task's loss fell from before the stream to its end.

    >>> gains([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0]])
    [1.0, 2.0]
    """
    return [before - after for before, after in zip(matrix[0], matrix[-1], strict=True)]


def gain_share(matrix: Matrix, oracle: Matrix) -> float:
    """The mean gain over tasks, as a share of the oracle's.

    Raises:
        GrowthError: if they are of different tasks, or the oracle gains nothing.

    >>> gain_share([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0]], [[3.0, 3.0], [1.0, 3.0], [1.0, 1.0]])
    0.75
    """
    own, best = gains(matrix), gains(oracle)
    if len(own) != len(best) or fsum(best) <= 0:
        raise GrowthError(
            f"a share of the oracle's gain was asked for, over {len(own)} tasks where the oracle "
            f"gains {fsum(best):.3f} nats over {len(best)}; compare runs of the same tasks, which "
            "the oracle has learned."
        )
    return fsum(own) / fsum(best)


def changes(matrix: Matrix) -> list[float]:
    """By how much each column changed from before the stream to its end.

    >>> changes([[1.0, 2.0], [1.5, 2.0]])
    [0.5, 0.0]
    """
    return [after - before for before, after in zip(matrix[0], matrix[-1], strict=True)]


def _tasks(matrix: Matrix) -> int:
    """How many tasks there are: a column for each, and a row more than that."""
    tasks = len(matrix) - 1
    if tasks < 1 or any(len(row) != tasks for row in matrix):
        raise GrowthError(
            f"a matrix of {len(matrix)} rows with {sorted({len(row) for row in matrix})} columns "
            "is not one of a stream; give a row before the first task and one after each, with a "
            "column for each task."
        )
    return tasks


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)
