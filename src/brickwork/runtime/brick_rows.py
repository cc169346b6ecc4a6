"""A base that answers rows, each with bricks of its own, for rooms that know no runtime."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.configuration import BrickUse, Configuration
from brickwork.model.load import LoadedModel
from brickwork.runtime.configured import ConfiguredModel

_RowLogits = Callable[
    [Sequence[Sequence[int]], Sequence[Sequence[Brick]], Sequence[int]],
    list[Float[Tensor, "tokens vocabulary"]],
]


def row_logits(loaded: LoadedModel, *, budget: int | None = None) -> _RowLogits:
    """A function that gives the logits after every token of every row.

    It takes the token ids of the rows, the bricks of each (none: the base alone), and from how
    many of each row's last tokens the next one is wanted.

    Args:
        loaded: the base.
        budget: bytes that loaded bricks may take; the least recently used leave first.
    """
    model = ConfiguredModel(loaded, budget=budget)

    def logits(
        rows: Sequence[Sequence[int]], bricks: Sequence[Sequence[Brick]], told: Sequence[int]
    ) -> list[Float[Tensor, "tokens vocabulary"]]:
        for brick in {brick.hash: brick for own in bricks for brick in own}.values():
            model.add(brick, _name(brick))
        uses = [tuple(BrickUse(name=_name(brick)) for brick in own) for own in bricks]
        return model.logits(rows, [Configuration(bricks=own) for own in uses], told=told)

    return logits


def _name(brick: Brick) -> str:
    return f"sha256:{brick.hash}"
