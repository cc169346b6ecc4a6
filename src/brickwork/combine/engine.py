"""A plan carried out: read in pieces, combined in float32, rounded once, written in place.

No tensor is ever held whole, so that memory does not grow with the models; several tensors are at
work at once, each on one thread. What is finished is safe from a kill.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.combine.memory import most_workers
from brickwork.combine.methods import find_method
from brickwork.combine.operands import Combine, Operands
from brickwork.combine.plan import MergePlan, TensorPlan
from brickwork.combine.small_files import file_states, merge_key, small_files
from brickwork.combine.sources import COPY, Extras, Sources, Turned, raw_bytes
from brickwork.combine.workshop import Workshop, open_workshop
from brickwork.errors import MergeError
from brickwork.model.shard_layout import Place, Shape, lay_out

__all__ = ["Extras", "MergeSummary", "write_merge"]

SHARD_BYTES = 5_000_000_000
# A kill costs at most about so much work.
_SYNC_BYTES, _SYNC_SECONDS = 1 << 30, 10.0
_LARGEST_PIECES = 30 << 20  # bytes; glibc raises its bound to no more than 32 MiB
_NO_EXTRAS = Extras()


@dataclass(frozen=True)
class MergeSummary:
    """What a merge has done.

    Attributes:
        tensors: how many the output has.
        resumed: how many of them an earlier, interrupted run had made.
        bytes: of all tensors of the output.
        files: of weights.
        workers: tensors at work at once.
        seconds: from start to end.
    """

    tensors: int
    resumed: int
    bytes: int
    files: int
    workers: int
    seconds: float


def write_merge(
    plan: MergePlan,
    folder: Path,
    *,
    extras: Extras = _NO_EXTRAS,
    sources: Sources | None = None,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[int], None] = lambda _bytes: None,
) -> MergeSummary:
    """Write the merge as a new checkpoint: all of it, or nothing.

    If the process is killed, the same call goes on where it stopped.

    Args:
        plan: what to merge and how.
        folder: where; there must be nothing yet.
        extras: what the plan does not say.
        sources: of this plan and these extras, if they are open already.
        workers: tensors at work at once; None: one for each core, if memory allows.
        shard_bytes: most bytes of tensors in a file.
        advance: told the bytes of output that have just been finished.

    Raises:
        MergeError: if the place is taken or too small, sources do not go together or change
            meanwhile, or a value is not finite or too large for its dtype.
    """
    started = time.perf_counter()
    sources = Sources(plan, extras) if sources is None else sources
    shapes = [Shape(t.name, t.dtype, t.shape) for t in plan.tensors]
    sizes = {shape.name: shape.bytes for shape in shapes}
    layout = lay_out(shapes, shard_bytes)
    states = file_states(sources.files())
    key = merge_key(plan, extras, states, layout)
    threads = most_workers(plan) if workers is None else workers
    if threads < 1:
        raise MergeError(f"{threads} tensors were to be at work at once; let it be 1 or more.")
    with open_workshop(folder, key, layout) as workshop:
        left = sorted(
            (t for t in plan.tensors if t.name not in workshop.finished),
            key=lambda t: -sizes[t.name],
        )
        resumed = len(plan.tensors) - len(left)
        advance(layout.bytes - sum(sizes[t.name] for t in left))
        jobs = {
            t.name: partial(_write_tensor, sources, t, workshop.new, layout.places[t.name])
            for t in left
        }
        _carry_out(jobs, sizes, threads, workshop, advance)
        if file_states(sources.files()) != states:
            raise MergeError(
                "files of the models changed while they were merged, so the result is of neither "
                "state; begin again when they rest."
            )
        workshop.publish(folder.absolute(), small_files(plan, extras, layout.index, sources))
    spent = time.perf_counter() - started
    return MergeSummary(len(plan.tensors), resumed, layout.bytes, len(layout.sizes), threads, spent)


Job = Callable[[threading.Event], None]


def _carry_out(
    jobs: Mapping[str, Job],
    sizes: Mapping[str, int],
    workers: int,
    workshop: Workshop,
    advance: Callable[[int], None],
) -> None:
    """Do all jobs; note what is finished, and make it safe now and then."""
    unsafe, since = 0, time.monotonic()
    with _Threads(jobs, workers) as threads:
        for name in threads.ended():
            workshop.done([name])
            advance(sizes[name])
            unsafe += sizes[name]
            if unsafe > _SYNC_BYTES or time.monotonic() - since > _SYNC_SECONDS:
                workshop.sync()
                unsafe, since = 0, time.monotonic()


class _Threads:
    """Threads that do jobs in their order, each with one thread of torch's inside."""

    def __init__(self, jobs: Mapping[str, Job], workers: int) -> None:
        self._jobs, self._left = jobs, iter(jobs)
        self._stop, self._taking = threading.Event(), threading.Lock()
        self._ended = SimpleQueue[str | BaseException]()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        self._intra_op = torch.get_num_threads()

    def __enter__(self) -> "_Threads":
        # glibc gives freed memory back above a bound, which it raises to what it has once seen
        # freed. Without this the pages of every piece are given back and asked for again.
        torch.empty(_LARGEST_PIECES, dtype=torch.uint8)
        torch.set_num_threads(1)  # threads that are started from here on inherit it
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        torch.set_num_threads(self._intra_op)

    def ended(self) -> Iterator[str]:
        """The jobs as they end; the first error of one is raised, and stops the others."""
        for _ in self._jobs:
            result = self._ended.get()
            if isinstance(result, BaseException):
                raise result
            yield result

    def _work(self) -> None:
        while (name := self._take()) is not None:
            try:
                self._jobs[name](self._stop)
            except BaseException as error:
                self._stop.set()
                self._ended.put(error)
                return
            if not self._stop.is_set():
                self._ended.put(name)

    def _take(self) -> str | None:
        with self._taking:
            return None if self._stop.is_set() else next(self._left, None)


def _write_tensor(
    sources: Sources, tensor: TensorPlan, folder: Path, place: Place, stop: threading.Event
) -> None:
    opened = sources.open(tensor)
    with (folder / place.file).open("r+b", buffering=0) as file:
        file.seek(place.offset)
        for rows in _results(sources, tensor, opened):
            if stop.is_set():
                return
            _write(file.write, rows)


def _results(sources: Sources, tensor: TensorPlan, opened: Tensor | Operands) -> Iterator[Tensor]:
    """The output's values in their order and dtype."""
    if isinstance(opened, Tensor):
        _require_shape(tensor, tuple(opened.shape))
        yield opened
        return
    _require_shape(tensor, opened.shape)
    if opened.statistics and sources.is_turned(tensor):
        turned = replace(opened, sources=[Turned(source) for source in opened.sources])
        yield torch.cat(list(_merged(tensor, turned))).T
        return
    yield from _merged(tensor, opened)


def _merged(tensor: TensorPlan, operands: Operands) -> Iterator[Tensor]:
    combine: Combine = (
        (lambda piece: piece.tensors[0])
        if tensor.method == COPY
        else find_method(tensor.method).prepare(operands, tensor.parameters)
    )
    for piece in operands.pieces():
        yield _rounded(tensor, combine(piece))


def _rounded(tensor: TensorPlan, rows: Float[Tensor, "rows columns"]) -> Tensor:
    result = rows.to(tensor.dtype)
    # A sum is one quick pass; only if it overflowed are all values looked at.
    if not math.isfinite(result.sum().item()) and not result.isfinite().all():
        raise MergeError(
            f"a value of the merged tensor {tensor.name!r} (up to {rows.abs().max():.4g}) is "
            f"beyond what {tensor.dtype} can hold; choose another dtype for the output, or "
            "smaller weights."
        )
    return result


def _write(write: Callable[[memoryview], int | None], rows: Tensor) -> None:
    left = raw_bytes(rows).numpy().data
    while left:
        left = left[write(left) or 0 :]


def _require_shape(tensor: TensorPlan, found: tuple[int, ...]) -> None:
    if found != tensor.shape:
        raise MergeError(
            f"the tensor {tensor.name!r} was planned with the shape {list(tensor.shape)}, but its "
            f"sources have {list(found)}; the models do not go together."
        )
