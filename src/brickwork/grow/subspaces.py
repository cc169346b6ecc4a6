"""O-LoRA: a LoRA for a new task that reads other directions than those of earlier tasks.

Wang et al. 2023, Orthogonal Subspace Learning for Language Model Continual Learning
(arXiv:2310.14152).
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brickwork.brick.brick import Brick
from brickwork.brick.check import require_fit
from brickwork.brick.effects import Add
from brickwork.brick.forms import effects_of
from brickwork.errors import ConfigurationError, GrowthError
from brickwork.model.attach import RowWork, SharedShrink, attached
from brickwork.model.fit import Report
from brickwork.model.load import LoadedModel
from brickwork.model.lora import About, LoraRecipe, train_lora
from brickwork.model.train import Encoded

_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Orthogonality:
    """What is added to the loss.

    Attributes:
        penalty: weight of the sum of ``|A_t A_i^T|`` over sites and earlier tasks i; 0.5 in the
            authors' scripts.
        decay: weight of the sum of the norms of the new ``A`` and ``B``; 0 in most of them.
    """

    penalty: float = 0.5
    decay: float = 0.0


def train_orthogonal(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    recipe: LoraRecipe,
    about: About,
    *,
    earlier: Sequence[Brick],
    weights: Orthogonality = Orthogonality(),
    report: Report = lambda step, steps, loss: None,
) -> Brick:
    """A LoRA brick for one more task, learned while those of the earlier tasks act and rest.

    It has learned what is missing beside them, so it is to be run together with them: their hashes
    are its parents.

    Args:
        loaded: the base, in the dtype to train in.
        sequences: prompts with responses of the new task.
        recipe: form and training of the LoRA; the number of earlier bricks is added to its seed.
        about: what the brick says of itself.
        earlier: LoRA bricks of the tasks before; none: the first task, an ordinary LoRA.
        weights: what is added to the loss.
        report: called after each step with the step, the number of steps, and the loss on the
            responses.

    Raises:
        DataError: if there is nothing to train on.
        GrowthError: if an earlier brick is no LoRA.
        MisfitError: if one does not fit the base.
        ConfigurationError: if a weight is negative.

    Source:
        arXiv:2310.14152, equations 7 to 10. As in the authors' code the penalty sums sizes and not
        squares, and the decay norms and not their squares.
    """
    if min(weights.penalty, weights.decay) < 0:
        raise ConfigurationError(
            f"a penalty of {weights.penalty} and a decay of {weights.decay} were asked for; "
            "neither can be negative."
        )
    updates = _updates(earlier, loaded)

    def penalty(model: nn.Module) -> Float[Tensor, ""]:
        total = torch.zeros((), device=loaded.device)
        for site, A, B in _layers(model):
            for update in updates.get(site, ()):
                total = total + weights.penalty * shared_directions(A, update.A)
            if weights.decay:
                total = total + weights.decay * (A.norm() + B.norm())
        return total

    own = replace(recipe, seed=recipe.seed + len(earlier))  # else all begin with equal directions
    with acting(loaded, updates):
        brick = train_lora(loaded, sequences, own, about, penalty=penalty, report=report)
    lineage = brick.spec.lineage.model_copy(update={
        "method": "O-LoRA, trained with PEFT",
        "arguments": {**brick.spec.lineage.arguments, **asdict(weights)},
        "parents": tuple(one.hash for one in earlier),
    })  # fmt: skip
    return Brick(brick.spec.model_copy(update={"lineage": lineage}), brick.tensors)


def shared_directions(
    one: Float[Tensor, "rank in"], other: Float[Tensor, "other_rank in"]
) -> Float[Tensor, ""]:
    """The sum of the sizes of all inner products of rows; 0 where they read other directions."""
    return (one @ other.to(one).T).abs().sum()


Updates = Mapping[str, Sequence[Add]]


def acting(loaded: LoadedModel, updates: Updates) -> AbstractContextManager[None]:
    """Inside, the model has the updates at full weight, and gradients pass through them."""
    work = {}
    for site, adds in updates.items():
        A = torch.cat([add.A for add in adds])
        B = torch.cat([add.scaling * add.B for add in adds], dim=1)
        A, B = (t.to(loaded.device, loaded.dtype) for t in (A, B))
        work[site] = RowWork(SharedShrink(A.T.unsqueeze(0)), (0, len(A)), B.T.unsqueeze(0))
    return attached(loaded.model, None, work)


def _updates(bricks: Iterable[Brick], loaded: LoadedModel) -> dict[str, list[Add]]:
    updates: dict[str, list[Add]] = {}
    for brick in bricks:
        if brick.spec.form != "lora":
            raise GrowthError(
                f"the earlier brick {brick.spec.name!r} is a {brick.spec.form}, and only LoRAs "
                "have directions to stay away from; leave it out."
            )
        require_fit(brick, loaded.base)
        for effect in effects_of(brick):
            assert isinstance(effect, Add)
            updates.setdefault(effect.site, []).append(effect)
    return updates


def _layers(model: nn.Module) -> Iterable[tuple[str, Tensor, Tensor]]:
    """The site, A and B of each of PEFT's layers."""
    for path, module in model.named_modules():
        held: Any = module
        if hasattr(module, "lora_A") and "default" in held.lora_A:
            site = path.removeprefix(_PEFT_PREFIX)
            yield site, held.lora_A["default"].weight, held.lora_B["default"].weight
