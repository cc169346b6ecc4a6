"""Progressive prompts: a new soft prompt for each task, before the frozen ones of earlier tasks.

Razdaibiedina et al. 2023 (arXiv:2301.12314). The brick of a task holds the whole row of prompts,
so it is run alone, and the one of an earlier task still says what it said.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brickwork.brick.base import Base
from brickwork.brick.brick import Brick
from brickwork.brick.check import require_fit
from brickwork.brick.spec import BrickSpec, Lineage
from brickwork.errors import ConfigurationError, DataError, GrowthError
from brickwork.model.fit import FitRecipe, Report, fit, training_batches
from brickwork.model.load import LoadedModel
from brickwork.model.lora import About
from brickwork.model.train import Encoded


@dataclass(frozen=True)
class PromptRecipe:
    """How a soft prompt is trained.

    Attributes:
        training: rate, steps and so on; prompts want a high rate (0.3 in Lester et al. 2021).
        tokens: vectors of the new prompt.
        bottleneck: inner width of an MLP that the vectors go through while they are trained, beside
            going round it; 0: none.
    """

    training: FitRecipe
    tokens: int = 10
    bottleneck: int = 0


def train_progressive(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    recipe: PromptRecipe,
    about: About,
    *,
    earlier: Brick | None = None,
    report: Report = lambda step, steps, loss: None,
) -> Brick:
    """A prompt brick for one more task: its own new vectors, then those of the earlier brick.

    Args:
        loaded: the base; it is not changed.
        sequences: prompts with responses of the new task.
        recipe: length and training of the new prompt.
        about: what the brick says of itself.
        earlier: the prompt brick of the task before, with all prompts before that; None: the first.
        report: called after each step with the step, the number of steps, and the loss.

    Returns:
        The brick in the base's number format, or in the earlier one's if that is wider: the
        earlier vectors are there to the bit.

    Raises:
        DataError: if there is nothing to train on, or no room for the vectors before it.
        GrowthError: if the earlier brick is no prompt.
        MisfitError: if it does not fit the base.
        ConfigurationError: if the new prompt would have no vector.

    Source:
        arXiv:2301.12314. Vectors begin as those of tokens of the task, as in Lester et al. 2021
        (arXiv:2104.08691); the MLP begins at 0, and has no layer norm, so that they do.
    """
    if recipe.tokens < 1 or recipe.bottleneck < 0:
        raise ConfigurationError(
            f"a prompt of {recipe.tokens} vectors through a bottleneck of {recipe.bottleneck} was "
            "asked for; name at least 1 vector, and a bottleneck of at least 0."
        )
    if not sequences:
        raise DataError(f"no training data for brick {about.name!r}; give at least one example.")
    frozen = _vectors_of(earlier, loaded)
    _require_room(loaded, sequences, recipe.tokens + len(frozen))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        first = _word_vectors(loaded, sequences, recipe.tokens)
        prompted = _Prompted(loaded.model, first, frozen, recipe.bottleneck)
    batches = training_batches(sequences, recipe.training)
    fit(prompted, prompted.trained, batches, recipe.training, report=report)
    with torch.no_grad():
        vectors = prompted.vectors().detach().cpu()
    wide = loaded.dtype if earlier is None else torch.promote_types(loaded.dtype, frozen.dtype)
    lineage = Lineage(
        method="progressive prompts",
        arguments=asdict(recipe),
        data=about.data,
        parents=(earlier.hash,) if earlier else (),
    )
    return _brick(torch.cat([vectors.to(wide), frozen.to(wide)]), loaded.base, about, lineage)


def _brick(
    vectors: Float[Tensor, "tokens hidden"], base: Base, about: About, lineage: Lineage
) -> Brick:
    (site,) = (s.path for s in base.of_kind("embedding"))
    spec = BrickSpec(
        name=about.name,
        form="prompt",
        base=base.fingerprint,
        sites=(site,),
        function=about.function,
        licence=about.licence,
        lineage=lineage,
    )
    return Brick(spec, {f"{site}/vectors": vectors})


class _Prompted(nn.Module):
    """The base behind a row of prompts, of which the first is trained."""

    def __init__(
        self,
        model: Any,
        first: Float[Tensor, "tokens hidden"],
        frozen: Float[Tensor, "other_tokens hidden"],
        bottleneck: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.own = nn.Parameter(first)
        self.frozen = frozen.to(first.device)
        self.around = _mlp(first.shape[1], bottleneck).to(first.device)

    @property
    def trained(self) -> list[nn.Parameter]:
        return [self.own, *self.around.parameters()]

    def vectors(self) -> Float[Tensor, "tokens hidden"]:
        """The new prompt as the base sees it."""
        return self.own + self.around(self.own) if len(self.around) else self.own

    def forward(self, input_ids: Tensor, logits_to_keep: int) -> Any:
        words = self.model.get_input_embeddings()(input_ids)
        row = torch.cat([self.vectors().to(words), self.frozen.to(words)])
        inputs = torch.cat([row.expand(len(words), -1, -1), words], dim=1)
        return self.model(inputs_embeds=inputs, logits_to_keep=logits_to_keep, use_cache=False)


def _mlp(width: int, bottleneck: int) -> nn.Sequential:
    if not bottleneck:
        return nn.Sequential()
    up = nn.Linear(bottleneck, width)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    return nn.Sequential(nn.Linear(width, bottleneck), nn.ReLU(), up)


def _vectors_of(earlier: Brick | None, loaded: LoadedModel) -> Float[Tensor, "tokens hidden"]:
    if earlier is None:
        return torch.zeros(0, loaded.model.config.get_text_config().hidden_size)
    if earlier.spec.form != "prompt":
        raise GrowthError(
            f"the earlier brick {earlier.spec.name!r} is a {earlier.spec.form}, and a prompt can "
            "only follow on prompts; give the prompt brick of the task before, or none."
        )
    require_fit(earlier, loaded.base)
    (slots,) = earlier.by_site.values()
    return slots["vectors"].cpu()


@torch.no_grad()
def _word_vectors(
    loaded: LoadedModel, sequences: Sequence[Encoded], tokens: int
) -> Float[Tensor, "tokens hidden"]:
    """What the base sees of tokens that are drawn from the task's, in float32."""
    ids = torch.tensor([token for sequence in sequences for token in sequence.ids])
    drawn = ids[torch.randint(len(ids), (tokens,))].to(loaded.device)
    found: Tensor = loaded.model.get_input_embeddings()(drawn)
    return found.float()


def _require_room(loaded: LoadedModel, sequences: Sequence[Encoded], vectors: int) -> None:
    row = loaded.architecture
    if row is None or "positions" not in row.roles:
        return
    room: int = loaded.model.config.max_position_embeddings
    longest = max(len(sequence.ids) for sequence in sequences)
    if longest + vectors > room:
        raise DataError(
            f"{vectors} vectors were to stand before up to {longest} tokens, but the model has "
            f"learned {room} positions; take shorter prompts or instances."
        )
