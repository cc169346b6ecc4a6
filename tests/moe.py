"""Dense models, partitions of them, and what mixtures of experts are compared with."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from brickwork.brick.brick import Brick
from brickwork.brick.partition import SHARED, Partition, PartitionSpec
from brickwork.brick.spec import BrickSpec
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.parts import layers_of, role_path
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

NEURONS = 48


def dense(family: str, **changes: Any) -> LoadedModel:
    if not changes:
        return wrap_model(tiny_model(family), tiny_tokenizer(), family)
    config = FAMILIES[family]()
    config.update(changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return wrap_model(model.eval(), tiny_tokenizer(), family)


def divide(loaded: LoadedModel, groups: int = 4, shared: int = 0, seed: int = 0) -> Partition:
    """A random balanced partition of all layers."""
    generator = torch.Generator().manual_seed(seed)
    owners = {}
    for layer in range(layers_of(loaded.model)):
        owner = torch.arange(NEURONS) % groups
        owner[NEURONS - shared :] = SHARED
        owners[layer] = owner[torch.randperm(NEURONS, generator=generator)]
    return Partition(PartitionSpec(base=loaded.base.fingerprint, method="random"), owners)


def tokens() -> Tensor:
    return torch.randint(2, 112, (2, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def said(model: PreTrainedModel) -> Tensor:
    logits: Tensor = model(tokens()).logits.float()
    return logits


@contextmanager
def choices(model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
    """Which experts each layer's router picks for every token."""
    seen: dict[int, Tensor] = {}

    def note(layer: int) -> Any:
        return lambda _router, _inputs, output: seen.update({layer: output[2]})

    with ExitStack() as stack:
        for layer in range(model.config.num_hidden_layers):
            router = model.get_submodule(f"model.layers.{layer}.mlp.gate")
            stack.callback(router.register_forward_hook(note(layer)).remove)
        yield seen


def masked(loaded: LoadedModel, partition: Partition, chosen: dict[int, Tensor]) -> Tensor:
    """What the dense model says when the neurons of groups that were not chosen are silent."""

    def silence(layer: int) -> Any:
        owner = partition.owners[layer]

        def hook(_down: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            picked = nn.functional.one_hot(chosen[layer], partition.groups(layer)).sum(1).bool()
            kept = picked[:, owner.clamp_min(0)] | (owner == SHARED)
            return (inputs[0] * kept.view_as(inputs[0]),)

        return hook

    with ExitStack() as stack:
        for layer in partition.owners:
            path = role_path(loaded.model, "mlp.down", layer)
            down = loaded.model.get_submodule(path or "")
            stack.callback(down.register_forward_pre_hook(silence(layer)).remove)
        return said(loaded.model)


def router_brick(loaded: LoadedModel, partition: Partition, **changes: Any) -> Brick:
    sites = tuple(role_path(loaded.model, "mlp.down", n) or "" for n in partition.owners)
    tensors = {}
    for layer, site in enumerate(sites):
        tensors[f"{site}/owner"] = partition.owners[layer].float()
        tensors[f"{site}/weight"] = torch.full((4, 32), float(layer))
    spec = BrickSpec(
        name="r", form="router", base=loaded.base.fingerprint, sites=sites,
        options={"density": 0.5}, origin="emergent", **changes,
    )  # fmt: skip
    return Brick(spec, tensors)
