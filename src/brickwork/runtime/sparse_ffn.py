"""An FFN over chosen neurons only: what is not chosen is not read.

At decode an FFN's time is that of reading its weights, so reading a quarter of them takes a quarter
of the time; a mask over the dense result saves nothing. ``sparse_ffn`` has three paths (``PATHS``):
C on the CPU, Triton on CUDA, and torch, which is always there. The weights lie in ``Records``, into
which ``packed`` puts a whole model's. ``crossover`` measures when dense is the faster one.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from brickwork.brick.forms import load_target
from brickwork.errors import ConfigurationError, UnknownNameError
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.parts import CausalModel, ffn_row_of, layers_of, part_of
from brickwork.runtime.kernels import Records


@dataclass(frozen=True)
class PathRow:
    """One way to compute it.

    Attributes:
        problem: target of a function that says why these records cannot take this path, or None.
        run: target of the function that computes it.
    """

    problem: str
    run: str


# The best one first.
PATHS: Mapping[str, PathRow] = {
    "native": PathRow(
        "brickwork.runtime.sparse_native:misfit",
        "brickwork.runtime.sparse_native:native_sparse_ffn",
    ),
    "triton": PathRow(
        "brickwork.runtime.sparse_triton:misfit",
        "brickwork.runtime.sparse_triton:triton_sparse_ffn",
    ),
    "torch": PathRow(
        "brickwork.runtime.sparse_ffn:torch_misfit",
        "brickwork.runtime.sparse_ffn:torch_sparse_ffn",
    ),
}

# Runs of neighbours of this length on average are read where they are; shorter ones are gathered,
# since torch takes some microseconds for each.
LONG_RUN = 16
# Gathered records are used while they are in the processor's cache.
GATHERED_BYTES = 1 << 21

# A crossover is measured on so much of an FFN: more than caches hold, and quickly read.
MEASURED_BYTES = 1 << 26
MEASURED_TOKENS = (1, 2, 4, 8, 16)
MEASURED_DENSITIES = (0.1, 0.4)
MEASURED_TIMES = 3


def sparse_ffn(
    records: Records,
    x: Float[Tensor, "tokens hidden"],
    neurons: Int[Tensor, " chosen"],
    *,
    keep: Bool[Tensor, "tokens chosen"] | None = None,
    path: str | None = None,
) -> Float[Tensor, "tokens hidden"]:
    """What the FFN adds to the residual stream if only these neurons speak; no gradients.

    Sums are kept in float32 or better. Without any neuron the result is the bias of ``down``.

    Args:
        neurons: ascending numbers of the neurons that any of the tokens needs.
        keep: False silences a chosen neuron for a token.
        path: a name of ``PATHS``; by default the first that these records can take.

    Raises:
        ConfigurationError: if the tensors do not fit the records, or the path cannot be taken.
        UnknownNameError: if no path has that name.
    """
    _check(records, x, neurons, keep)
    name = best_path(records) if path is None else path
    if path is not None:
        _check_path(records, path)
    with torch.no_grad():
        y: Tensor = _target(PATHS[name].run)(records, x, neurons, keep=keep)
    return y


def available(records: Records) -> dict[str, str | None]:
    """For each path why these records cannot take it; None for those that they can."""
    return {name: _target(row.problem)(records) for name, row in PATHS.items()}


def best_path(records: Records) -> str:
    """The first path that these records can take."""
    return next(name for name, row in PATHS.items() if _target(row.problem)(records) is None)


def _check_path(records: Records, path: str) -> None:
    if path not in PATHS:
        raise UnknownNameError("path of sparse_ffn", path, PATHS)
    problem = _target(PATHS[path].problem)(records)
    if problem is not None:
        raise ConfigurationError(
            f"sparse_ffn was asked for path={path!r}, but {problem}; take path=None for the best "
            "one that is there."
        )


@functools.cache
def _target(target: str) -> Callable[..., Any]:
    found: Callable[..., Any] = load_target(target)
    return found


def _check(records: Records, x: Tensor, neurons: Tensor, keep: Tensor | None) -> None:
    weights, problem = records.weights, None
    if x.ndim != 2 or x.shape[1] != records.hidden:
        problem = f"x is of shape {list(x.shape)}, not [tokens, {records.hidden}]"
    elif (x.dtype, x.device) != (weights.dtype, weights.device):
        problem = f"x is {x.dtype} on {x.device}, the weights {weights.dtype} on {weights.device}"
    elif neurons.ndim != 1 or neurons.dtype != torch.int64 or neurons.device != x.device:
        problem = f"neurons is {neurons.dtype} of shape {list(neurons.shape)} on {neurons.device}"
    elif not _in_order(neurons, records.neurons):
        problem = f"neurons is not an ascending selection of 0 to {records.neurons - 1}"
    elif keep is not None and (keep.dtype, keep.device) != (torch.bool, x.device):
        problem = f"keep is {keep.dtype} on {keep.device}"
    elif keep is not None and keep.shape != (len(x), len(neurons)):
        problem = f"keep is of shape {list(keep.shape)}, not [{len(x)}, {len(neurons)}]"
    if problem:
        raise ConfigurationError(
            f"sparse_ffn was asked for {neurons.numel()} of {records.neurons} neurons, but "
            f"{problem}; pass x like the weights, neurons as ascending int64 without doubles, and "
            "keep as bool, all on one device."
        )


def _in_order(neurons: Tensor, most: int) -> bool:
    if not len(neurons):
        return True
    numbers = neurons.numpy(force=True)  # a few microseconds, a third of what torch takes
    return bool(numbers[0] >= 0 and numbers[-1] < most and (numbers[1:] > numbers[:-1]).all())


def torch_misfit(_records: Records) -> None:
    """Nothing: torch computes every FFN on every device."""


def torch_sparse_ffn(
    records: Records,
    x: Float[Tensor, "tokens hidden"],
    neurons: Int[Tensor, " chosen"],
    *,
    keep: Bool[Tensor, "tokens chosen"] | None = None,
) -> Float[Tensor, "tokens hidden"]:
    """As ``sparse_ffn``, which checks its arguments, by torch alone, piece after piece."""
    y = x.new_zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32))
    if records.down_bias is not None:
        y += records.down_bias
    for first, last, piece in _pieces(records, neurons):
        h = piece.activations(x)
        y += piece.output(h if keep is None else h * keep[:, first:last])
    return y.to(x.dtype)


def _pieces(records: Records, neurons: Tensor) -> Iterator[tuple[int, int, FFN]]:
    """Parts of the FFN, each with the places in ``neurons`` that it stands for."""
    chosen = len(neurons)
    ends = (neurons[1:] - neurons[:-1] != 1).nonzero().flatten().add_(1).tolist()
    if chosen >= LONG_RUN * (len(ends) + 1):
        starts = neurons[[0, *ends]].tolist()
        for first, last, start in zip([0, *ends], [*ends, chosen], starts, strict=True):
            yield first, last, _part(records, slice(start, start + last - first))
        return
    size = records.weights.shape[1] * records.weights.element_size()
    most = max(1, min(chosen, GATHERED_BYTES // size))
    buffer = records.weights.new_empty(most, records.weights.shape[1])
    for first in range(0, chosen, most):
        some = neurons[first : first + most]
        gathered = buffer[: len(some)]
        torch.index_select(records.weights, 0, some, out=gathered)
        yield first, first + len(some), _part(records, some, gathered)


def _part(records: Records, which: slice | Tensor, weights: Tensor | None = None) -> FFN:
    gate_bias, up_bias = records.gate_bias, records.up_bias
    return Records(
        weights=records.weights[which] if weights is None else weights,
        activation=records.activation,
        gated=records.gated,
        gate_bias=None if gate_bias is None else gate_bias[which],
        up_bias=None if up_bias is None else up_bias[which],
    ).as_ffn()


@contextmanager
def packed(model: CausalModel, *, release: bool = False) -> Iterator[dict[int, Records]]:
    """Inside the block every dense FFN's weights lie in records, which it yields by layer.

    The model's parameters are views of the records and compute what they did. Where no view can
    be one (a fused map of gate and up), the parameter stays and the records hold a copy. MoE
    layers are left out. The weights must not be changed inside; leaving the block gives every
    parameter what it had.

    Args:
        release: give up the parameters' own memory meanwhile, so that no weight is held twice;
            they get new memory with equal bits afterwards. Otherwise it is kept, and given back.

    Raises:
        UnknownNameError: if no row describes the model's family.
        ModelError: if a layer does not match the family's row.
        ConfigurationError: if the weights of an FFN differ in dtype or device.
    """
    with ExitStack() as undo:
        records: dict[int, Records] = {}
        for layer in range(layers_of(model)):
            if ffn_row_of(model, layer).form != "moe_gated":
                undo.callback(records.pop, layer)  # last, so that its memory goes then
                records[layer] = _pack_layer(model, layer, release, undo)
        yield records


def _pack_layer(model: CausalModel, layer: int, release: bool, undo: ExitStack) -> Records:
    ffn = ffn_of(model, layer)
    assert isinstance(ffn, FFN), "an FFN of another form than moe_gated is no group of experts"
    records = Records.pack(ffn)
    views = records.as_ffn()
    for role, view in (("mlp.gate", views.gate), ("mlp.up", views.up), ("mlp.down", views.down)):
        if view is None:
            continue
        part = part_of(model, role, layer)
        weight = model.get_parameter(part.weight)
        if len(part.outputs) == weight.shape[part.out_axis]:
            undo.callback(_restore, weight, None if release else weight.data)
            weight.data = view if part.out_axis == 0 else view.T
    return records


def _restore(weight: nn.Parameter, own: Tensor | None) -> None:
    new = torch.contiguous_format
    weight.data = weight.data.clone(memory_format=new) if own is None else own


@dataclass(frozen=True)
class SparsePolicy:
    """When reading only the chosen neurons is faster than reading all.

    Attributes:
        crossovers: for a number of tokens the density of their union below which it is; 0 says
            never, 1 always.
    """

    crossovers: Mapping[int, float]

    def choose(self, density: float, tokens: int) -> Literal["sparse", "dense"]:
        """The faster way; dense for more tokens than were measured.

        Args:
            density: the share of the neurons that any of the tokens needs.
        """
        measured = [most for most in sorted(self.crossovers) if most >= tokens]
        faster = bool(measured) and density < self.crossovers[measured[0]]
        return "sparse" if faster else "dense"


@dataclass(frozen=True)
class _Case:
    """What a crossover depends on."""

    neurons: int
    hidden: int
    gated: bool
    kind: str  # of the activation, of which every layer has one of its own
    activation: Callable[[Tensor], Tensor] = field(compare=False)
    dtype: torch.dtype
    device: torch.device
    path: str
    run: int
    threads: int


def crossover(records: Records, *, path: str | None = None, run: int = 1) -> SparsePolicy:
    """Measure, once for each kind of records, when the sparse path beats torch's dense FFN.

    It takes a fraction of a second, on weights of its own, and is remembered for this process.

    Args:
        path: as for ``sparse_ffn``.
        run: how many neighbours are chosen together, as in a group; 1 for single neurons.

    Raises:
        ConfigurationError: if the path cannot be taken, or no run of that length fits.
        UnknownNameError: if no path has that name.
    """
    size = records.weights.element_size() * records.weights.shape[1]
    neurons = min(records.neurons, max(MEASURED_BYTES // size, 8 * run))
    if not 1 <= run <= neurons:
        raise ConfigurationError(
            f"crossover was asked for runs of {run} neurons, but these records have "
            f"{records.neurons}; pass the size of a group, or 1."
        )
    if path is not None:
        _check_path(records, path)
    case = _Case(
        neurons=neurons,
        hidden=records.hidden,
        gated=records.gated,
        kind=records.activation_name or type(records.activation).__qualname__,
        activation=records.activation,
        dtype=records.weights.dtype,
        device=records.weights.device,
        path=path or best_path(records),
        run=run,
        threads=torch.get_num_threads(),
    )
    return _measured(case)


@functools.lru_cache(maxsize=64)
def _measured(case: _Case) -> SparsePolicy:
    width = case.hidden * (3 if case.gated else 2)
    # The speed does not depend on the numbers, as long as none is denormal.
    weights = torch.full((case.neurons, width), 0.01, dtype=case.dtype, device=case.device)
    records = Records(weights, case.activation, case.gated)
    return SparsePolicy({tokens: _crossover(records, case, tokens) for tokens in MEASURED_TOKENS})


def _crossover(records: Records, case: _Case, tokens: int) -> float:
    """The density at which the line through two sparse times meets the dense time."""
    x = records.weights.new_full((tokens, records.hidden), 0.01)
    ffn, seconds, densities = records.as_ffn(), [], []
    for wanted in MEASURED_DENSITIES:
        neurons = _scattered(case, wanted).to(case.device)
        densities.append(len(neurons) / records.neurons)
        work = functools.partial(sparse_ffn, records, x, neurons, path=case.path)
        seconds.append(_seconds(work, case.device))
    dense = _seconds(functools.partial(ffn, x), case.device)
    slope = (seconds[1] - seconds[0]) / max(densities[1] - densities[0], 1e-9)
    if slope <= 0:  # too small to tell, or noise
        return float(seconds[1] < dense)
    return min(max((dense - seconds[0]) / slope + densities[0], 0.0), 1.0)


def _scattered(case: _Case, density: float) -> Int[Tensor, " chosen"]:
    runs = case.neurons // case.run
    chosen = torch.randperm(runs, generator=torch.Generator().manual_seed(0))
    first = chosen[: max(1, round(density * runs))].sort().values * case.run
    return (first.unsqueeze(1) + torch.arange(case.run)).flatten()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(MEASURED_TIMES):
        started = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found)
