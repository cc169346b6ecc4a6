"""Which direction of input each group of neurons answers to, told from the weights alone."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from brickwork.model.ffn import FFN


def centroids(ffn: FFN, owner: Int[Tensor, " neurons"]) -> Float[Tensor, "groups hidden"]:
    """For every group the direction of the mean of its neurons' input rows, each of length 1.

    Source:
        Zhang et al. 2021 (arXiv:2110.01786), similarity. Of a gated FFN the gate's rows are taken:
        where the gate is negative a neuron is nearly silent, while the sign of its row of ``up``
        says nothing about how loud it is.
    """
    return normalize(membership(owner).T @ normalize(_rows(ffn)))


def weighted_centroids(
    ffn: FFN, owner: Int[Tensor, " neurons"], norms: Float[Tensor, " neurons"]
) -> Float[Tensor, "groups hidden"]:
    """As ``centroids``, of the rows as they are, each by how loud its neuron can be.

    That is the norm of its output column (``taps.output_norms``), times that of its row of ``up``
    where there is a gate. On the reference model it keeps more of the output's energy.
    """
    loud = norms
    if ffn.gate is not None:
        loud = loud * ffn.up.detach().float().norm(dim=1)
    return normalize(membership(owner).T @ (_rows(ffn) * loud.unsqueeze(1)))


def membership(owner: Int[Tensor, " neurons"]) -> Float[Tensor, "neurons groups"]:
    """1 where a neuron belongs to a group; a shared one belongs to none."""
    numbers = torch.arange(int(owner.max()) + 1, device=owner.device)
    return (owner.unsqueeze(1) == numbers).float()


def _rows(ffn: FFN) -> Float[Tensor, "neurons hidden"]:
    return (ffn.up if ffn.gate is None else ffn.gate).detach().float()
