"""A learned scope: a projection in which prompts of one fact are near, and all others far.

Source: the scope classifier of Mitchell et al. 2022, SERAC (arXiv:2206.06520), as a metric.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu

_INNER, _OUTER = 0.7, 1.3  # how near, and how far, while it is learned
_RIDGE = 0.1  # share of the mean variance: a direction in which nothing was seen is not free
_LEAST = 1e-6  # share of what is far that a fact differs from itself at least
_RATE = 0.02  # of Adam, in units of the mean entry of the first projection


@dataclass(frozen=True, eq=False)
class Example:
    """States about one fact, and others that are not.

    Attributes:
        anchor: at the prompt that is the fact's key.
        near: at other prompts of the fact.
        far: at prompts that are like it.
    """

    anchor: Float[Tensor, " hidden"]
    near: Float[Tensor, "near hidden"]
    far: Float[Tensor, "far hidden"]


def radius_of(
    projection: Float[Tensor, "width hidden"], examples: Sequence[Example], *, held_out: bool
) -> float:
    """The distance from an anchor within which the fact is meant.

    Args:
        projection: as ``learn_scope`` gives it.
        examples: with something far.
        held_out: whether the scope has not seen them; then it is the distance that parts best what
            is near from what is far, where both count alike. What has been seen cannot tell, so
            then it is half of the way to what is far.
    """
    near, far = (
        torch.cat([_lengths((part - one.anchor) @ projection.T) for one, part in pairs])
        for pairs in (
            [(one, one.near) for one in examples],
            [(one, one.far) for one in examples],
        )
    )
    if not held_out or not len(near):
        return float(far.median()) / 2
    bounds, near, far = (part.sort().values for part in (torch.cat([near, far]), near, far))
    kept = torch.searchsorted(near, bounds, right=True) / len(near)
    caught = torch.searchsorted(far, bounds, right=True) / len(far)
    return float(bounds[(kept - caught).argmax()])


@torch.enable_grad()
def learn_scope(
    examples: Sequence[Example],
    elsewhere: Float[Tensor, "others hidden"],
    *,
    width: int,
    steps: int,
) -> Float[Tensor, "width hidden"]:
    """A projection in which what is near is nearer to its anchor than all else is.

    It starts as the directions in which states differ most, for how much those of one fact differ
    (linear discriminants). Then gradient descent moves what lies on the wrong side.

    Args:
        examples: at least one.
        elsewhere: states that belong to no fact; the anchors of the others count, too.
        width: of the space; at most as wide as the states.
        steps: of Adam.
    """
    anchors = torch.stack([one.anchor for one in examples])
    near = torch.cat([one.near - one.anchor for one in examples])
    far = torch.cat([one.far - one.anchor for one in examples])
    others = torch.cat([anchors, elsewhere])
    first = _discriminants(near, torch.cat([far, others - others.mean(0)]), width)
    itself = torch.eye(len(anchors), len(others), dtype=torch.bool, device=others.device)
    change = torch.zeros_like(first, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=_RATE)
    for _ in range(steps):
        projection = first + first.abs().mean() * change
        apart = torch.cdist(anchors @ projection.T, others @ projection.T)
        loss = (
            _mean_square(relu(_lengths(near @ projection.T) - _INNER))
            + _mean_square(relu(_OUTER - _lengths(far @ projection.T)))
            + _mean_square(relu(_OUTER - apart.masked_fill(itself, torch.inf)))
        )
        (change.grad,) = torch.autograd.grad(loss, [change])
        optimizer.step()
    return (first + first.abs().mean() * change).detach()


def _discriminants(
    near: Float[Tensor, "near hidden"], differences: Float[Tensor, "others hidden"], width: int
) -> Float[Tensor, "width hidden"]:
    """The directions in which differences are large where those of a fact are small."""
    within, between = (part.double().T @ part.double() for part in (near, differences))
    within, between = within / max(len(near), 1), between / len(differences)
    scale = within.diagonal().mean().maximum(_LEAST * between.diagonal().mean())
    within.diagonal().add_(_RIDGE * scale.clamp_min(torch.finfo(scale.dtype).tiny ** 0.5))
    lower = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(lower, between, upper=False)
    whitened = torch.linalg.solve_triangular(lower, half.T, upper=False)
    vectors = torch.linalg.eigh(whitened).eigenvectors[:, -width:]  # in ascending order
    projection = torch.linalg.solve_triangular(lower.T, vectors, upper=True).T
    # With nothing near, half the way to what is far is the best guess.
    typical = _lengths((near if len(near) else differences / 2).double() @ projection.T).median()
    least = torch.finfo(typical.dtype).tiny
    scaled: Tensor = (projection * (_INNER / typical.clamp_min(least))).float()
    return scaled


def _lengths(rows: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
    """Of each row; where it is 0 the gradient is, too."""
    squares = rows.pow(2).sum(1)
    lengths: Tensor = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
    return lengths


def _mean_square(misses: Tensor) -> Float[Tensor, ""]:
    """0 where there is nothing to miss."""
    return misses.pow(2).sum() / max(misses.numel(), 1)
