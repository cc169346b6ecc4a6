"""Forms made of one vector per site: IA3 factors, biases, steering vectors."""

from pydantic import BaseModel, ConfigDict

from brickwork.brick.brick import Brick
from brickwork.brick.effects import Effect, Scale, Shift


class NoOptions(BaseModel):
    """The form has no options."""

    model_config = ConfigDict(extra="forbid")


def scale_effects(brick: Brick) -> list[Effect]:
    """IA3: every factor multiplies the outputs, or the inputs, of its linear map."""
    return [
        Scale(site, factor, "out" if slot == "factor_out" else "in")
        for site, slots in brick.by_site.items()
        for slot, factor in slots.items()
    ]


def bias_effects(brick: Brick) -> list[Effect]:
    """BitFit: the tensor is the difference to the base's own bias, or a new one where none is."""
    return [Shift(site, slots["bias"]) for site, slots in brick.by_site.items()]


def steering_effects(brick: Brick) -> list[Effect]:
    """A vector added to what a block hands on, at every token."""
    return [Shift(site, slots["vector"]) for site, slots in brick.by_site.items()]
