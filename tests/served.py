"""Tiny models of every family, ready to serve, with random bricks of every form at hand."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from brickwork.brick.brick import Brick
from brickwork.brick.configuration import BrickUse, Configuration, Options, parse_uses
from brickwork.brick.effects import Add
from brickwork.brick.forms import effects_of, find_form
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.runtime.configured import ConfiguredModel
from tests.bricks import FORMS, random_brick, sites_for
from tests.tiny import tiny_model, tiny_tokenizer

RUNNABLE_FORMS = tuple(name for name in FORMS if find_form(name).target)
# Rotary positions, learned ones and fused maps, flattened rows, two kinds of attention, experts.
SOME_FAMILIES = ("llama", "gpt2", "opt", "gemma3_text", "mixtral")


@cache
def loaded(family: str) -> LoadedModel:
    """The one tiny model of a family that all tests share; whoever changes it puts it back."""
    return wrap_model(tiny_model(family), tiny_tokenizer(), f"tiny-{family}")


@cache
def bricks_of(family: str) -> dict[str, Brick]:
    """Two bricks of every form that the family has a site for, ``lora-1`` and so on."""
    base = loaded(family).base
    return {
        f"{form}-{number}": mild_brick(form, family, number)
        for form in RUNNABLE_FORMS
        if sites_for(find_form(form), base)
        for number in (1, 2)
    }


def uses_for(family: str, bricks: str) -> str:
    """The bricks, as written on a command line, without those that the family has no site for."""
    known = bricks_of(family)
    return ",".join(use for use in bricks.split(",") if use.partition(":")[0] in known)


def mild_brick(form: str, family: str, seed: int) -> Brick:
    """A random brick that changes the model without throwing it about."""
    generator = torch.Generator().manual_seed(seed)
    brick = random_brick(form, loaded(family).base, generator, name=f"{form}-{seed}")
    effect = find_form(form).effect
    if effect in {"mask", "route"}:  # they choose; there is nothing to make smaller
        return brick
    middle = 1.0 if effect == "scale" else 0.0
    size = 0.01 if effect == "exit" else 0.1  # an untrained model is never surer than that
    mild = Brick(brick.spec, {name: middle + size * t for name, t in brick.tensors.items()})
    return with_radii_of_states(mild, family) if effect == "codebook" else mild


def with_radii_of_states(brick: Brick, family: str) -> Brick:
    """The codebook with such radii that half of the model's states come near enough to a key."""
    tensors = dict(brick.tensors)
    for path, slots in brick.by_site.items():
        states = states_before(family, path).flatten(0, 1)
        if "projection" in slots:
            states = states @ slots["projection"].T
        nearest = torch.cdist(states, slots["key"]).amin(1)
        tensors[f"{path}/radius"] = nearest.quantile(0.5).expand_as(slots["radius"]).clone()
    return Brick(brick.spec, tensors)


@cache
def states_before(family: str, path: str) -> Tensor:
    """What a block of the bare model reads, for a few random prompts (rows tokens hidden)."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    model = loaded(family).model
    handle = model.get_submodule(path).register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(torch.tensor(random_prompts([9] * 4, seed=9)))
    handle.remove()
    return kept[0]


def merged_by_hand(family: str, uses: Sequence[BrickUse]) -> PreTrainedModel:
    """A copy of the family's model with these LoRAs in its weights, added in float64."""
    merged, total = deepcopy(loaded(family).model), dict[str, Tensor]()
    for use in uses:
        for effect in effects_of(bricks_of(family)[use.name]):
            assert isinstance(effect, Add)
            term = use.weight * effect.scaling * (effect.B.double() @ effect.A.double())
            total[effect.site] = total.get(effect.site, torch.zeros(())) + term
    for site, term in total.items():
        module = merged.get_submodule(site)
        assert isinstance(module, nn.Linear | Conv1D)
        turned = term.T if isinstance(module, Conv1D) else term
        module.weight.data = (module.weight.double() + turned).float()
    return merged


def moved_to(model: LoadedModel, brick: Brick) -> Brick:
    """The same brick for another model of the same family."""
    spec = brick.spec.model_copy(update={"base": model.base.fingerprint})
    return Brick(spec, brick.tensors)


def configured(family: str, *, budget: int | None = None) -> ConfiguredModel:
    """A fresh configured model that knows the family's bricks."""
    model = ConfiguredModel(loaded(family), budget=budget)
    for name, brick in bricks_of(family).items():
        model.add(brick, name)
    return model


def using(bricks: str, **options: float) -> Configuration:
    """The configuration with these bricks, as written on a command line."""
    return Configuration(bricks=parse_uses(bricks), options=Options.model_validate(options))


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Prompts of these lengths, of tokens that neither pad nor end."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 112, (length,), generator=generator).tolist() for length in lengths]
