"""Early exit: a token whose next one is sure enough leaves before the last block.

Its hidden state then stays as it is. Later blocks still compute its keys and values from that
state, so that tokens to come can attend to it, but not their FFNs, if all rows have left.

Source: CALM, Schuster et al. 2022, arXiv:2207.07061 (the softmax measure and the copied states).
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from brickwork.brick.effects import Exit
from brickwork.errors import ConfigurationError
from brickwork.model.parts import CausalModel, find_module, layers_of, role_path
from brickwork.model.taps import BlockTap
from brickwork.runtime.ffn_selection import Spans

NEVER = 2.0  # no probability is that high


class Exits:
    """The exits of one batch, and which positions of the running pass have left.

    Args:
        model: the base.
        exits: the exits of each row, by layer.
        spans: where the rows stand; only positions from which an answer is told may leave.

    Raises:
        ConfigurationError: if the model's last hidden state is not what its output layer reads.
    """

    def __init__(
        self, model: CausalModel, exits: Mapping[int, Sequence[tuple[int, Exit]]], spans: Spans
    ) -> None:
        self._layers, self._spans = layers_of(model), spans
        norm = find_module(model, role_path(model, "final_norm", None))
        self._norm = norm or nn.Identity()  # OPT with norms after its blocks has no last one
        self._unembed: nn.Module = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        if getattr(config, "word_embed_proj_dim", config.hidden_size) != config.hidden_size:
            raise ConfigurationError(
                f"early exits were asked for, but this model projects its {config.hidden_size} "
                f"hidden channels to {config.word_embed_proj_dim} before the output layer, which "
                "exits do not do; leave the exits out."
            )
        rows, device = len(spans.lengths), next(model.parameters()).device
        self._confidence: dict[int, Tensor] = {}
        for layer, uses in sorted(exits.items()):
            needed = torch.full((rows,), NEVER, device=device)
            for row, exit in uses:
                needed[row] = torch.minimum(needed[row], exit.confidence.float()[0])
            self._confidence[layer] = needed
        self._left: Bool[Tensor, "rows tokens"] | None = None
        self._blocks: Int[Tensor, "rows tokens"] = torch.zeros(rows, 1, dtype=torch.long)

    @property
    def first(self) -> int:
        """The first block after which a token may leave."""
        return min(self._confidence)

    @property
    def all_left(self) -> bool:
        """Whether no position of the running pass needs another FFN."""
        return self._left is not None and bool(self._left.all())

    def blocks(self, row: int, last: int = 1) -> list[int]:
        """How many blocks the last positions of a row went through in the last pass."""
        return [int(number) for number in self._blocks[row, -last:]]

    def taps(self) -> dict[int, BlockTap]:
        """A tap for the first exit's block and for each one after it."""
        return {layer: self._tap(layer) for layer in range(self.first, self._layers)}

    def _tap(self, layer: int) -> BlockTap:
        def tap(before: Tensor, after: Tensor) -> Tensor:
            if layer == self.first:
                self._left = torch.zeros(after.shape[:2], dtype=torch.bool, device=after.device)
                self._blocks = torch.full(after.shape[:2], self._layers)
            assert self._left is not None
            states = torch.where(self._left.unsqueeze(-1), before, after)
            if layer in self._confidence:
                self._leave(layer, states)
            if layer == self._layers - 1:
                self._left = None
            return states

        return tap

    def _leave(self, layer: int, states: Float[Tensor, "rows tokens hidden"]) -> None:
        assert self._left is not None
        needed = self._confidence[layer]
        may = self._spans.tells(states.shape[1]).to(states.device) & ~self._left
        may &= (needed < NEVER).unsqueeze(1)
        tokens = may.any(0).nonzero().squeeze(1)
        if not len(tokens):
            return
        # Of all rows, since bricks at these two modules give each row its own terms.
        logits = self._unembed(self._norm(states[:, tokens])).float()
        if self._cap is not None:
            logits = self._cap * torch.tanh(logits / self._cap)
        sure = logits.softmax(-1).amax(-1) >= needed.unsqueeze(1)
        row, place = torch.where(sure & may[:, tokens])
        token = tokens[place]
        self._left[row, token] = True
        self._blocks[row.cpu(), token.cpu()] = layer + 1
