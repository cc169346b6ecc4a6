"""How a model's losses went while it was trained, as a JSON document without torch."""

import math
from collections.abc import Iterator

from pydantic import JsonValue

from brickwork.measure.results import Result

CURVE_FILE, FORMAT = "training.json", 1


class Curve(Result):
    """Losses on watched instances before, during and after a training.

    Attributes:
        format: of the document.
        brickwork: its version.
        model: the name of what was trained.
        recipe: how, by field.
        share: of each batch's tokens that came from the replayed instances.
        replayed: how many instances there were to replay.
        sequences: how many there were to train on besides.
        trained: numbers of the model that were trained.
        parameters: all that it has.
        instances: how many were watched, for each functionality.
        steps: at which they were measured, 0 first.
        losses: nats per response token at these steps, for each functionality.
        training: the loss of each batch.
    """

    format: int = FORMAT
    brickwork: str
    model: str
    recipe: dict[str, JsonValue]
    share: float
    replayed: int
    sequences: int
    trained: int
    parameters: int
    instances: dict[str, int]
    steps: tuple[int, ...]
    losses: dict[str, tuple[float, ...]]
    training: tuple[float, ...]

    def change(self, name: str) -> float:
        """By how much the loss of a functionality has risen from the first to the last step."""
        return self.losses[name][-1] - self.losses[name][0]


def curve_problems(curve: Curve) -> Iterator[str]:
    """What cannot be true of any training, by field."""
    if not curve.training:
        yield "training: has no step"
    wanted = sorted({*curve.steps, 0, len(curve.training)})
    if list(curve.steps) != wanted or wanted[-1] != len(curve.training):
        yield f"steps: {list(curve.steps)} do not rise from 0 to the last, {len(curve.training)}"
    if curve.losses.keys() != curve.instances.keys():
        yield f"losses: are of {sorted(curve.losses)}, not {sorted(curve.instances)}"
    if not 0 < curve.trained <= curve.parameters:
        yield f"trained: {curve.trained} of {curve.parameters} numbers"
    for name, losses in curve.losses.items():
        if len(losses) != len(curve.steps):
            yield f"losses.{name}: {len(losses)} numbers at {len(curve.steps)} steps"
        if not all(math.isfinite(loss) and loss >= 0 for loss in losses):
            yield f"losses.{name}: are not all at least 0"
