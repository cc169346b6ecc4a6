"""How far what an FFN's last map reads at a token depends on the subject: its selectivity.

An edit writes at a key. Where the key hardly changes when the subject does, every prompt of that
kind reads it, and the edit changes what the model says of all subjects, however much of the answer
restoring that place brings back. Source: ours, beside causal tracing; see ``tracing``.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from brickwork.model.parts import CausalModel, ffn_row_of, layers_of, part_of
from brickwork.update.recall import Recall, answer_logs
from brickwork.update.tracing import noise_on
from brickwork.update.words import PLACES, Place


@torch.inference_mode()
def selectivity(
    model: CausalModel, recalls: Sequence[Recall], *, samples: int, noise: float, seed: int
) -> Mapping[tuple[Place, int], float]:
    """By place and layer: 1 minus the share of a key that is left with noise on the subject.

    That share is ``k' . k / |k|^2`` between 0 and 1, the mean over samples and prompts. Layers with
    experts have no such key and are left out.

    Args:
        model: it is left as it is. Bricks that act on it act here, too.
        recalls: prompts, at least one.
        samples: noisy copies of each prompt.
        noise: standard deviation of what is added to the subject's embeddings.
        seed: of the noise.
    """
    found: dict[tuple[Place, int], float] = {}
    for recall in recalls:
        clean = _keys(model, recall, 1)
        with noise_on(model, recall, noise, seed):
            noisy = _keys(model, recall, samples)
        for layer, keys in clean.items():
            own = keys[0].float()
            kept = (noisy[layer].float() * own).sum(-1) / own.square().sum(-1).clamp_min(1e-30)
            for place, share in zip(PLACES, kept.clamp(0, 1).mean(0).tolist(), strict=True):
                found[place, layer] = found.get((place, layer), 0) + (1 - share) / len(recalls)
    return found


def _keys(model: CausalModel, recall: Recall, rows: int) -> dict[int, Tensor]:
    """What the last map of every FFN reads at each place, of equal rows."""
    positions = [recall.prompt.position(place) for place in PLACES]
    found: dict[int, Tensor] = {}

    def keep(layer: int, args: tuple[Any, ...]) -> None:
        # Some families flatten rows and tokens.
        found[layer] = args[0].reshape(rows, len(recall.ids), -1)[:, positions]

    with ExitStack() as stack:
        for layer in range(layers_of(model)):
            if ffn_row_of(model, layer).form == "moe_gated":
                continue
            down: nn.Module = model.get_submodule(part_of(model, "mlp.down", layer).module)
            hook = down.register_forward_pre_hook(lambda _m, args, n=layer: keep(n, args))
            stack.callback(hook.remove)
        answer_logs(model, recall, rows)
    return found
