"""SELECTORS: which instances of a task are worth remembering, and in which order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.brick.forms import load_target
from brickwork.errors import DataError, UnknownNameError
from brickwork.measure.perplexity import instance_losses
from brickwork.measure.states import mean_states
from brickwork.model.load import LoadedModel
from brickwork.model.train import Encoded

Item = TypeVar("Item")
Evidence = Float[Tensor, "samples features"] | Float[Tensor, " samples"]


@dataclass(frozen=True)
class Selector:
    """One row of SELECTORS.

    Attributes:
        name: as recipes name it.
        meaning: one line for people.
        target: ``"module:function"`` of what orders instances: from the stream itself, or, where
            there is evidence, from that alone, as places.
        evidence: ``"module:function"`` that measures it with a model; empty: none is needed.
        source: the paper.
    """

    name: str
    meaning: str
    target: str
    evidence: str
    source: str

    def choose(
        self,
        loaded: LoadedModel,
        stream: Iterable[Encoded],
        *,
        evidence: Evidence | None,
        most: int,
        generator: torch.Generator,
    ) -> list[Encoded]:
        """At most so many instances, those that are worth most first.

        Raises:
            DataError: if the evidence is not of as many instances as there are.
        """
        order = load_target(self.target)
        if not self.evidence:
            chosen: list[Encoded] = order(stream, most, generator)
            return chosen
        instances = list(stream)
        if evidence is None:
            evidence = load_target(self.evidence)(loaded, instances)
        if len(evidence) != len(instances):
            raise DataError(
                f"{self.name} was to choose among {len(instances)} instances by evidence on "
                f"{len(evidence)}; give a row for each."
            )
        return [instances[place] for place in order(evidence, most)]


_HERE = "brickwork.grow.selectors"
SELECTORS: Mapping[str, Selector] = {
    row.name: row
    for row in (
        Selector(
            "reservoir", "every instance of the stream with the same chance",
            f"{_HERE}:reservoir", "", "Vitter 1985, doi:10.1145/3147.3165, algorithm R",
        ),
        Selector(
            "herding", "those whose mean state stays nearest to that of all",
            f"{_HERE}:herding", f"{_HERE}:unit_states",
            "Welling 2009, doi:10.1145/1553374.1553517; iCaRL: Rebuffi et al. 2017, "
            "arXiv:1611.07725",
        ),
        Selector(
            "loss", "those of middling loss: neither known already nor noise",
            f"{_HERE}:middling", f"{_HERE}:mean_losses", "Marion et al. 2023, arXiv:2309.04564",
        ),
    )
}  # fmt: skip


def find_selector(name: str) -> Selector:
    """The row of that name, or an error that lists the nearest names."""
    if name not in SELECTORS:
        raise UnknownNameError("selector", name, SELECTORS)
    return SELECTORS[name]


def reservoir(stream: Iterable[Item], most: int, generator: torch.Generator) -> list[Item]:
    """A uniform sample of a stream of any length, in random order; it is read once.

    Every set of so many items is equally likely, and so is every order: the beginning of the
    sample is a uniform sample, too.
    """
    kept: list[Item] = []
    for seen, item in enumerate(stream):
        place = int(torch.randint(seen + 1, (), generator=generator))
        if len(kept) < most:
            kept.append(item)
        elif place < most:
            kept[place] = item
    return [kept[place] for place in torch.randperm(len(kept), generator=generator).tolist()]


def herding(states: Float[Tensor, "samples features"], most: int) -> list[int]:
    """Places chosen one by one, each bringing the mean of the chosen as near as can be to all's.

    Of equally good ones it is the first.
    """
    states = states.double()
    mean, chosen_sum = states.mean(0), torch.zeros(states.shape[1], dtype=torch.float64)
    lengths = states.square().sum(1)
    free = torch.ones(len(states), dtype=torch.bool)
    chosen: list[int] = []
    for count in range(1, min(most, len(states)) + 1):
        # |count mean - sum - state|^2, without what is the same for all
        distances = lengths - 2 * states @ (count * mean - chosen_sum)
        place = int(distances.masked_fill(~free, torch.inf).argmin())
        chosen.append(place)
        free[place] = False
        chosen_sum += states[place]
    return chosen


def middling(losses: Float[Tensor, " samples"], most: int) -> list[int]:
    """Places in the order of their losses' distance from the median; of equal ones the first.

    Marion et al. find that of texts ranked by perplexity the middle teaches more than either end.
    """
    losses = losses.double()
    return (losses - losses.quantile(0.5)).abs().argsort(stable=True)[:most].tolist()


def unit_states(
    loaded: LoadedModel, instances: Sequence[Encoded]
) -> Float[Tensor, "samples features"]:
    """The mean over an instance's tokens of the last hidden state, of length 1 as in iCaRL."""
    states = mean_states(loaded, [instance.ids for instance in instances])[-1]
    return torch.nn.functional.normalize(states, dim=1)


def mean_losses(loaded: LoadedModel, instances: Sequence[Encoded]) -> Float[Tensor, " samples"]:
    """Nats per response token; an instance without a response counts 0."""
    found = instance_losses(loaded.model, instances)
    return found.response / found.response_tokens.clamp_min(1)
