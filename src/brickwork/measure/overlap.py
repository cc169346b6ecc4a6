"""Do functionalities have units of their own: shared parts of their functional units.

Source: Xiao et al. 2024 (arXiv:2409.02877), section 4.6. The paper compares with independent
random sets, which share the share itself. Where every instance has one label, chance alone gives
less, for a unit that is high on one functionality's instances is low on the others'; so the null
here is made of permuted labels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from brickwork.errors import DataError
from brickwork.measure.functionality import functional_units, shared_parts
from brickwork.measure.results import Interval, Overlap, OverlapMatrix


def find_overlap(
    functions: Sequence[str],
    scores: Sequence[Float[Tensor, "units functions"]],
    null_overlaps: Sequence[Float[Tensor, "permutations pairs"]],
    share: float,
) -> Overlap:
    """The shared parts of the functional units of every two functionalities, beside chance.

    Args:
        functions: names, at least two.
        scores: of each layer's units.
        null_overlaps: of each layer, from ``score_layer`` with the same draws and share.
        share: of each layer's units that count as functional.

    Returns:
        For each layer and pooled; pooled parts are the units shared in all layers, of all that
        are functional.

    Raises:
        DataError: if there is nothing to compare.
    """
    if len(functions) < 2 or not scores:
        raise DataError(
            f"overlap compares functionalities in layers, but there are {len(functions)} of them "
            f"and {len(scores)} layers; give at least two functionalities and one layer."
        )
    chosen = [functional_units(layer, share) for layer in scores]
    matrices = [shared_parts(units, units) for units in chosen]
    sizes = torch.tensor([units.shape[1] for units in chosen], dtype=torch.float64)
    pooled = _pooled(matrices, sizes)
    return Overlap(
        functions=list(functions),
        layers=[_matrix(*layer) for layer in zip(matrices, null_overlaps, strict=True)],
        pooled=_matrix(pooled, _pooled(null_overlaps, sizes)),
        independent=(sizes.sum() / sum(len(layer) for layer in scores)).item(),
        linkage=linkage(squareform((1 - pooled).numpy()), method="average").tolist(),
    )


def _pooled(
    parts: Sequence[Float[Tensor, "..."]], sizes: Float[Tensor, " layers"]
) -> Float[Tensor, "..."]:
    """What is shared in all layers of what there is in all layers."""
    shared: Tensor = torch.tensordot(sizes, torch.stack(list(parts)), 1)
    return shared / sizes.sum()


def _matrix(
    values: Float[Tensor, "functions functions"], null: Float[Tensor, "permutations pairs"]
) -> OverlapMatrix:
    return OverlapMatrix(values=values.tolist(), null=_range(null), null_mean=_range(null.mean(1)))


def _range(values: Float[Tensor, "..."]) -> Interval:
    low, high = values.quantile(values.new_tensor([0.025, 0.975])).tolist()
    return Interval(value=values.mean().item(), low=low, high=high)
