"""AlphaEdit: as MEMIT, but nothing is written where the corpus reads.

Source: Fang et al. 2024, AlphaEdit (arXiv:2410.02355). Departures: the null space is what has the
smallest share of the keys' energy, so that no eigenvalue depends on the model's scale; the penalty
on the change is in units of the facts' own keys; the keys of earlier edits come from the edits
that act, so there is no state besides them; and see ``harm``, for there is no null space of a
corpus in which other texts read nothing at all.
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
from brickwork.update.rewrite import earlier_keys, protected, solved
from brickwork.update.words import EncodedFact


class AlphaEditOptions(SpreadOptions):
    """Options of AlphaEdit."""

    energy: float = Field(default=1e-2, gt=0, lt=1)
    """The share of the corpus's energy that counts as nothing."""
    penalty: float = Field(default=0.2, gt=0)
    """Weighs the size of the change, in units of what is left of a fact's key."""
    harm: float = Field(default=0.18, gt=0)
    """As for the other methods; more, for where the corpus reads little, keys tell less apart."""


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

    def whiten(layer: int, keys: Tensor) -> tuple[Tensor, float]:
        assert context.covariance is not None, "checked with the method's needs"
        free = null_space(context.covariance(layer).matrix.to(keys.device), options.energy)
        if not free.shape[1]:
            raise EditError(
                f"the corpus reads every direction of layer {layer} (the weakest has more than "
                f"{options.energy:g} of the energy); raise the option energy."
            )
        earlier = earlier_keys(context, edit_path(context.loaded.model, layer), keys)
        return null_space_whitened(keys, earlier, free, options.penalty), 1.0

    return spread(context, facts, options, whiten)


def null_space(
    covariance: Float[Tensor, "neurons neurons"], energy: float
) -> Float[Tensor, "neurons free"]:
    """An orthonormal basis of the directions that together have at most this share of the trace."""
    values, vectors = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(0)  # rounding can leave a small negative one
    free: Tensor = vectors[:, values.cumsum(0) <= energy * values.sum()]
    return free


def null_space_whitened(
    keys: Float[Tensor, "facts neurons"],
    earlier: Float[Tensor, "keys neurons"],
    free: Float[Tensor, "neurons free"],
    penalty: float,
) -> Float[Tensor, "neurons facts"]:
    """``(P K_p K_p^T + L2)^-1 P K``, solved inside the null space, as ``bounded_reader`` takes it.

    Args:
        keys: K, what the map reads for each fact, in float64.
        earlier: K_p, what it reads for facts that were edited before.
        free: a basis of the null space; P projects onto it.
        penalty: L2 in units of the median of ``|P k|^2``.
    """
    new, old = keys @ free, earlier @ free
    weight = penalty * (new * new).sum(1).median().clamp_min(torch.finfo(new.dtype).tiny)
    eye = torch.eye(free.shape[1], dtype=new.dtype, device=new.device)
    return free @ solved(protected(weight * eye, old), new.T)
