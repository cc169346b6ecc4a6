"""Forms that keep part of a base: units, layers, early exits, and routers that choose by token.

A mask says which inputs of a linear map are kept: neurons at the output projection of an FFN,
heads at the output projection of attention. Several masks at one site keep what any of them keeps,
so that groups can be put together; a site that no mask names is whole.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.effects import Effect, Exit, Mask, Route, Skip

# The forms of this file: all that such a brick does is to leave work out.
SELECTIONS = frozenset({"mask", "skip", "exit", "router"})


class RouterOptions(BaseModel):
    """How much of an FFN a router keeps, and for how long.

    ``density`` is the share of the neurons that are kept, shared ones included. At the level
    ``token`` every token has its own; at ``prompt`` they are chosen once, by the whole prompt, and
    kept for the answer.
    """

    model_config = ConfigDict(extra="forbid")

    density: float = Field(gt=0, le=1)
    level: Literal["token", "prompt"] = "token"


def mask_effects(brick: Brick) -> list[Effect]:
    """Units of the base that are kept; all others at these sites are silent."""
    return [Mask(site, slots["keep"]) for site, slots in brick.by_site.items()]


def skip_effects(brick: Brick) -> list[Effect]:
    """Blocks whose work is left out, whole or in part."""
    return [Skip(site, slots["share"]) for site, slots in brick.by_site.items()]


def exit_effects(brick: Brick) -> list[Effect]:
    """Blocks after which a token may leave, if the model is sure enough of the next one."""
    return [Exit(site, slots["confidence"]) for site, slots in brick.by_site.items()]


def router_effects(brick: Brick) -> list[Effect]:
    """Neurons of FFNs that are chosen for each token, or each prompt."""
    options = RouterOptions.model_validate(brick.spec.options)
    return [
        Route(site, dict(slots), options.density, options.level)
        for site, slots in brick.by_site.items()
    ]


def mask_problems(brick: Brick) -> list[str]:
    """Values other than 0 and 1."""
    return [
        f"{name}: a mask holds 0 and 1 alone, this also others"
        for name, tensor in brick.tensors.items()
        if not bool(((tensor == 0) | (tensor == 1)).all())
    ]


def exit_problems(brick: Brick) -> list[str]:
    """Confidences that are no probabilities."""
    return [
        f"{name}: a confidence is from 0 to 1, not {tensor.tolist()}"
        for name, tensor in brick.tensors.items()
        if not bool(((tensor >= 0) & (tensor <= 1)).all())
    ]


def router_problems(brick: Brick) -> list[str]:
    """Owners that name no group of their router."""
    return [
        problem for site, slots in brick.by_site.items() for problem in _owner_problems(site, slots)
    ]


def _owner_problems(site: str, slots: Mapping[str, Tensor]) -> list[str]:
    if "owner" not in slots:
        return []
    owner, groups = slots["owner"], len(slots["weight" if "weight" in slots else "second"])
    whole = bool((owner == owner.round()).all())
    if not whole or owner.min() < -1 or owner.max() >= groups:
        return [f"{site}/owner: names groups 0 to {groups - 1}, or -1 for a shared neuron"]
    empty = set(range(groups)) - set(owner.to(torch.int64).tolist())
    return [f"{site}/owner: group {min(empty)} has no neurons"] if empty else []
