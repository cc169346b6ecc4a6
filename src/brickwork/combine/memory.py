"""How much memory a merge takes, and how many tensors can be at work at once."""

import os
from pathlib import Path

from brickwork.combine.methods import find_method
from brickwork.combine.operands import PIECE
from brickwork.combine.plan import MergePlan, TensorPlan

_COPY = "copy"
# Copies of a piece that a method makes of each operand, and beside them.
_PER_OPERAND, _BESIDE = 3, 4
_RUNTIME = 200 << 20  # what Python and torch take


def peak_memory(plan: MergePlan, workers: int) -> int:
    """An upper estimate of the bytes that a merge takes beside the files it maps."""
    largest = sorted((worker_memory(t) for t in plan.tensors), reverse=True)[:workers]
    return _RUNTIME + sum(largest)


def worker_memory(tensor: TensorPlan) -> int:
    """An upper estimate of the bytes that one tensor takes while it is at work."""
    if tensor.method == _COPY:
        return 4 * PIECE
    columns = tensor.shape[-1] if tensor.shape else 1
    operands = len(tensor.operands) + (tensor.base is not None)
    pieces = 4 * max(PIECE, columns) * (_PER_OPERAND * operands + _BESIDE)
    if find_method(tensor.method).statistics != "gram" or len(tensor.shape) != 2:
        return pieces
    return pieces + 8 * max(tensor.shape) ** 2 * (operands + 2)


def most_workers(plan: MergePlan) -> int:
    """One for each core that this process may use, or fewer if memory is short."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = _available_memory()
    workers = cores or 1
    while workers > 1 and free is not None and peak_memory(plan, workers) > free:
        workers -= 1
    return workers


def _available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) << 10 if found else None
