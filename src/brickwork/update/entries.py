"""What a block shall hand on so that the model tells the answers: one value for every spot."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from brickwork.measure.attribution import differentiable
from brickwork.model.parts import CausalModel
from brickwork.update.continuation import Continuation
from brickwork.update.states import Told, leads


@dataclass(frozen=True)
class Lesson:
    """How values are trained.

    Attributes:
        steps: of Adam, at most.
        rate: of Adam, as a share of the size of the states.
        lead: a row is done when the logit of each of its tokens lies so far above all others.
    """

    steps: int
    rate: float
    lead: float


@dataclass(frozen=True, eq=False)
class Trained:
    """Values of spots.

    Attributes:
        value: what is added to what the block hands on, in float32.
        handed: what it hands on by itself.
        reached: the rows that tell their answers with the values.
    """

    value: Float[Tensor, "spots hidden"]
    handed: Float[Tensor, "spots hidden"]
    reached: Bool[Tensor, " rows"]


@torch.enable_grad()
def train_entries(model: CausalModel, layer: int, batch: Told, lesson: Lesson) -> Trained:
    """What is to be added to what the block hands on at the spots, so that their tokens follow.

    Values start from nothing. Those of a row are trained together, since what is handed on at one
    token is seen at the later ones, and stay as they are once the row is done.

    Args:
        model: it is left as it is, without gradients; bricks that act on it act here, too.
        layer: of the block.
        batch: the rows.
        lesson: how to train.
    """
    ends = Continuation(model, batch.sequences, batch.starts, first=layer + 1)
    spots = (batch.row, batch.position)
    handed = ends.states[spots].float()
    size = handed.pow(2).mean(1, keepdim=True).sqrt()
    change = torch.zeros_like(handed, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=lesson.rate)

    def say() -> Float[Tensor, "spots vocabulary"]:
        states = (handed + size * change).to(ends.states.dtype)
        return ends.logits(ends.states.index_put(spots, states), *spots)

    with differentiable(model):
        for _ in range(lesson.steps):
            logits = say()
            done = batch.every(leads(logits.detach(), batch.token) >= lesson.lead)
            if done.all():
                break
            running = ~done[batch.row]
            loss = cross_entropy(logits[running], batch.token[running], reduction="sum")
            (change.grad,) = torch.autograd.grad(loss, [change])
            before = change.detach().clone()
            optimizer.step()
            with torch.no_grad():
                change.copy_(torch.where(running[:, None], change, before))
        with torch.no_grad():
            reached = batch.every(leads(say(), batch.token) > 0)
    return Trained((size * change).detach(), handed, reached)
