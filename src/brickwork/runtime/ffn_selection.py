"""Which neurons of one FFN each row of a batch keeps: masks, and routers by token or by prompt."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from brickwork.brick.effects import Route
from brickwork.model.ffn import FFN, Experts
from brickwork.model.taps import Routed
from brickwork.route.routers import ROUTERS, kept, kind_of, prompt_kept, reading


@dataclass(frozen=True)
class Spans:
    """Where the rows of a batch stand in its first pass, counted from its last position.

    Attributes:
        lengths: tokens of each row's prompt.
        told: of how many of them the next one is wanted. Choices by prompt are made by the tokens
            before and at the first of these, and hold from there on.
    """

    lengths: Sequence[int]
    told: Sequence[int]

    def tells(self, tokens: int) -> Bool[Tensor, "rows tokens"]:
        """True at the positions from which a row's answer is told."""
        last = torch.tensor(self.told).unsqueeze(1)
        return torch.arange(tokens) >= tokens - last


class FfnSelection:
    """The neurons of one layer's FFN that are kept, for every position of a batch.

    What any mask of a row keeps is kept; every router takes away from that.

    Args:
        mask: the neurons that each row's masks keep; None if no row has one.
        routes: the routers of each row; none where the FFN is a mixture of experts.
        spans: where the rows stand; choices by prompt are made in the first pass.
        ffn: what the routers choose in.
    """

    def __init__(
        self,
        mask: Bool[Tensor, "rows neurons"] | None,
        routes: Sequence[Sequence[Route]],
        spans: Spans,
        ffn: FFN | Experts,
    ) -> None:
        self._ffn = ffn
        self._mask = None if mask is None else mask.unsqueeze(1)
        self._routes, self._spans, self._rows = routes, spans, len(spans.lengths)
        self._by_token: dict[int, tuple[Route, list[int]]] = {}
        for row, own in enumerate(routes):
            for route in own:
                if route.level != "token":
                    continue
                users = self._by_token.setdefault(id(route), (route, []))[1]
                if row not in users:  # one brick can have two names in a row
                    users.append(row)
        prompt = [route for own in routes for route in own if route.level == "prompt"]
        self._by_prompt = bool(prompt)
        # Asked for in every step of every layer, so it is found once.
        self._token_reads = _all_reads(route for route, _ in self._by_token.values())
        self._first_reads = self._token_reads | _all_reads(prompt)
        self._chosen: Bool[Tensor, "rows 1 neurons"] | None = None
        self._x: Tensor | None = None

    @property
    def settled(self) -> bool:
        """Whether what is kept stays as it is for all passes to come."""
        return not self._by_token and not (self._by_prompt and self._chosen is None)

    @property
    def needs_activations(self) -> bool:
        """Whether the next choice needs all that the FFN is to compute."""
        return "activation" in self._reads()

    @property
    def share_read(self) -> float:
        """The share of the FFN's weights that the next choice reads of every neuron."""
        gated = isinstance(self._ffn, FFN) and self._ffn.gate is not None
        return (1 / 3 if gated else 1 / 2) * ("gate" in self._reads())

    def _reads(self) -> frozenset[str]:
        """What the routers that are still to choose read."""
        return self._first_reads if self._chosen is None else self._token_reads

    def see(self, x: Float[Tensor, "positions hidden"]) -> None:
        """Remember what the FFN reads; a tap on its input."""
        self._x = x

    def tap(self, h: Float[Tensor, "positions neurons"], routed: Routed | None) -> Tensor:
        """Silence what is not kept; a tap on the neurons."""
        if routed is not None:
            return self._tap_experts(h, routed)
        by_row = h.unflatten(0, (self._rows, -1))
        seen, self._x = self._x, None  # let go of it: of a long prompt it is large
        x = by_row if seen is None else seen.unflatten(0, (self._rows, -1))
        silenced: Tensor = by_row * self.keep(x, lambda: by_row)
        return silenced.flatten(0, 1)

    def keep(
        self,
        x: Float[Tensor, "rows tokens hidden"],
        h: Callable[[], Float[Tensor, "rows tokens neurons"]],
    ) -> Bool[Tensor, "rows #tokens neurons"]:
        """What is kept at every position; one choice for all tokens where none depends on them."""
        found = self._mask
        for route, users in self._by_token.values():
            own_x = x[users].flatten(0, 1)
            own = kept(route, own_x, self._read(route, own_x, partial(_of_rows, h, users)))
            if found is None:
                found = own.new_ones(len(x), 1, own.shape[-1])
            if len(users) == len(x):
                found = found & own.unflatten(0, (len(users), -1))
            else:
                found = found.expand(-1, x.shape[1], -1).clone()
                found[users] &= own.unflatten(0, (len(users), -1))
        if self._by_prompt:
            own = self._keep_by_prompt(x, h)
            found = own if found is None else found & own
        assert found is not None, "a selection has a mask or a router"
        return found

    def _keep_by_prompt(
        self, x: Tensor, h: Callable[[], Tensor]
    ) -> Bool[Tensor, "rows #tokens neurons"]:
        if self._chosen is not None:
            return self._chosen
        tokens, activations = x.shape[1], h()
        chosen = torch.ones(len(x), 1, activations.shape[-1], dtype=torch.bool, device=x.device)
        for row, own in enumerate(self._routes):
            first = tokens - self._spans.lengths[row]
            prompt = slice(first, max(first, tokens - self._spans.told[row]) + 1)
            said = activations[row, prompt]
            for route in own:
                if route.level == "prompt":
                    read = self._read(route, x[row, prompt], partial(_itself, said))
                    chosen[row] &= prompt_kept(route, x[row, prompt], read)
        self._chosen = chosen
        tells = self._spans.tells(tokens).to(x.device).unsqueeze(-1)
        return chosen | ~tells

    def _read(
        self, route: Route, x: Float[Tensor, "positions hidden"], h: Callable[[], Tensor]
    ) -> Callable[[], Float[Tensor, "positions neurons"]]:
        """What the router reads of the FFN, computed when it is asked for."""
        reads = ROUTERS[kind_of(route.tensors)].reads
        if reads == "activation" or not isinstance(self._ffn, FFN):
            return h
        return reading(reads, self._ffn, x)

    def _tap_experts(self, h: Tensor, routed: Routed) -> Tensor:
        """The activations of the experts that were picked; only masks choose among those."""
        assert self._mask is not None
        by_expert = self._mask.squeeze(1).unflatten(1, (-1, routed.width))
        row = torch.arange(len(h), device=h.device) // (len(h) // self._rows)
        keep = by_expert[row.unsqueeze(1), routed.experts]  # positions top_k width
        silenced: Tensor = h * keep.flatten(1)
        return silenced


def _all_reads(routes: Iterable[Route]) -> frozenset[str]:
    return frozenset(ROUTERS[kind_of(route.tensors)].reads for route in routes)


def _of_rows(h: Callable[[], Tensor], rows: list[int]) -> Float[Tensor, "positions neurons"]:
    """The activations of some rows, one position after the other."""
    return h()[rows].flatten(0, 1)


def _itself(said: Tensor) -> Tensor:
    return said
