"""Brickwork as an engine for heterogeneous adapter batches, in the form benchmarks ask for.

``Engine(base, n, r, targets, adapters)`` takes adapters as ``{module: (A, B, scaling)}``; inside
``mixed(ids, idx)`` row i of the batch runs adapter ``idx[i]`` (-1: the bare base), inside
``single(i)`` the whole batch runs one.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from brickwork.brick.brick import Brick
from brickwork.brick.spec import BrickSpec
from brickwork.model.attach import attached
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.gather import Weighted, gather

Adapter = Mapping[str, tuple[Tensor, Tensor, float]]


def brick_of(adapter: Adapter, loaded: LoadedModel, name: str) -> Brick:
    """An adapter of one rank and one scaling as a brick."""
    (A, _, scaling), *_ = adapter.values()
    slots = {f"{m}/A": a for m, (a, _, _) in adapter.items()}
    slots |= {f"{m}/B": b for m, (_, b, _) in adapter.items()}
    spec = BrickSpec(
        name=name,
        form="lora",
        base=loaded.base.fingerprint,
        sites=tuple(adapter),
        options={"alpha": scaling * A.shape[0]},
    )
    return Brick(spec, slots)


class Engine:
    """Bricks in a bank; each batch gathers what its rows need, once."""

    def __init__(
        self,
        base: PreTrainedModel,
        count: int,
        rank: int,
        targets: Sequence[str],
        adapters: Sequence[Adapter],
    ) -> None:
        loaded = wrap_model(base)
        bricks = [brick_of(a, loaded, f"adapter-{i}") for i, a in enumerate(adapters)]
        started = time.perf_counter()
        self.model = base
        self.bank = ConfiguredModel(loaded).bank
        self.residents = [self.bank.load(brick) for brick in bricks]
        self.inject_s = time.perf_counter() - started
        self._single: int | None = None

    @contextmanager
    def mixed(self, ids: Tensor | None, idx: Sequence[int]) -> Iterator[None]:
        """Row i runs adapter ``idx[i]``."""
        rows = [[] if i < 0 else [Weighted(self.residents[i], 1.0)] for i in idx]
        with gather(self.bank, rows) as work, attached(self.model, len(rows), work):
            yield

    @contextmanager
    def single(self, i: int) -> Iterator[None]:
        """Every row runs adapter i, however many rows there are."""
        self._single = i
        try:
            yield
        finally:
            self._single = None

    def generate(self, **arguments: Any) -> Any:
        """Generation by transformers, inside one of the blocks above."""
        return self._served(self.model.generate, arguments)

    def __call__(self, **arguments: Any) -> Any:
        return self._served(self.model, arguments)

    def _served(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        if self._single is None:
            return function(**arguments)
        with self.mixed(None, [self._single] * len(arguments["input_ids"])):
            return function(**arguments)
