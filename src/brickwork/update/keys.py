"""Keys: what the output projection of a layer's FFN reads where facts are recalled.

Source: Meng et al. 2022, arXiv:2202.05262, 3.1; of an FFN as a memory of keys and values: Geva et
al. 2020, arXiv:2012.14913.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.errors import EditError
from brickwork.measure.perplexity import TOKENS_PER_BATCH, only_logits_of
from brickwork.model.parts import (
    CausalModel,
    ffn_row_of,
    find_module,
    layers_of,
    part_of,
    role_path,
)
from brickwork.model.taps import norm_gains, tapped
from brickwork.model.train import Encoded, groups_by_length, pack
from brickwork.update.contexts import Placed


@dataclass(frozen=True, eq=False)
class Recall:
    """What happens in two layers at one token of each prompt, in float32.

    Attributes:
        keys: what the output projection of the one's FFN reads.
        values: what it writes, its bias and bricks that act on it included.
        states: what the other's block writes.
    """

    keys: Float[Tensor, "prompts neurons"]
    values: Float[Tensor, "prompts hidden"]
    states: Float[Tensor, "prompts hidden"]


def edit_path(model: CausalModel, layer: int) -> str:
    """The path of the linear map that a linear edit of a layer changes.

    Raises:
        EditError: if there is no such layer, or its FFN is one of experts.
    """
    if not 0 <= layer < layers_of(model):
        raise EditError(
            f"an edit of layer {layer} was asked for, but the model has layers 0 to "
            f"{layers_of(model) - 1}; choose one of those."
        )
    if ffn_row_of(model, layer).form == "moe_gated":
        raise EditError(
            f"the FFN of layer {layer} is one of experts, which has no output projection that all "
            "tokens share; edit a layer without experts, or take a method that edits none, such "
            "as grace."
        )
    return part_of(model, "mlp.down", layer).module


@torch.no_grad()
def recall(
    model: CausalModel, prompts: Sequence[Placed], layer: int, *, block: int | None = None
) -> Recall:
    """Key and value at the token of each prompt.

    Args:
        model: it is left as it is; bricks and hooks that act on it act here, too.
        prompts: each with its token.
        layer: of the key and the value.
        block: of the state; by default the same.

    Raises:
        EditError: if the layer is one of experts, or there is no such.
    """
    down = model.get_submodule(edit_path(model, layer))
    found: dict[int, tuple[Tensor, ...]] = {}
    seen: list[Tensor] = []
    with ExitStack() as stack:
        # Hooks of edits that act are there already, so their terms are in the output.
        keep = down.register_forward_hook(lambda _module, args, out: seen.extend((args[0], out)))
        stack.callback(keep.remove)
        last = layer if block is None else block
        stack.enter_context(tapped(model, blocks={last: lambda _before, out: seen.append(out)}))
        for group in groups_by_length([len(one.ids) for one in prompts], TOKENS_PER_BATCH):
            batch = [Encoded(list(prompts[i].ids), 0) for i in group]
            ids = pack(batch, pad=0, prompt_weight=0.0).ids.to(model.device)
            row = torch.arange(len(group), device=model.device)
            at = torch.tensor([prompts[i].position for i in group], device=model.device)
            seen.clear()
            with only_logits_of(model, row[:1], at[:1]):
                model(input_ids=ids, use_cache=False)
            # OPT's maps read and write all rows in one.
            three = [x.reshape(*ids.shape, -1)[row, at].float() for x in seen]
            found |= dict(zip(group, zip(*three, strict=True), strict=True))
    return Recall(*(torch.stack([found[i][n] for i in range(len(prompts))]) for n in range(3)))


def norm_follows(model: CausalModel, layer: int) -> bool:
    """Whether what the FFN of a layer says goes through a norm (Gemma 2 and 3, OLMo 2)."""
    return find_module(model, role_path(model, "norms.mlp_out", layer)) is not None


@torch.no_grad()
def residual_scale(
    model: CausalModel, layer: int, values: Float[Tensor, "prompts hidden"]
) -> Float[Tensor, "prompts hidden"]:
    """What a small change of a value is multiplied by on its way to the residual stream.

    It is 1, or the gains and the scale of a norm that follows.
    """
    if not norm_follows(model, layer):
        return torch.ones_like(values)
    size = values.norm(dim=1, keepdim=True) / values.shape[1] ** 0.5
    scale: Tensor = norm_gains(model, "norms.mlp_out", layer).squeeze(1).to(values) / size
    return scale
