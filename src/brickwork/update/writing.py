"""What a model writes after prompts: its own answers, and texts drawn at random; in batches."""

from collections.abc import Callable, Generator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from brickwork.measure.perplexity import only_logits_of
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel
from brickwork.model.words import stop_tokens

_LONGEST_OWN = 8  # tokens; a model that has not ended its answer by then writes on and on
_LIKELIEST = 5  # tokens that texts are drawn from
_ROWS_PER_BATCH = 128
_LOGITS_PER_BATCH = 1 << 24

# The next token of some rows: their numbers, how many they have written, and the logits.
Choice = Callable[[list[int], int, Float[Tensor, "rows vocabulary"]], Int[Tensor, " rows"]]


def own_answers(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """What the model says to each prompt: the whole answer if it soon ends it, else one token."""

    def likeliest(_numbers: list[int], _step: int, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    stops = stop_tokens(loaded)
    answers = []
    for text in written(loaded.model, prompts, _LONGEST_OWN + 1, likeliest):
        ends = [place for place, token in enumerate(text) if token in stops and place]
        answers.append(text[: ends[0]] if ends else text[:1])
    return answers


def drawn_texts(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    generator: torch.Generator,
) -> list[tuple[int, ...]]:
    """Texts that go on from prompts, each token drawn from the five likeliest.

    No text ends before its length, so that all can be compared; what would end it is not drawn.
    Equal generators give a prompt equal chance, whatever the model and the other prompts say.

    Args:
        loaded: the model, as it runs now.
        prompts: token ids, at least one each.
        tokens: of each text; fewer where the model can read no more.
        generator: on the CPU.

    Source:
        Meng et al. 2022, arXiv:2202.05262, draw from the five likeliest, too.
    """
    chance = torch.rand(len(prompts), tokens, generator=generator)
    stops = sorted(stop_tokens(loaded))

    def draw(numbers: list[int], step: int, logits: Tensor) -> Tensor:
        logits[:, stops] = -torch.inf
        found = logits.topk(min(_LIKELIEST, logits.shape[-1]))
        reached = found.values.softmax(-1).cumsum(-1)
        passed = reached[:, :-1] < chance[numbers, step].to(logits.device).unsqueeze(1)
        return found.indices.gather(1, passed.sum(1, keepdim=True)).squeeze(1)

    return written(loaded.model, prompts, tokens, draw)


@torch.inference_mode()
def written(
    model: CausalModel, prompts: Sequence[Sequence[int]], tokens: int, choose: Choice
) -> list[tuple[int, ...]]:
    """So many tokens after each prompt, or as many as the model can read.

    Args:
        model: it is left as it is; bricks that act on it act here, too.
        prompts: token ids, at least one each.
        tokens: to be written.
        choose: picks the next token of every row.
    """
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or 1 << 30
    rows = max(1, min(_ROWS_PER_BATCH, _LOGITS_PER_BATCH // config.vocab_size))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(order), rows):
        group = order[start : start + rows]
        room = [min(tokens, most + 1 - len(prompts[i])) for i in group]
        steps = _steps(model, [prompts[i] for i in group], most)
        said: list[Tensor] = []
        logits = next(steps)
        for step in range(max(room)):
            said.append(choose(group, step, logits))
            if step + 1 < max(room):
                logits = steps.send(said[-1])
        texts = torch.stack(said, dim=1).tolist() if said else [[]] * len(group)
        found |= {i: tuple(texts[row][: room[row]]) for row, i in enumerate(group)}
    return [found[i] for i in range(len(prompts))]


def _steps(
    model: CausalModel, prompts: Sequence[Sequence[int]], most: int
) -> Generator[Float[Tensor, "rows vocabulary"], Int[Tensor, " rows"], None]:
    """The logits of the next token of every row, again and again; is sent what was chosen."""
    width, device = max(map(len, prompts)), model.device
    # Padding stands before the prompts, so that all rows end at one place.
    ids = torch.tensor([[*[0] * (width - len(p)), *p] for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device).unsqueeze(1)
    mask = (torch.arange(width, device=device) >= width - lengths).long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    row, cache = torch.arange(len(prompts), device=device), None
    while True:
        with only_logits_of(model, row, torch.full_like(row, ids.shape[1] - 1)):
            output = model(
                input_ids=ids, attention_mask=mask, position_ids=positions,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
        cache = output.past_key_values
        ids = (yield output.logits[0].float()).unsqueeze(1)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        # A row that has no room left only waits for the others.
        positions = (positions[:, -1:] + 1).clamp_max(most - 1)
