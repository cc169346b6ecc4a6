"""How examples are answered: the loss of each response, and whether the model would say it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.errors import DataError
from brickwork.measure.perplexity import only_logits_of
from brickwork.model.parts import CausalModel
from brickwork.model.train import Encoded, groups_by_length, pack

TOKENS_PER_BATCH = 2048

# The logits after every token of each row, as if each row ran alone with its own bricks. The last
# argument says from how many of its last tokens the next one is wanted.
RowLogits = Callable[
    [Sequence[Sequence[int]], Sequence[Sequence[Brick]], Sequence[int]], Sequence[Tensor]
]


@dataclass(frozen=True)
class Examples:
    """What is measured on: token ids to answer, and the instructions that they stand for.

    Attributes:
        prompts: as a router reads them.
        sequences: prompts with responses, in the same order.

    Raises:
        DataError: if there is not one prompt for each sequence, none at all, or a sequence without
            a prompt or a response.
    """

    prompts: tuple[str, ...]
    sequences: tuple[Encoded, ...]

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.sequences):
            raise DataError(
                f"{len(self.prompts)} prompts with {len(self.sequences)} sequences are no examples "
                "to measure on; give at least one, and a prompt for each."
            )
        require_responses(self.sequences)


@dataclass(frozen=True, eq=False)
class Answers:
    """How examples were answered.

    Attributes:
        nats: of each response, summed over its tokens.
        tokens: of each response, its end included.
        right: whether every token of the response is the likeliest after those before it: decoded
            greedily, the model would say it to the letter.
        served: the brick that answered each, None where the base did alone; None as a whole where
            one model answers everything.
    """

    nats: Float[Tensor, " samples"]
    tokens: Int[Tensor, " samples"]
    right: Bool[Tensor, " samples"]
    served: tuple[str | None, ...] | None = None

    @property
    def loss(self) -> float:
        """Nats per response token, over all examples together."""
        return (self.nats.sum() / self.tokens.sum()).item()

    @property
    def accuracy(self) -> float:
        """Share of examples whose response the model would say."""
        return self.right.double().mean().item()


def require_responses(sequences: Sequence[Encoded]) -> None:
    """Refuse sequences whose response cannot be predicted.

    Raises:
        DataError: naming the first one.
    """
    for place, one in enumerate(sequences):
        if not 0 < one.response_start < len(one.ids):
            raise DataError(
                f"sequence {place} has {len(one.ids)} tokens with a response from token "
                f"{one.response_start} on; it needs a token before the response and one in it."
            )


@torch.inference_mode()
def model_answers(model: CausalModel, sequences: Sequence[Encoded]) -> Answers:
    """How one model answers everything; it is left as it is."""
    device = next(model.parameters()).device

    def answer(group: Sequence[Encoded]) -> list[Tensor]:
        packed = pack(group, pad=0, prompt_weight=0.0)
        row, position = torch.where(packed.weight[:, 1:].to(device) == 1)
        with only_logits_of(model, row, position):
            logits = model(input_ids=packed.ids.to(device), use_cache=False).logits[0]
        return list(logits.split([len(s.ids) - s.response_start for s in group]))

    return _answers(sequences, lambda group, _places: answer(group))


@torch.inference_mode()
def row_answers(
    logits: RowLogits,
    sequences: Sequence[Encoded],
    bricks: Sequence[Sequence[Brick]],
    served: tuple[str | None, ...] | None = None,
) -> Answers:
    """How the base answers with bricks of each row's own.

    Batches depend on the sequences alone: rows that have the same bricks in two calls are computed
    in the same company of rows.

    Args:
        logits: the base with bricks.
        sequences: prompts with responses.
        bricks: of each sequence; none: the base alone.
        served: what to note as the one who answered.
    """

    def answer(group: Sequence[Encoded], places: Sequence[int]) -> list[Tensor]:
        told = [len(s.ids) - s.response_start + 1 for s in group]
        found = logits([s.ids for s in group], [bricks[place] for place in places], told)
        return [row[-count:-1] for row, count in zip(found, told, strict=True)]

    return _answers(sequences, answer, served)


def _answers(
    sequences: Sequence[Encoded],
    answer: Callable[
        [Sequence[Encoded], Sequence[int]], Sequence[Float[Tensor, "tokens vocabulary"]]
    ],
    served: tuple[str | None, ...] | None = None,
) -> Answers:
    nats = torch.zeros(len(sequences), dtype=torch.float64)
    right = torch.zeros(len(sequences), dtype=torch.bool)
    for places in groups_by_length([len(s.ids) for s in sequences], TOKENS_PER_BATCH):
        group = [sequences[place] for place in places]
        for place, one, logits in zip(places, group, answer(group, places), strict=True):
            wanted = torch.tensor(one.ids[one.response_start :], device=logits.device)
            said = logits.float().log_softmax(-1).gather(1, wanted[:, None])
            nats[place] = -said.double().sum().cpu()
            right[place] = bool((logits.argmax(-1) == wanted).all())
    tokens = torch.tensor([len(s.ids) - s.response_start for s in sequences])
    return Answers(nats, tokens, right, served)
