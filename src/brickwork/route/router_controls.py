"""Controls of a comparison of routers: the upper bound, and choices that know no input.

They are no bricks: the ground truth needs what it chooses, and the others are not worth running.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from brickwork.brick.partition import Partition
from brickwork.model.parts import CausalModel
from brickwork.model.taps import output_norms
from brickwork.route.router_passes import Shown
from brickwork.route.router_training import Slots
from brickwork.route.routers import Reads, hash_scores, random_scores, truth_scores


@dataclass(frozen=True)
class Control:
    """One row of CONTROLS: a way to choose groups that no brick can hold.

    Attributes:
        reads: what it must know of the FFN.
        scores: of the groups at every position.
    """

    meaning: str
    source: str
    reads: Reads
    scores: Callable[["Controlled", int, Tensor, Shown], Tensor]


@dataclass(frozen=True, eq=False)
class Controlled:
    """What controls know: the groups of every layer, the best on average, and chance."""

    model: CausalModel
    partition: Partition
    fixed: Slots
    generator: torch.Generator

    def owner(self, layer: int) -> Tensor:
        """The group of every neuron."""
        return self.partition.owners[layer]


def _truth(c: Controlled, layer: int, h: Tensor, _batch: Shown) -> Tensor:
    return truth_scores(h, output_norms(c.model, layer), c.owner(layer).to(h.device))


def _random(c: Controlled, layer: int, h: Tensor, _batch: Shown) -> Tensor:
    return random_scores(len(h), c.partition.groups(layer), c.generator).to(h.device)


def _hash(c: Controlled, layer: int, _h: Tensor, batch: Shown) -> Tensor:
    salt = c.generator.initial_seed() % (1 << 32) + (layer << 40)
    return hash_scores(batch.ids.flatten(), c.partition.groups(layer), salt)


def _fixed(c: Controlled, layer: int, h: Tensor, _batch: Shown) -> Tensor:
    return c.fixed[layer]["scores"].expand(len(h), -1)


CONTROLS: Mapping[str, Control] = {
    "truth": Control(
        "the groups that carry most, known from the activations: the upper bound",
        "Zhang et al. 2021, arXiv:2110.01786", "activation", _truth,
    ),
    "random": Control("any groups, others for each token", "", "input", _random),
    "hash": Control(
        "groups that hang on the token's id alone", "Roller et al. 2021, arXiv:2106.04426",
        "input", _hash,
    ),
    "fixed": Control("the groups that matter most on average, always", "", "input", _fixed),
}  # fmt: skip
