"""What the sparse FFN kernels read: one record of weights per neuron; their C source lies beside.

A chosen neuron's weights are one stretch of memory, whether it is chosen with its neighbours or
alone. Loaders of the other layouts read ``down`` in as many pieces as there are hidden channels.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import activations

from brickwork.errors import ConfigurationError
from brickwork.model.ffn import FFN

# Functions and modules of torch and transformers, by the name that the kernels know them by. A
# module is known by its type; one with settings of its own must have the usual ones.
ACTIVATIONS: Mapping[object, str] = {
    nn.SiLU: "silu",
    nn.functional.silu: "silu",
    activations.SiLUActivation: "silu",
    activations.GELUActivation: "gelu",
    nn.functional.gelu: "gelu",
    activations.GELUTanh: "gelu_tanh",
    activations.NewGELUActivation: "gelu_tanh",
    nn.ReLU: "relu",
    nn.functional.relu: "relu",
    activations.ReLUSquaredActivation: "relu2",
}


@dataclass(frozen=True, eq=False)
class Records:
    """The weights of one FFN, one record after the other.

    Attributes:
        weights: for each neuron its gate row, up row and down column, one after the other;
            without a gate, its up row and down column.
        activation: the function of the gate, or of ``up`` where there is no gate.
        gated: whether there is a gate.
    """

    weights: Float[Tensor, "neurons record"]
    activation: Callable[[Tensor], Tensor]
    gated: bool
    gate_bias: Float[Tensor, " neurons"] | None = None
    up_bias: Float[Tensor, " neurons"] | None = None
    down_bias: Float[Tensor, " hidden"] | None = None

    @property
    def neurons(self) -> int:
        """How many records there are."""
        return self.weights.shape[0]

    @property
    def hidden(self) -> int:
        """The width of what the FFN reads and writes."""
        return self.weights.shape[1] // (3 if self.gated else 2)

    @property
    def activation_name(self) -> str | None:
        """What the kernels call the activation; None for one that only torch computes."""
        known = ACTIVATIONS.get(type(self.activation))
        if known is None and not isinstance(self.activation, nn.Module):
            known = ACTIVATIONS.get(self.activation)
        return known

    @classmethod
    def pack(cls, ffn: FFN) -> "Records":
        """Copy an FFN's weights into records; the biases stay the FFN's own.

        On Linux the memory is of huge pages where the system allows them: scattered records
        touch many pages.

        Raises:
            ConfigurationError: if the weights differ in dtype or device.
        """
        parts = [part for part in (ffn.gate, ffn.up, ffn.down.T) if part is not None]
        kinds = {(part.dtype, part.device) for part in parts}
        if len(kinds) > 1:
            raise ConfigurationError(
                f"Records.pack needs weights of one dtype on one device, but these are of "
                f"{sorted(map(str, kinds))}; convert them first."
            )
        hidden = ffn.up.shape[1]
        weights = ffn.up.new_empty(ffn.neurons, len(parts) * hidden, requires_grad=False)
        _ask_for_huge_pages(weights)
        with torch.no_grad():
            for place, part in enumerate(parts):
                weights[:, place * hidden : (place + 1) * hidden] = part
        biases = [b if b is None else b.detach() for b in (ffn.gate_bias, ffn.up_bias)]
        down_bias = None if ffn.down_bias is None else ffn.down_bias.detach()
        return cls(weights, ffn.activation, ffn.gate is not None, biases[0], biases[1], down_bias)

    def as_ffn(self) -> FFN:
        """The FFN whose weights are views of the records."""
        gate, up, down = self.parts()
        return FFN(
            activation=self.activation,
            up=up,
            down=down.T,
            gate=gate,
            up_bias=self.up_bias,
            down_bias=self.down_bias,
            gate_bias=self.gate_bias,
        )

    def parts(
        self, first: int = 0, last: int | None = None
    ) -> tuple[
        Float[Tensor, "some hidden"] | None,
        Float[Tensor, "some hidden"],
        Float[Tensor, "some hidden"],
    ]:
        """Views of the gate, up and down parts of the records from ``first`` up to ``last``."""
        parts = self.weights[first:last].split(self.hidden, dim=1)
        return (parts[0] if self.gated else None, parts[-2], parts[-1])


def _ask_for_huge_pages(tensor: Tensor) -> None:
    """Only a wish: a system that has none, or refuses, changes nothing."""
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    page, bytes_ = mmap.PAGESIZE, tensor.untyped_storage().nbytes()
    first = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + bytes_ - first) // page * page
    if length > 0:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
