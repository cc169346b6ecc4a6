"""Taps: see, and change, what neurons, heads and blocks say while a model runs.

Inside ``tapped(model, neurons={3: f})`` the function ``f`` is called in every pass with the
activations that the output projection of layer 3 is about to read. It may change them in place
(not under autograd) or return others; what gradients are wanted of must be returned, too.
Leaving the block takes every tap away.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from brickwork.errors import ConfigurationError
from brickwork.model.ffn import FFN, Experts, ffn_of
from brickwork.model.heads import heads_of
from brickwork.model.parts import (
    CausalModel,
    experts_row_of,
    ffn_row_of,
    find_module,
    part_of,
    role_path,
)


@dataclass(frozen=True, eq=False)
class Routed:
    """Which experts the columns of an MoE layer's activations belong to.

    The activations of an MoE layer are compact: ``top_k * width`` columns, ``width`` for each
    expert that the router picked for the position. Neurons of other experts are silent there.

    Attributes:
        experts: the expert of every slot; neuron i of expert e counts as ``e * width + i``.
        width: neurons of one expert.
    """

    experts: Int[Tensor, "positions top_k"]
    width: int

    def entries(self, expert: int) -> tuple[Int[Tensor, " entries"], Int[Tensor, " entries"]]:
        """Position and slot of every time that an expert was picked."""
        position, slot = torch.where(self.experts == expert)
        return position, slot


# Activations are "positions neurons", all tokens of all rows one after the other; what comes back
# takes their place. In an MoE the weight that the router gives the expert is a factor of them, so
# that activation times output column is what a neuron adds to the residual stream, as elsewhere.
NeuronTap = Callable[[Float[Tensor, "positions neurons"], Routed | None], Tensor | None]
HeadTap = Callable[[Float[Tensor, "positions heads head_dim"]], Tensor | None]
# Gets what the FFN reads; in an MoE layer, what its experts read. It looks and changes nothing.
InputTap = Callable[[Float[Tensor, "positions hidden"]], None]
# Gets the residual stream before and after the block.
BlockTap = Callable[[Float[Tensor, "rows tokens hidden"], Tensor], Tensor | None]


@contextmanager
def tapped(
    model: CausalModel,
    *,
    neurons: Mapping[int, NeuronTap] | None = None,
    heads: Mapping[int, HeadTap] | None = None,
    blocks: Mapping[int, BlockTap] | None = None,
    inputs: Mapping[int, InputTap] | None = None,
) -> Iterator[None]:
    """Call the taps, one for each layer that is named, in every pass of the model.

    The tap on the input of a layer's FFN is called before the one on its neurons.

    Raises:
        UnknownNameError: if no row describes the model's family.
        ModelError: if a layer does not match the family's row.
        ConfigurationError: if experts are already changed by another block.
    """
    with ExitStack() as stack:
        for layer, neuron_tap in (neurons or {}).items():
            if ffn_row_of(model, layer).form == "moe_gated":
                stack.enter_context(_tapped_experts(model, layer, neuron_tap))
            else:
                down = model.get_submodule(part_of(model, "mlp.down", layer).module)
                stack.callback(down.register_forward_pre_hook(_neuron_hook(neuron_tap)).remove)
        for layer, head_tap in (heads or {}).items():
            o = model.get_submodule(part_of(model, "attn.o", layer).module)
            hook = _head_hook(head_tap, heads_of(model.config, layer).head_dim)
            stack.callback(o.register_forward_pre_hook(hook).remove)
        for layer, input_tap in (inputs or {}).items():
            reader = model.get_submodule(_reader_path(model, layer))
            stack.callback(reader.register_forward_pre_hook(_input_hook(input_tap)).remove)
        for layer, block_tap in (blocks or {}).items():
            block = model.get_submodule(role_path(model, "block", layer) or "")
            hooked = block.register_forward_hook(_block_hook(block_tap), with_kwargs=True)
            stack.callback(hooked.remove)
        yield


def output_norms(model: CausalModel, layer: int) -> Float[Tensor, " neurons"]:
    """The length of what every neuron adds to the residual stream per activation, in float32.

    That is the length of its output column. Where a norm follows (Gemma 2 and 3, OLMo 2), the
    column goes through its gains; the norm's scale, one number for each token, is left out.
    """
    ffn, gains = ffn_of(model, layer), norm_gains(model, "norms.mlp_out", layer)
    parts = [ffn] if isinstance(ffn, FFN) else ffn.experts
    return torch.cat([(part.down.detach().float() * gains).norm(dim=0) for part in parts])


def head_factors(model: CausalModel, layer: int) -> Float[Tensor, "heads head_dim head_dim"]:
    """For each head a matrix R such that |R z| is the length of what the head's value z adds.

    R is the triangular factor of the head's columns of the output projection, which go through
    the gains of a norm that follows, as in ``output_norms``.
    """
    part, width = part_of(model, "attn.o", layer), heads_of(model.config, layer).head_dim
    weight = model.get_parameter(part.weight).detach().float()
    columns = weight if part.out_axis == 0 else weight.T  # hidden heads*head_dim
    columns = columns * norm_gains(model, "norms.attn_out", layer)
    by_head = columns.unflatten(1, (-1, width)).permute(1, 0, 2)
    factors: Tensor = torch.linalg.qr(by_head, mode="r").R
    return factors


@torch.no_grad()
def norm_gains(model: CausalModel, role: str, layer: int) -> Float[Tensor, "hidden 1"]:
    """What a norm multiplies each channel by, whatever its parameters mean; 1 without a norm."""
    weight = next(model.parameters())
    hidden = model.config.get_text_config().hidden_size
    norm = find_module(model, role_path(model, role, layer))
    ones = torch.ones(hidden, 1, device=weight.device)
    if norm is None:
        return ones
    # Of mean 0 and of length 1 per channel, so that only the gains are left.
    signs = ones.squeeze(1)
    signs[1::2] = -1
    gains: Tensor = norm(signs.to(weight.dtype)).float() * signs
    return gains.unsqueeze(1)


def _neuron_hook(tap: NeuronTap) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        h = args[0]
        other = tap(h.flatten(0, -2), None)
        return None if other is None else (other.view_as(h), *args[1:])

    return hook


def _reader_path(model: CausalModel, layer: int) -> str:
    """The module that reads a layer's FFN input first; a fused map is gate and up at once."""
    form = ffn_row_of(model, layer).form
    if form == "moe_gated":
        return experts_row_of(model, layer).down.rpartition(".")[0]
    return part_of(model, "mlp.up" if form == "vanilla" else "mlp.gate", layer).module


def _input_hook(tap: InputTap) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        tap(args[0].flatten(0, -2))

    return hook


def _head_hook(tap: HeadTap, width: int) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        z = args[0]
        other = tap(z.flatten(0, -2).unflatten(1, (-1, width)))
        return None if other is None else (other.reshape(z.shape), *args[1:])

    return hook


def _block_hook(tap: BlockTap) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        whole = isinstance(output, Tensor)  # some families' blocks return more than the states
        other = tap(before, output if whole else output[0])
        if other is None:
            return None
        return other if whole else (other, *output[1:])

    return hook


@contextmanager
def _tapped_experts(model: CausalModel, layer: int, tap: NeuronTap) -> Iterator[None]:
    """Compute a layer's experts by our own loop, which stops between activation and output."""
    ffn = ffn_of(model, layer)
    assert isinstance(ffn, Experts)
    module = model.get_submodule(_reader_path(model, layer))
    if "forward" in vars(module):
        raise ConfigurationError(
            f"the experts of layer {layer} are already changed by another block; leave it first."
        )
    module.forward = _experts_forward(ffn.experts, tap)
    try:
        yield
    finally:
        del module.forward


def _experts_forward(experts: tuple[FFN, ...], tap: NeuronTap) -> Callable[..., Tensor]:
    def forward(x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        routed = Routed(chosen, experts[0].neurons)
        used = [(experts[e], *routed.entries(int(e))) for e in chosen.unique().tolist()]
        h = x.new_zeros(*chosen.shape, routed.width)
        for expert, position, slot in used:
            said = expert.activations(x[position]) * weights[position, slot, None]
            h[position, slot] = said.to(h.dtype)
        flat = h.flatten(1)
        other = tap(flat, routed)
        h = (flat if other is None else other).view_as(h)
        total = torch.zeros_like(x)
        for expert, position, slot in used:
            total.index_add_(0, position, expert.output(h[position, slot]).to(total.dtype))
        return total

    return forward
