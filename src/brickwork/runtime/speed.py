"""How fast the FFN of a model decodes when only part of it is read, on this machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter

import torch

from brickwork.measure.selection_results import SpeedRow
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.load import LoadedModel
from brickwork.model.parts import layers_of
from brickwork.runtime.kernels import Records
from brickwork.runtime.sparse_ffn import best_path, sparse_ffn

ROUNDS = 7


@torch.no_grad()
def ffn_speeds(
    loaded: LoadedModel, densities: Sequence[float], generator: torch.Generator
) -> list[SpeedRow]:
    """Seconds of one FFN for one token, dense and over random single neurons of each density.

    Before each call the weights of other layers are read, so that a model that does not fit the
    processor's caches is measured as it decodes: from memory. Times are medians.

    Args:
        loaded: a model with at least one dense FFN; without one the list is empty.
        densities: shares of the neurons, over 0 and at most 1.
        generator: chooses the neurons; on the CPU.
    """
    model = loaded.model
    ffns = [f for n in range(layers_of(model)) if isinstance(f := ffn_of(model, n), FFN)]
    if not ffns:
        return []
    ffn = max(ffns, key=attrgetter("neurons"))
    records = Records.pack(ffn)
    x = torch.randn(1, records.hidden, generator=generator).to(ffn.up)

    def others_read() -> None:
        for other in ffns:
            if other is not ffn:
                other.up.sum()
                other.down.sum()

    dense = _seconds(lambda: ffn(x), others_read)
    rows = []
    for density in densities:
        many = max(1, round(density * ffn.neurons))
        chosen = torch.randperm(ffn.neurons, generator=generator)[:many].sort().values.to(x.device)
        sparse = _seconds(partial(sparse_ffn, records, x, chosen), others_read)
        rows.append(
            SpeedRow(
                density=density,
                tokens=1,
                dense=dense,
                sparse=sparse,
                path=best_path(records),
                dtype=str(x.dtype).removeprefix("torch."),
                threads=torch.get_num_threads(),
            )
        )
    return rows


def _seconds(work: Callable[[], object], before: Callable[[], None]) -> float:
    found = []
    for _ in range(ROUNDS):
        before()
        started = time.perf_counter()
        work()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found)
