"""Values: what a layer must say at one token of a prompt, so that the model gives a new answer.

A value is what the layer says by itself plus a vector that is learned: it is added in every
prompt that shall be answered so, and gradient descent makes the answer likely while what the
model says of the subject in general stays as it is.

Source: Meng et al. 2022, Locating and Editing Factual Associations in GPT (ROME,
arXiv:2202.05262), 3.1, and Mass-Editing Memory in a Transformer (MEMIT, arXiv:2210.07229), 4.1.
Departures: the learning rate is in units of the root mean square of what the layer says, so that
one value serves models of any width; a fact that has been learned stops alone; all facts of a
batch are learned at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import kl_div

from brickwork.measure.attribution import differentiable, gradient_budget
from brickwork.model.parts import CausalModel, part_of
from brickwork.update.continuation import Continuation

Where = Literal["ffn", "block"]


@dataclass(frozen=True)
class Rewriting:
    """A prompt in which the vector of a fact is added.

    Attributes:
        fact: the number of the fact.
        ids: the prompt's tokens.
        position: the token where the vector is added.
        target: what shall follow; empty where what follows shall stay as it is.
    """

    fact: int
    ids: tuple[int, ...]
    position: int
    target: tuple[int, ...] = ()


@dataclass(frozen=True)
class Descent:
    """How values are learned.

    Attributes:
        steps: the most that are taken.
        lr: of Adam, in units of the root mean square of what the layer says.
        enough: nats per token of the answer at which a fact has been learned.
        clamp: the vector's greatest length, in lengths of what the layer says.
        decay: weighs the vector's length by the square of what the layer says.
        preserve: weighs the divergence in prompts without a target.
    """

    steps: int = 25
    lr: float = 1.0
    enough: float = 0.05
    clamp: float = 4.0
    decay: float = 0.5
    preserve: float = 0.0625


@dataclass(frozen=True, eq=False)
class Learned:
    """Values of facts.

    Attributes:
        delta: what is added to what the layer says, in float32.
        said: what the layer says by itself, the mean over a fact's prompts with a target.
        nats: the loss on the answer that was reached, per token.
    """

    delta: Float[Tensor, "facts hidden"]
    said: Float[Tensor, "facts hidden"]
    nats: Float[Tensor, " facts"]


def learn_values(
    model: CausalModel,
    layer: int,
    where: Where,
    rewritings: Sequence[Rewriting],
    descent: Descent,
    *,
    advance: Callable[[float], None] = lambda _facts: None,
) -> Learned:
    """For each fact the vector by which its prompts get their target.

    Args:
        model: it is left as it is, without gradients; bricks that act on it act here, too.
        layer: whose saying is changed.
        where: ``ffn``: at the output of the FFN's last linear map, before a norm that may follow;
            ``block``: at the output of the block.
        rewritings: of facts 0 to n - 1, each with at least one that has a target.
        descent: how to learn.
        advance: told the number of facts that have just been learned.
    """
    by_fact: dict[int, list[Rewriting]] = {}
    for one in rewritings:
        by_fact.setdefault(one.fact, []).append(one)
    found = []
    for group in _groups(by_fact, gradient_budget(model)):
        descending = _Descending(model, layer, where, [by_fact[fact] for fact in group])
        found.append(descending.run(descent))
        advance(len(group))
    return Learned(
        *(torch.cat([getattr(one, n) for one in found]) for n in ("delta", "said", "nats"))
    )


def _groups(by_fact: dict[int, list[Rewriting]], budget: int) -> Iterator[list[int]]:
    """Facts in their order, in groups whose ends have at most so many tokens."""
    group: list[int] = []
    tokens = 0
    for fact in range(len(by_fact)):
        own = sum(len(one.ids) + len(one.target) - one.position for one in by_fact[fact])
        if group and tokens + own > budget:
            yield group
            group, tokens = [], 0
        group.append(fact)
        tokens += own
    yield group


class _Descending:
    """The values of a group of facts while they are learned."""

    def __init__(
        self, model: CausalModel, layer: int, where: Where, facts: Sequence[Sequence[Rewriting]]
    ) -> None:
        self.model = model
        rows = [one for own in facts for one in own]
        self.ends = Continuation(
            model,
            [one.ids + one.target[:-1] for one in rows],
            [one.position for one in rows],
            first=layer + (where == "block"),
        )
        part = part_of(model, "mlp.down", layer) if where == "ffn" else None
        self.down = None if part is None else model.get_submodule(part.module)
        self.wanted = _wanted(facts).to(model.device)

    @torch.enable_grad()
    def run(self, descent: Descent) -> Learned:
        """Take steps until all facts are learned."""
        with differentiable(self.model):
            before, said = self._look()
            size = said.norm(dim=1, keepdim=True)
            scale = descent.lr * size / said.shape[1] ** 0.5
            steps = torch.zeros_like(said, requires_grad=True)
            adam = torch.optim.Adam([steps], lr=1.0)
            for taken in range(descent.steps + 1):
                nats, apart = self._losses(steps * scale, before)
                running = nats.detach() >= descent.enough
                if taken == descent.steps or not running.any():
                    break
                length = (steps * scale).norm(dim=1) / size.squeeze(1) ** 2
                total = nats + descent.preserve * apart + descent.decay * length
                (steps.grad,) = torch.autograd.grad(total.sum(), [steps])
                kept = steps.detach().clone()
                adam.step()
                longest = descent.clamp * size / scale
                with torch.no_grad():
                    steps.copy_(torch.where(running[:, None], steps, kept))
                    steps.mul_((longest / steps.norm(dim=1, keepdim=True)).clamp_max(1))
        return Learned((steps * scale).detach(), said, nats.detach())

    @torch.no_grad()
    def _look(self) -> tuple[Tensor, Tensor]:
        """What all prompts are followed by, and what the layer says, while nothing is added."""
        said: list[Tensor] = []
        fact = self.wanted.fact
        logs = self._logs(None, said)
        answering = torch.zeros(len(fact), device=fact.device)
        answering[self.wanted.row[self.wanted.answer]] = 1.0
        total = torch.zeros(self.wanted.facts, said[0].shape[1], device=fact.device)
        total.index_add_(0, fact, said[0] * answering[:, None])
        count = torch.zeros(self.wanted.facts, device=fact.device).index_add_(0, fact, answering)
        return logs[~self.wanted.answer], total / count[:, None]

    def _losses(self, delta: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Nats of the answers, and the divergence in other prompts, of each fact."""
        wanted = self.wanted
        logs = self._logs(delta, [])
        nats = -logs[wanted.answer].gather(1, wanted.token[wanted.answer, None]).squeeze(1)
        apart = kl_div(before, logs[~wanted.answer], reduction="none", log_target=True).sum(1)
        zero, fact = torch.zeros(wanted.facts, device=logs.device), wanted.fact[wanted.row]
        return (
            zero.index_add(0, fact[wanted.answer], nats * wanted.share[wanted.answer]),
            zero.index_add(0, fact[~wanted.answer], apart * wanted.share[~wanted.answer]),
        )

    def _logs(self, delta: Tensor | None, said: list[Tensor]) -> Tensor:
        """Log-probabilities where they are wanted; what the layer says joins the list."""
        states, wanted = self.ends.states, self.wanted

        def add(x: Tensor) -> Tensor:
            said.append(x[:, 0].detach().float())
            if delta is None:
                return x
            there = torch.zeros(x.shape[1], 1, dtype=x.dtype, device=x.device)
            there[0] = 1.0
            return x + there * delta[wanted.fact].to(x.dtype)[:, None]

        if self.down is None:
            return self.ends.logits(add(states), wanted.row, wanted.position).log_softmax(-1)
        # OPT's maps read and write all rows in one.
        hook = self.down.register_forward_hook(
            lambda _module, _args, out: add(out.view(len(wanted.fact), -1, out.shape[-1])).view_as(
                out
            )
        )
        try:
            return self.ends.logits(states, wanted.row, wanted.position).log_softmax(-1)
        finally:
            hook.remove()


@dataclass(frozen=True, eq=False)
class _Wanted:
    """Where logits are wanted.

    Attributes:
        facts: how many there are.
        fact: of each row.
        row: of each position that is wanted.
        position: of each, counted from the start of the end.
        token: what shall follow there.
        answer: whether a token shall follow, or what follows shall stay.
        share: its part in the mean over a fact's prompts and tokens.
    """

    facts: int
    fact: Int[Tensor, " rows"]
    row: Int[Tensor, " chosen"]
    position: Int[Tensor, " chosen"]
    token: Int[Tensor, " chosen"]
    answer: Bool[Tensor, " chosen"]
    share: Float[Tensor, " chosen"]

    def to(self, device: torch.device) -> "_Wanted":
        """The same on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if name != "facts"}
        return _Wanted(self.facts, **moved)


def _wanted(facts: Sequence[Sequence[Rewriting]]) -> _Wanted:
    numbers: list[int] = []
    found: list[tuple[int, int, int, bool, float]] = []
    for number, own in enumerate(facts):
        prompts = {kind: sum(bool(one.target) is kind for one in own) for kind in (True, False)}
        for one in own:
            last, answers = len(one.ids) - one.position - 1, bool(one.target)
            share = 1 / (prompts[answers] * max(len(one.target), 1))
            for i, token in enumerate(one.target or (0,)):
                found.append((len(numbers), last + i, token, answers, share))
            numbers.append(number)
    columns = [torch.tensor(column) for column in zip(*found, strict=True)]
    return _Wanted(len(facts), torch.tensor(numbers), *columns)
