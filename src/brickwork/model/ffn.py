"""The FFN of a layer, rebuilt from its roles: alike in every family.

A gated FFN is ``down(act(gate x) * up x)``, a vanilla one ``down(act(up x))``; the vector that
``down`` reads holds the activations of the neurons (Xiao et al. 2024, arXiv:2409.02877, 2.1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from brickwork.model.parts import Part, experts_row_of, ffn_row_of, part_of, role_path


@dataclass(frozen=True, eq=False)
class FFN:
    """One FFN, or one expert. The tensors are views of the model's own weights, never copies.

    Attributes:
        activation: the function of the gate, or of ``up`` where there is no gate.
        gate: None in a vanilla FFN.
    """

    activation: Callable[[Tensor], Tensor]
    up: Float[Tensor, "neurons hidden"]
    down: Float[Tensor, "hidden neurons"]
    gate: Float[Tensor, "neurons hidden"] | None = None
    up_bias: Float[Tensor, " neurons"] | None = None
    down_bias: Float[Tensor, " hidden"] | None = None
    gate_bias: Float[Tensor, " neurons"] | None = None

    @property
    def neurons(self) -> int:
        """The inner width."""
        return len(self.up)

    def activations(self, x: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens neurons"]:
        """What every neuron says about the input; the output projection reads this."""
        up = nn.functional.linear(x, self.up, self.up_bias)
        if self.gate is None:
            return self.activation(up)
        return self.activation(nn.functional.linear(x, self.gate, self.gate_bias)) * up

    def output(self, h: Float[Tensor, "*tokens neurons"]) -> Float[Tensor, "*tokens hidden"]:
        """What the FFN adds to the residual stream for these activations."""
        return nn.functional.linear(h, self.down, self.down_bias)

    def __call__(self, x: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        return self.output(self.activations(x))


@dataclass(frozen=True, eq=False)
class Experts:
    """The FFN of an MoE layer. Neuron i of expert e counts as neuron ``e * width + i``."""

    router: nn.Module
    experts: tuple[FFN, ...]

    @property
    def neurons(self) -> int:
        """The inner widths of all experts together."""
        return sum(expert.neurons for expert in self.experts)

    def route(
        self, x: Float[Tensor, "tokens hidden"]
    ) -> tuple[Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"]]:
        """The weights and the numbers of the experts that the model's router picks."""
        _, weights, chosen = self.router(x)
        return weights, chosen

    def __call__(self, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        weights, chosen = self.route(x)
        total = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            term = expert(x[token]) * weights[token, place, None]
            total.index_add_(0, token, term.to(total.dtype))
        return total


def ffn_of(model: PreTrainedModel, layer: int) -> FFN | Experts:
    """The FFN of a layer, on the model's live weights.

    Raises:
        UnknownNameError: if no row describes the family.
        ModelError: if the layer does not match the row.
    """
    ffn = ffn_row_of(model, layer)
    activation = model.get_submodule(ffn.activation.replace("{layer}", str(layer)))
    if ffn.form == "moe_gated":
        return _experts(model, activation, layer)
    gate = None if ffn.form == "vanilla" else part_of(model, "mlp.gate", layer)
    up, down = part_of(model, "mlp.up", layer), part_of(model, "mlp.down", layer)
    return FFN(
        activation=activation,
        up=_weight(model, up),
        down=_weight(model, down),
        gate=_weight(model, gate) if gate else None,
        up_bias=_bias(model, up),
        down_bias=_bias(model, down),
        gate_bias=_bias(model, gate) if gate else None,
    )


def _experts(model: PreTrainedModel, activation: nn.Module, layer: int) -> Experts:
    row = experts_row_of(model, layer)
    gate_up, down = model.get_parameter(row.gate_up), model.get_parameter(row.down)
    gate, up = gate_up.chunk(2, dim=1)  # experts neurons hidden
    return Experts(
        router=model.get_submodule(role_path(model, "mlp.router", layer) or ""),
        experts=tuple(
            FFN(activation, up[e], down[e], gate=gate[e]) for e in range(gate_up.shape[0])
        ),
    )


def _weight(model: PreTrainedModel, part: Part) -> Float[Tensor, "out in"]:
    weight = model.get_parameter(part.weight)
    oriented = weight if part.out_axis == 0 else weight.T
    return oriented[part.outputs[0] : part.outputs[-1] + 1]


def _bias(model: PreTrainedModel, part: Part) -> Float[Tensor, " out"] | None:
    if part.bias is None:
        return None
    return model.get_parameter(part.bias)[part.outputs[0] : part.outputs[-1] + 1]
