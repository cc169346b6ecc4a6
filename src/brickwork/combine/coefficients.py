"""Methods of the table applied to updates, whose base is no update at all.

The result of some methods is a weighted sum of the updates, and the weights follow from lengths and
angles alone. For these, a few short vectors with the same lengths and angles say everything: the
updates themselves need not be formed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.combine.methods import Method, find_method, merge_tensors
from brickwork.errors import MergeError

# Methods that turn when the updates are turned, under these settings, their defaults.
_TURNING: Mapping[str, Mapping[str, Any]] = {
    "linear": {},
    "passthrough": {},
    "task_arithmetic": {},
    "slerp": {},
    "nuslerp": {"nuslerp_flatten": True},
    "multislerp": {},
    "karcher": {},
    "model_stock": {"filter_wise": False},
}


def is_weighted_sum(method: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the method adds up the updates, with weights from their lengths and angles alone."""
    if method not in _TURNING:
        return False
    for name, wanted in _TURNING[method].items():
        value = parameters.get(name, wanted)
        if any(own != wanted for own in (value if isinstance(value, list | tuple) else [value])):
            return False
    return True


def usable_method(name: str) -> Method:
    """The row of a method, if it can merge updates that carry nothing besides their values.

    Raises:
        UnknownNameError: if there is no such method.
        MergeError: if it weighs by statistics, which bricks do not carry.
    """
    row = find_method(name)
    if row.statistics:
        raise MergeError(
            f"{name} weighs every value by {row.statistics} statistics, which a brick does not "
            "carry; choose another method, or merge the bricks into whole models first."
        )
    return row


def merge_updates(
    method: str,
    updates: Sequence[Tensor],
    *,
    keys: Sequence[str],
    seed: int,
    parameters: Mapping[str, Any],
) -> Tensor:
    """One update of several of the same shape.

    A method that moves one model towards another takes the first update as its base; all others
    that need a base have no update as theirs.

    Args:
        method: a row of METHODS.
        updates: differences to the base's values.
        keys: their names, which random numbers depend on.
        seed: of random choices.
        parameters: of the method; one value, or one for each update.

    Raises:
        MergeError: if the method cannot merge these.
    """
    row, base = usable_method(method), None
    if row.base == "required":
        base = torch.zeros_like(updates[0])
        if row.most == 1 and len(updates) == 2:
            base, updates, keys = updates[0], updates[1:], keys[1:]
    return merge_tensors(method, updates, base=base, keys=keys, seed=seed, **parameters)


def coefficients(
    method: str,
    gram: Float[Tensor, "bricks bricks"],
    *,
    keys: Sequence[str],
    parameters: Mapping[str, Any],
) -> Float[Tensor, " bricks"]:
    """By how much each update goes into the merged one.

    Args:
        method: one for which ``is_weighted_sum`` holds.
        gram: inner products of the updates, in float64.
        keys: names of the updates.
        parameters: of the method.

    Returns:
        One factor for each update; where updates depend on each other, the smallest factors that
        give the same sum.
    """
    values, axes = torch.linalg.eigh(gram)
    # Rows with the lengths and angles of the updates.
    rows = axes * values.clamp(min=0).sqrt()
    merged = merge_updates(method, list(rows), keys=keys, seed=0, parameters=parameters)
    found: Tensor = torch.linalg.lstsq(rows.T, merged[:, None], driver="gelsd").solution[:, 0]
    assert torch.allclose(rows.T @ found, merged, rtol=1e-5, atol=1e-7 * rows.norm().item())
    return found
