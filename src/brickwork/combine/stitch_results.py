"""What a family of stitched models was found to cost and to lose, as a JSON document.

Plain data without torch, so that a page can be drawn from it alone.
"""

from collections.abc import Iterator
from typing import Literal

from brickwork.brick.base import Fingerprint
from brickwork.measure.results import Result

STITCH_FILE, TENSORS_FILE = "stitch.json", "stitches.safetensors"
FORMAT = 1


class StitchedMember(Result):
    """One model of the family.

    Attributes:
        kind: one of the two models as it is, or a stitched one.
        front: blocks of the front model that come first; all of them if it is the front itself.
        back: number of the back model's block that comes next; 0 if it is the back itself.
        parameters: numbers that must be kept to run it.
        flops: operations for a token.
        losses: nats per response token on held-out instances, for each functionality.
        untuned: the same before the map was tuned; None if it was not.
        explained: share of the variance that the map explained on held-out tokens when it was
            fitted; None for an end.
        explained_median: the same for each channel alone, and of these the median.
    """

    kind: Literal["front", "back", "stitched"]
    front: int
    back: int
    parameters: int
    flops: int
    losses: dict[str, float]
    untuned: dict[str, float] | None = None
    explained: float | None = None
    explained_median: float | None = None

    @property
    def name(self) -> str:
        """Its point, or which of the two models it is."""
        return f"{self.front}:{self.back}" if self.kind == "stitched" else self.kind

    @property
    def loss(self) -> float:
        """The mean of the functionalities' losses."""
        return sum(self.losses.values()) / len(self.losses)


class Stitching(Result):
    """A family of models between two.

    Attributes:
        front: the model that embeddings and first blocks are from.
        back: the model that last blocks and heads are from.
        data: name of the instances.
        fitted_on: instances that the maps were fitted, and tuned, on.
        fitted_tokens: tokens of these.
        measured_on: held-out instances of each functionality.
        ridge: of the least squares.
        tune_steps: 0 for maps as they were fitted.
        seed: of every random choice.
        members: the front, the stitched ones by their points, the back.
    """

    format: int = FORMAT
    brickwork: str
    front: Fingerprint
    back: Fingerprint
    data: str
    fitted_on: int
    fitted_tokens: int
    measured_on: dict[str, int]
    ridge: float
    tune_steps: int
    seed: int
    members: tuple[StitchedMember, ...]

    def of(self, kind: str) -> list[StitchedMember]:
        """The members of one kind."""
        return [member for member in self.members if member.kind == kind]

    def mixed_loss(self, flops: float) -> float:
        """What is lost at this cost by asking one of the two models at random, now and then.

        That is the straight line between them, which a stitched model has to be under.
        """
        (front,), (back,) = self.of("front"), self.of("back")
        if front.flops == back.flops:
            return min(front.loss, back.loss)
        share = (flops - front.flops) / (back.flops - front.flops)
        return front.loss + share * (back.loss - front.loss)


def stitching_problems(stitching: Stitching) -> Iterator[str]:
    """What cannot be true of any family, by field."""
    names = set(stitching.measured_on)
    if not names:
        yield "measured_on: names no functionality, so there is nothing to compare"
    for kind in ("front", "back"):
        if len(stitching.of(kind)) != 1:
            yield f"members: {len(stitching.of(kind))} are the {kind}, and there is one"
    points = [member.name for member in stitching.of("stitched")]
    if not points or len(set(points)) < len(points):
        yield f"members: the stitched ones are at {points or 'no point'}, each once and some at all"
    for place, member in enumerate(stitching.members):
        for field in ("losses", "untuned"):
            found = getattr(member, field)
            if found is not None and set(found) != names:
                yield f"members.{place}.{field}: are of {sorted(found)}, not of {sorted(names)}"
        if min(member.parameters, member.flops) <= 0:
            yield f"members.{place}: has no parameters or no operations"
