"""AlphaEdit: as MEMIT, but nothing is written where the corpus reads.

Source: Fang et al. 2024, AlphaEdit (arXiv:2410.02355). Departures: the null space is what has the
smallest share of the keys' energy, so that no eigenvalue depends on the model's scale; the penalty
on the change is in units of the facts' own keys; the keys of earlier edits come from the edits
that act, so there is no state besides them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from brickwork.errors import EditError
from brickwork.update.keys import edit_path
from brickwork.update.memit import SpreadOptions, spread
from brickwork.update.method import Draft, EditContext
from brickwork.update.rewrite import solved
from brickwork.update.words import EncodedFact


class AlphaEditOptions(SpreadOptions):
    """Options of AlphaEdit."""

    energy: float = Field(default=1e-3, gt=0, lt=1)
    """The share of the corpus's energy that counts as nothing."""
    penalty: float = Field(default=0.1, gt=0)
    """Weighs the size of the change, in units of what is left of a fact's key."""


def draft_alphaedit(
    context: EditContext, facts: Sequence[EncodedFact], options: AlphaEditOptions
) -> Draft:
    """As MEMIT's, with inputs only from the directions that the corpus hardly reads.

    Args:
        context: with the covariance of each layer, and the keys of edits that act already.
        facts: any number.
        options: see there.

    Raises:
        EditError: if a layer is one of experts, there is no such, or the corpus leaves no
            direction free.
    """

    def reader(layer: int, keys: Tensor) -> Tensor:
        assert context.covariance is not None, "checked with the method's needs"
        free = null_space(context.covariance(layer).matrix.to(keys.device), options.energy)
        if not free.shape[1]:
            raise EditError(
                f"the corpus reads every direction of layer {layer} (the weakest has more than "
                f"{options.energy:g} of the energy); raise the option energy."
            )
        path = edit_path(context.loaded.model, layer)
        earlier = context.earlier.get(path, keys.new_zeros(0, keys.shape[1])).to(keys)
        return null_space_reader(keys, earlier, free, options.penalty)

    return spread(context, facts, options, reader)


def null_space(
    covariance: Float[Tensor, "neurons neurons"], energy: float
) -> Float[Tensor, "neurons free"]:
    """An orthonormal basis of the directions that together have at most this share of the trace."""
    values, vectors = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(0)  # rounding can leave a small negative one
    free: Tensor = vectors[:, values.cumsum(0) <= energy * values.sum()]
    return free


def null_space_reader(
    keys: Float[Tensor, "facts neurons"],
    earlier: Float[Tensor, "keys neurons"],
    free: Float[Tensor, "neurons free"],
    penalty: float,
) -> Float[Tensor, "facts neurons"]:
    """``((P (K K^T + K_p K_p^T) + L2)^-1 P K)^T``, solved inside the null space.

    Args:
        keys: K, what the map reads for each fact, in float64.
        earlier: K_p, what it reads for facts that were edited before.
        free: a basis of the null space; P projects onto it.
        penalty: L2 in units of the median of ``|P k|^2``.
    """
    new, old = keys @ free, earlier @ free
    weight = penalty * (new * new).sum(1).median().clamp_min(torch.finfo(new.dtype).tiny)
    eye = torch.eye(free.shape[1], dtype=new.dtype, device=new.device)
    return (free @ solved(new.T @ new + old.T @ old + weight * eye, new.T)).T
