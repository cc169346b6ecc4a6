"""Gram matrices of what linear maps read: which directions of their inputs matter.

Source: Jin et al. 2022, Dataless Knowledge Fusion by Merging Weights of Language Models
(RegMean, arXiv:2212.09849).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from brickwork.errors import ModelError, UnknownNameError
from brickwork.measure.perplexity import TOKENS_PER_BATCH, only_logits_of, token_mask
from brickwork.model.parts import CausalModel
from brickwork.model.sockets import sites_of
from brickwork.model.train import Encoded, groups_by_length, pack

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Readers:
    """The linear maps of a model by what they read.

    Attributes:
        sizes: for the weight of each map whose inputs are looked at, how many it has.
        same: the weights of maps that read what one of these reads, and which.
    """

    sizes: Mapping[str, int]
    same: Mapping[str, str] = field(default_factory=dict)


def linear_weights(model: CausalModel) -> dict[str, int]:
    """The weights of all linear maps with their number of inputs.

    Left out are one that is also the embedding, and experts, whose maps lie stacked.
    """
    embedding = model.get_input_embeddings().weight
    return {
        f"{site.path}.weight": site.sizes["in"]
        for site in sites_of(model).values()
        if site.kind == "linear" and model.get_submodule(site.path).weight is not embedding
    }


def chosen_weights(model: CausalModel, sites: Sequence[str]) -> dict[str, int]:
    """The linear weights at some sites with their number of inputs; of all, if none is named.

    Args:
        model: any; an outline will do.
        sites: addresses, such as ``layers.3.mlp.down``, or module paths.

    Raises:
        UnknownNameError: if a site is no linear map that has a Gram matrix.
    """
    weights = linear_weights(model)
    if not sites:
        return weights
    paths = {name.removesuffix(".weight") for name in weights}
    addresses = {site.address: site.path for site in sites_of(model).values() if site.path in paths}
    chosen = set()
    for site in sites:
        if site not in addresses and site not in paths:
            raise UnknownNameError("site with a Gram matrix", site, addresses)
        chosen.add(f"{addresses.get(site, site)}.weight")
    return {name: size for name, size in weights.items() if name in chosen}


def transposed_weights(model: CausalModel) -> list[str]:
    """Those of ``linear_weights`` that are inputs by outputs, as GPT-2 has them."""
    return [
        name
        for name in linear_weights(model)
        if not isinstance(model.get_submodule(name.removesuffix(".weight")), nn.Linear)
    ]


@torch.inference_mode()
def find_readers(model: CausalModel, sites: Sequence[str] = ()) -> Readers:
    """Which linear maps read the same tensor, found by running the model on one token.

    Args:
        model: it is left as it is.
        sites: only these; see ``chosen_weights``.
    """
    sizes, same, last = chosen_weights(model, sites), {}, _Last()

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if last.seen is args[0]:
                same[name] = last.name
            else:
                last.seen, last.name = args[0], name

        return hook

    with _hooked(model, {name: look(name) for name in sizes}):
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    return Readers({name: size for name, size in sizes.items() if name not in same}, same)


@torch.inference_mode()
def add_grams(
    model: CausalModel,
    sequences: Sequence[Encoded],
    sums: Mapping[str, Tensor],
    *,
    advance: Advance = lambda _steps: None,
) -> None:
    """Add ``x x^T`` of every token that a linear map reads to the sums; padding is left out.

    Args:
        model: it is left as it is.
        sequences: of prompts and responses all tokens count.
        sums: for the weight of each map that is wanted, inputs by inputs, in float32.
        advance: told the number of instances that have just been done.
    """
    real: dict[str, Tensor] = {}

    def add(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            if len(x) != len(real["tokens"]):
                raise ModelError(
                    f"the map of {name!r} reads {len(x)} positions of {len(real['tokens'])}, so "
                    "padding cannot be told apart; this family has no Gram matrices yet."
                )
            x = x[real["tokens"]].float()
            if sums[name].device == x.device:
                sums[name].addmm_(x.T, x)
            else:
                sums[name].add_((x.T @ x).to(sums[name].device))

        return hook

    first = torch.zeros(1, dtype=torch.long, device=model.device)
    groups = groups_by_length([len(s.ids) for s in sequences], TOKENS_PER_BATCH)
    # The unembedding's input is seen whole, then cut: the logits of one token cost nothing.
    with _hooked(model, {name: add(name) for name in sums}), only_logits_of(model, first, first):
        for group in groups:
            batch = [sequences[i] for i in group]
            ids = pack(batch, pad=0, prompt_weight=0.0).ids
            real["tokens"] = token_mask(batch).flatten().to(model.device)
            model(input_ids=ids.to(model.device), use_cache=False)
            advance(len(batch))


@dataclass
class _Last:
    seen: object = None
    name: str = ""


def _hooked(model: CausalModel, hooks: Mapping[str, Callable[..., None]]) -> ExitStack:
    """The hooks on the inputs of the modules whose weights are named, until the stack closes."""
    stack = ExitStack()
    for name, hook in hooks.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        stack.callback(module.register_forward_pre_hook(hook).remove)
    return stack
