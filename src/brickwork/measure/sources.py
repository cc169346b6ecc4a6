"""Do functional units tell functionalities apart, or only the sources that instances come from?

If each functionality has data sets of its own, a unit that knows a data set by its form scores
high. Inside one source that has several functionalities, such a unit is at chance. Ours; Xiao et
al. 2024 (arXiv:2409.02877) has no such control.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.errors import DataError
from brickwork.measure.average_precision import average_precision, null_mean
from brickwork.measure.functionality import PER_MILLE, functional_units, one_hot
from brickwork.measure.results import SourceControl

FEWEST = 20  # samples of either kind, inside a source and elsewhere


@dataclass(frozen=True, eq=False)
class _Source:
    """One source, and the functionalities that it can be a control for.

    Attributes:
        inside: its samples.
        wanted: numbers of functionalities.
        labels: of all samples, for these.
    """

    name: str
    inside: Bool[Tensor, " samples"]
    wanted: list[int]
    labels: Bool[Tensor, "samples wanted"]

    def scores(
        self, activity: Float[Tensor, "samples units"], share: float
    ) -> Float[Tensor, "places wanted"]:
        """Mean scores inside and elsewhere of the units that are best elsewhere."""
        outside = ~self.inside
        elsewhere = average_precision(activity[outside], self.labels[outside]).cpu()
        chosen = functional_units(elsewhere, share)  # wanted chosen
        means = []
        for column, units in enumerate(chosen):
            own = self.labels[self.inside, column : column + 1]
            within = average_precision(activity[self.inside][:, units], own)
            means.append([within.mean().item(), elsewhere[units, column].mean().item()])
        return torch.tensor(means, dtype=torch.float64).T

    def controls(
        self, functions: Sequence[str], means: Float[Tensor, "places wanted"]
    ) -> Iterator[SourceControl]:
        for column, (within, elsewhere) in enumerate(means.T.tolist()):
            own = self.labels[:, column]
            positives, samples = int(own[self.inside].sum()), int(self.inside.sum())
            yield SourceControl(
                source=self.name,
                function=functions[self.wanted[column]],
                positives=positives,
                negatives=samples - positives,
                within=within,
                elsewhere=elsewhere,
                chance=null_mean(samples, positives),
                chance_elsewhere=null_mean(len(own) - samples, int(own.sum()) - positives),
            )


def source_controls(
    layers: Iterable[Float[Tensor, "samples units"]],
    labels: Int[Tensor, " samples"],
    functions: Sequence[str],
    sources: Sequence[str],
    *,
    share: float = PER_MILLE,
) -> list[SourceControl]:
    """Whether units chosen without a source tell functionalities apart inside it.

    A source is a control for a functionality if there are at least ``FEWEST`` samples of it and
    of others, both inside and elsewhere.

    Args:
        layers: the activity of one layer after the other; one at a time is held.
        labels: the number of each sample's functionality, in the order of ``functions``.
        functions: names.
        sources: where each sample is from; an empty name is no source.
        share: of each layer's units that are chosen.

    Returns:
        Means over the layers, for each source in alphabetical order and its functionalities.
        Empty if no source is a control, and then no layer is asked for.

    Raises:
        DataError: if there is no layer, or an activity is no finite number.
    """
    found = list(_usable_sources(labels.cpu(), sources, len(functions)))
    if not found:
        return []
    sums = [torch.zeros(2, len(source.wanted), dtype=torch.float64) for source in found]
    count = 0
    for activity in layers:
        count += 1
        for total, source in zip(sums, found, strict=True):
            total.add_(source.scores(activity, share))
    if not count:
        raise DataError(
            f"{len(found)} sources were to be compared in every layer, but there is no layer; "
            "give the activity of at least one."
        )
    pairs = zip(found, sums, strict=True)
    return [one for source, total in pairs for one in source.controls(functions, total / count)]


def _usable_sources(
    labels: Int[Tensor, " samples"], sources: Sequence[str], functions: int
) -> Iterator[_Source]:
    every = one_hot(labels, functions)
    for name in sorted(set(sources) - {""}):
        inside = torch.tensor([source == name for source in sources])
        own, other = every[inside].sum(0), every[~inside].sum(0)
        counts = [own, int(inside.sum()) - own, other, int((~inside).sum()) - other]
        enough = torch.stack(counts).amin(0) >= FEWEST
        if enough.any():
            yield _Source(name, inside, enough.nonzero().flatten().tolist(), every[:, enough])
