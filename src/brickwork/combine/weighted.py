"""Bricks at work together with weights that may be learned, each row of a batch the same.

The weights are tensors, and gradients reach them through the model. A brick may have another
weight in each group of layers.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.check import require_fit
from brickwork.brick.effects import Add, Effect, Scale, Shift
from brickwork.brick.forms import effects_of
from brickwork.errors import MergeError
from brickwork.measure.perplexity import only_logits_of, token_losses
from brickwork.model.attach import RowWork, SharedShrink, attached
from brickwork.model.load import LoadedModel
from brickwork.model.train import Encoded, groups_by_length, pack

TOKENS_PER_BATCH = 2048
Signal = Literal["loss", "entropy"]


@dataclass
class _Terms:
    """What bricks do at one site."""

    A: list[Tensor] = field(default_factory=list)
    B: list[Tensor] = field(default_factory=list)
    factors: dict[str, Tensor] = field(default_factory=dict)
    shift: Tensor | None = None


class WeightedBricks:
    """Bricks on a base, with one weight for each brick and group of layers.

    Args:
        loaded: the base; it is only changed while a batch runs.
        bricks: of forms that a weight has a meaning for, in any mixture.
        groups: of how many blocks of consecutive layers each brick has a weight of its own; sites
            outside the layers are in the last.

    Raises:
        MergeError: if a brick's form takes no weight.
        MisfitError: if a brick does not fit the base.
    """

    def __init__(self, loaded: LoadedModel, bricks: Sequence[Brick], groups: int = 1) -> None:
        self.loaded, self.bricks, self.groups = loaded, bricks, groups
        self._layers = 1 + max((s.layer or 0 for s in loaded.base.sites.values()), default=0)
        if not 1 <= groups <= self._layers:
            raise MergeError(
                f"{groups} groups of layers were asked for, and the model has {self._layers} "
                "layers; ask for at least 1 group and at most one for each layer."
            )
        like = next(loaded.model.parameters()).detach()
        self._effects: list[list[Effect]] = []
        for brick in bricks:
            require_fit(brick, loaded.base)
            self._effects.append([_moved(effect, like, brick) for effect in effects_of(brick)])

    def group_of(self, path: str) -> int:
        """The group of layers that a module is in."""
        layer = self.loaded.base.sites[path].layer
        return self.groups - 1 if layer is None else layer * self.groups // self._layers

    @contextmanager
    def at_work(self, weights: Float[Tensor, "bricks groups"], rows: int) -> Iterator[None]:
        """Inside, the base serves batches of so many rows with the bricks so weighted."""
        terms: dict[str, _Terms] = defaultdict(_Terms)
        for effects, own in zip(self._effects, weights, strict=True):
            for effect in effects:
                _add(terms[effect.site], effect, own[self.group_of(effect.site)])
        work = {path: _row_work(site, rows) for path, site in terms.items()}
        with attached(self.loaded.model, rows, work):
            yield

    def signals(
        self, weights: Float[Tensor, "bricks groups"], batch: Sequence[Encoded], signal: Signal
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """For every sequence a sum in nats, and over how many tokens.

        Args:
            weights: gradients reach them.
            batch: prompts, with responses for ``loss``.
            signal: the loss of the response, or how unsure the first token of the answer is (the
                entropy of its distribution), for which no response is looked at.
        """
        with self.at_work(weights, len(batch)):
            if signal == "loss":
                nats, answers = token_losses(self.loaded.model, batch, whole=False)
                return nats.sum(1), answers.sum(1)
            return _entropies(self.loaded, batch), torch.ones(len(batch), device=weights.device)

    @torch.no_grad()
    def mean(
        self, weights: Sequence[Sequence[float]], sequences: Sequence[Encoded], signal: Signal
    ) -> float:
        """Nats per token over all sequences, without gradients."""
        given = torch.tensor(weights, device=self.loaded.device, dtype=self.loaded.dtype)
        total, tokens = 0.0, 0.0
        for group in groups_by_length([len(s.ids) for s in sequences], TOKENS_PER_BATCH):
            nats, count = self.signals(given, [sequences[i] for i in group], signal)
            total, tokens = total + nats.sum().item(), tokens + count.sum().item()
        return total / tokens


def _moved(effect: Effect, like: Tensor, brick: Brick) -> Effect:
    """The effect in the base's dtype and place."""
    match effect:
        case Add(site, A, B, scaling):
            return Add(site, A.to(like), (B * scaling).to(like), 1.0)
        case Scale(site, factor, on):
            return Scale(site, factor.to(like), on)
        case Shift(site, vector):
            return Shift(site, vector.to(like))
        case _:
            raise MergeError(
                f"the weight of brick {brick.spec.name!r} was to be learned, but one of the form "
                f"{brick.spec.form!r} acts as a whole or not at all; leave it out, and name it in "
                "the configuration afterwards."
            )


def _add(terms: _Terms, effect: Effect, weight: Float[Tensor, ""]) -> None:
    match effect:
        case Add(_, A, B, _):
            terms.A.append(A)
            terms.B.append(B * weight)
        case Scale(_, factor, on):
            own = 1 + weight * (factor - 1)
            terms.factors[on] = terms.factors[on] * own if on in terms.factors else own
        case Shift(_, vector):
            own = weight * vector
            terms.shift = own if terms.shift is None else terms.shift + own


def _row_work(terms: _Terms, rows: int) -> RowWork:
    work = RowWork()
    if terms.A:
        A, B = torch.cat(terms.A), torch.cat(terms.B, dim=1)
        work.shrink = SharedShrink(A.T.expand(rows, -1, -1))
        work.columns = (0, A.shape[0])
        work.B = B.T.expand(rows, -1, -1)
    every = {on: factor.expand(rows, 1, -1) for on, factor in terms.factors.items()}
    work.scale_in, work.scale_out = every.get("in"), every.get("out")
    if terms.shift is not None:
        work.shift = terms.shift.expand(rows, 1, -1)
    return work


def _entropies(loaded: LoadedModel, batch: Sequence[Encoded]) -> Float[Tensor, " rows"]:
    starts = [max(s.response_start, 1) for s in batch]
    prompts = [Encoded(s.ids[:start], start) for s, start in zip(batch, starts, strict=True)]
    ids = pack(prompts, pad=0, prompt_weight=0.0).ids.to(loaded.device)
    row = torch.arange(len(batch), device=loaded.device)
    with only_logits_of(loaded.model, row, torch.tensor(starts, device=loaded.device) - 1):
        logs = loaded.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    entropies: Tensor = -(logs.exp() * logs).sum(-1)
    return entropies
