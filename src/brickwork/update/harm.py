"""Harm: what linear edits of a layer say about texts that they are not about, and its bound.

The papers weigh a corpus against the facts, so that enough facts outweigh it and the model is
lost. Departure of ours: what all edits of a layer together say on the corpus, known from the
covariance of its keys, stays a small share of what its block says. Changes for different facts
have little in common, so that their mean squares are added.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.model.parts import CausalModel
from brickwork.update.contexts import Placed
from brickwork.update.keys import edit_path, recall, residual_scale
from brickwork.update.method import EditContext


@torch.no_grad()
def rooms(
    context: EditContext, rows: Sequence[Placed], layers: Sequence[int], harm: float
) -> dict[int, float]:
    """For each layer what it may still say on the corpus, as a mean square of the stream.

    What the last block says without the edits that act is the measure; with them it may have grown.

    Args:
        context: with the covariance of each layer.
        rows: where the facts are recalled.
        layers: that are edited together.
        harm: the share of what the last block says that all edits of a layer may come to.
    """
    model, spent, written = context.loaded.model, {}, []
    assert context.covariance is not None, "checked with the method's needs"
    for layer in layers:
        found = recall(model, rows, layer, block=layers[-1])
        corpus = context.covariance(layer).matrix.to(found.keys.device).double()
        change = acting_change(model, edit_path(model, layer), len(corpus))
        change = change * residual_scale(model, layer, found.values).mean(0)
        spent[layer] = mean_square(change, corpus)
        written += [found.keys.double() @ change]
    plain = found.states - torch.stack(written).sum(0)
    most = harm**2 * float(plain.square().sum(1).mean())
    return {layer: most - own for layer, own in spent.items()}


@torch.no_grad()
def acting_change(model: CausalModel, path: str, neurons: int) -> Float[Tensor, "neurons hidden"]:
    """What the bricks that act now add to a linear map, in float64."""
    down = model.get_submodule(path)
    each = torch.eye(neurons, dtype=model.dtype, device=model.device)[None]
    # Bricks act through hooks, or shadow the module's ``forward``: that of its class has neither.
    change: Tensor = (down(each) - type(down).forward(down, each))[0].double()
    return change


def mean_square(
    change: Float[Tensor, "neurons hidden"], covariance: Float[Tensor, "neurons neurons"]
) -> float:
    """Of what a change of a linear map says on the corpus."""
    return float((change * (covariance @ change)).sum())


def too_harmful(layer: int, harm: float) -> str:
    """Why a fact is left out for what it would do to others."""
    return (
        f"with it the edits of layer {layer} would change what its block says about anything by "
        f"more than {harm:.0%}; revoke other facts, edit another layer, or raise the option harm."
    )


def bounded_reader(
    keys: Float[Tensor, "facts neurons"],
    whitened: Float[Tensor, "neurons facts"],
    rest: Float[Tensor, "facts hidden"],
    covariance: Float[Tensor, "neurons neurons"],
    *,
    weight: float,
    most: float,
) -> Float[Tensor, "facts neurons"]:
    """``(weight + K X)^-1 X^T`` with a weight that keeps what is said on the corpus in bounds.

    For ``X = D^-1 K^T`` this is the ridge regression ``((weight D + K^T K)^-1 K^T)^T``.

    Args:
        keys: K, what the map reads for each fact, in float64.
        whitened: X.
        rest: what the map shall say more for each fact.
        covariance: of the corpus, in float64.
        weight: the least; it is raised as far as it must be.
        most: the greatest mean square of what is said on the corpus; above 0.
    """
    answers = keys @ whitened
    values, vectors = torch.linalg.eigh((answers + answers.T) / 2)
    values = values.clamp_min(0)  # rounding can leave a small negative one
    turned, rows = whitened @ vectors, vectors.T @ rest
    noise = (turned.T @ covariance @ turned) * (rows @ rows.T)
    while (shares := 1 / (weight + values)) @ noise @ shares > most:
        weight *= 1.1
    reader: Tensor = vectors @ (shares[:, None] * turned.T)
    return reader
