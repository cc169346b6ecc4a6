"""The sparse FFN on CUDA, in Triton: one kernel for the activations, one for the output.

It has only run in Triton's interpreter (``TRITON_INTERPRET=1``) so far, never on a GPU: its numbers
are tested, its speed is not known. The second kernel adds up shares of the neurons without atomics,
so that equal inputs give equal bits.

Source: the gathered products of DejaVu (Liu et al. 2023, arXiv:2310.17157), with one record of
gate, up and down per neuron in place of three matrices.
"""

import functools
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.errors import ConfigurationError
from brickwork.runtime.kernels import Records

# CPU builds of torch come without Triton; ``misfit`` says so. Kernels find ``tl`` here,
# and their annotations need its word for what is known when they are compiled.
try:
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError:
    triton, tl = None, SimpleNamespace(constexpr=None)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The numbers are those of _activations_kernel.
ACTIVATION_CODES: Mapping[str, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}
BLOCK_NEURONS, BLOCK_HIDDEN = 16, 128
# Shares of the neurons whose outputs are computed side by side, so that a GPU is busy.
SHARES = 16


def misfit(records: Records) -> str | None:
    """Why these records cannot take this path; None if they can."""
    weights = records.weights
    if triton is None:
        return "triton is not installed (pip install 'brickwork[gpu]')"
    if weights.device.type != "cuda" and not _interpreted():
        return f"it computes on CUDA, and these weights are on {weights.device}"
    if weights.dtype not in DTYPES:
        return f"it reads {', '.join(map(str, DTYPES))}, and these weights are {weights.dtype}"
    if records.activation_name not in ACTIVATION_CODES:
        return f"it computes {', '.join(ACTIVATION_CODES)}, and this activation is none of them"
    return None


def triton_sparse_ffn(
    records: Records,
    x: Float[Tensor, "tokens hidden"],
    neurons: Int[Tensor, " chosen"],
    *,
    keep: Bool[Tensor, "tokens chosen"] | None = None,
) -> Float[Tensor, "tokens hidden"]:
    """As ``sparse_ffn``, which checks shapes and numbers, by Triton's kernels.

    Raises:
        ConfigurationError: if the kernels cannot read these records.
    """
    problem = misfit(records)
    if problem:
        raise ConfigurationError(
            f"the Triton sparse FFN cannot be used here: {problem}; take path='torch'."
        )
    activations, outputs = _kernels()
    weights, x, neurons = (
        records.weights.contiguous(),
        x.detach().contiguous(),
        neurons.contiguous(),
    )
    tokens, hidden, chosen = len(x), records.hidden, len(neurons)
    width, share = weights.shape[1], -(-chosen // SHARES)
    first, second = records.gate_bias, records.up_bias
    if not records.gated:
        first, second = records.up_bias, None
    h = x.new_zeros(tokens, chosen, dtype=torch.float32)
    shares = x.new_zeros(SHARES, tokens, hidden, dtype=torch.float32)
    if chosen and tokens:
        # In the place of a bias that is not there another tensor is passed, and not read.
        activations[tokens, _blocks(chosen, BLOCK_NEURONS)](
            weights, x, neurons, _or(first, x), _or(second, x), h, hidden, width, chosen,
            GATED=records.gated, FIRST_BIAS=first is not None, SECOND_BIAS=second is not None,
            ACTIVATION=ACTIVATION_CODES[records.activation_name or ""],
            BLOCK_NEURONS=BLOCK_NEURONS, BLOCK_HIDDEN=BLOCK_HIDDEN,
        )  # fmt: skip
        if keep is not None:
            h *= keep
        outputs[tokens, _blocks(hidden, BLOCK_HIDDEN), SHARES](
            weights, neurons, h, shares, hidden, width, chosen, share, tokens,
            BLOCK_NEURONS=BLOCK_NEURONS, BLOCK_HIDDEN=BLOCK_HIDDEN,
        )  # fmt: skip
    y = shares.sum(0)
    return (y if records.down_bias is None else y + records.down_bias).to(x.dtype)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


def _or(bias: Tensor | None, other: Tensor) -> Tensor:
    return other if bias is None else bias.contiguous()


@functools.cache
def _kernels() -> tuple[Any, Any]:
    return triton.jit(_activations_kernel), triton.jit(_outputs_kernel)


# Triton needs plain functions whose arguments are those of a launch.
def _activations_kernel(  # type: ignore[no-untyped-def] # noqa: PLR0913, PLR0917
    weights, x, neurons, first_bias, second_bias, h,
    hidden, width, chosen,
    GATED: tl.constexpr, FIRST_BIAS: tl.constexpr, SECOND_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_NEURONS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """One token and a block of chosen neurons; tokens come first, so that they share weights."""
    token = tl.program_id(0)
    places = tl.program_id(1) * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    real = places < chosen
    numbers = tl.load(neurons + places, mask=real, other=0)
    rows = numbers.to(tl.int64) * width
    first = tl.zeros((BLOCK_NEURONS,), dtype=tl.float32)
    second = tl.zeros((BLOCK_NEURONS,), dtype=tl.float32)
    for start in range(0, hidden, BLOCK_HIDDEN):
        columns = start + tl.arange(0, BLOCK_HIDDEN)
        inside = columns < hidden
        both = real[:, None] & inside[None, :]
        at = weights + rows[:, None] + columns[None, :]
        values = tl.load(x + token * hidden + columns, mask=inside, other=0.0).to(tl.float32)
        row = tl.load(at, mask=both, other=0.0).to(tl.float32)
        first += tl.sum(row * values[None, :], axis=1)
        if GATED:
            row = tl.load(at + hidden, mask=both, other=0.0).to(tl.float32)
            second += tl.sum(row * values[None, :], axis=1)
    if FIRST_BIAS:
        first += tl.load(first_bias + numbers, mask=real, other=0.0).to(tl.float32)
    if SECOND_BIAS:
        second += tl.load(second_bias + numbers, mask=real, other=0.0).to(tl.float32)
    if ACTIVATION == 0:
        said = first * tl.sigmoid(first)
    elif ACTIVATION == 1:
        said = 0.5 * first * (1.0 + tl.erf(first * 0.7071067811865476))
    elif ACTIVATION == 2:  # 1 + tanh(u) is 2 sigmoid(2u)
        cubed = first + 0.044715 * first * first * first
        said = first * tl.sigmoid(1.5957691216057308 * cubed)
    elif ACTIVATION == 3:
        said = tl.where(first < 0.0, 0.0, first)
    else:
        said = tl.where(first < 0.0, 0.0, first * first)
    if GATED:
        said = said * second
    tl.store(h + token * chosen + places, said, mask=real)


def _outputs_kernel(  # type: ignore[no-untyped-def] # noqa: PLR0913, PLR0917
    weights, neurons, h, shares, hidden, width, chosen, share, tokens,
    BLOCK_NEURONS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """One token, a block of hidden channels and one share of the chosen neurons."""
    token, number = tl.program_id(0), tl.program_id(2)
    columns = tl.program_id(1) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    inside = columns < hidden
    total = tl.zeros((BLOCK_HIDDEN,), dtype=tl.float32)
    last = tl.minimum((number + 1) * share, chosen)
    for start in range(number * share, last, BLOCK_NEURONS):
        places = start + tl.arange(0, BLOCK_NEURONS)
        real = places < last
        rows = tl.load(neurons + places, mask=real, other=0).to(tl.int64) * width
        at = weights + rows[:, None] + (width - hidden) + columns[None, :]
        row = tl.load(at, mask=real[:, None] & inside[None, :], other=0.0).to(tl.float32)
        said = tl.load(h + token * chosen + places, mask=real, other=0.0)
        total += tl.sum(row * said[:, None], axis=0)
    tl.store(shares + (number * tokens + token) * hidden + columns, total, mask=inside)
