"""What a choice of units costs: losses without the others, and without as many random ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from brickwork.measure.aim import Aim
from brickwork.measure.choice import Choice, random_like, silenced
from brickwork.model.carve import Kept, carve_model
from brickwork.model.load import LoadedModel

CONTROLS = 3


@dataclass(frozen=True)
class Trial:
    """Losses in nats per response token, for each functionality, on instances not chosen on.

    Attributes:
        before: of the full model.
        kept: of the chosen units.
        random: of as many random ones, the mean of several draws.
    """

    before: dict[str, float]
    kept: dict[str, float]
    random: dict[str, float]

    def rows(self) -> dict[str, dict[str, float]]:
        """For each functionality its losses, by name."""
        return {name: {what: own[name] for what, own in vars(self).items()} for name in self.before}


def try_choice(
    loaded: LoadedModel,
    aim: Aim,
    choice: Choice,
    *,
    generator: torch.Generator,
    controls: int = CONTROLS,
    advance: Callable[[float], None] = lambda _steps: None,
) -> Trial:
    """Measure the full model, the choice, and random ones of its size.

    Args:
        loaded: the model; it is left as it is.
        aim: says what to measure on.
        choice: what is kept.
        generator: on the CPU; draws the random ones.
        controls: how many, one at least.
        advance: told of every measurement: 2 and one for each control.
    """
    before = aim.losses(loaded.model)
    advance(1)
    kept = kept_losses(loaded, aim, choice.kept)
    advance(1)
    drawn = []
    for _ in range(controls):
        drawn.append(kept_losses(loaded, aim, random_like(choice, generator).kept))
        advance(1)
    random = {name: sum(own[name] for own in drawn) / controls for name in before}
    return Trial(before, kept, random)


def kept_losses(loaded: LoadedModel, aim: Aim, kept: Kept) -> dict[str, float]:
    """The losses with everything silent that is not kept."""
    if kept.experts:  # the router must not pick them
        return aim.losses(carve_model(loaded, kept))
    with silenced(loaded.model, kept):
        return aim.losses(loaded.model)
