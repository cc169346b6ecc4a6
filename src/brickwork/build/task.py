"""Build a task brick: a LoRA trained with PEFT on prompts and responses."""

from collections.abc import Sequence

from brickwork.brick.brick import Brick
from brickwork.model.fit import Report
from brickwork.model.load import LoadedModel
from brickwork.model.lora import About, LoraRecipe, train_lora
from brickwork.model.train import Encoded

__all__ = ["About", "LoraRecipe", "build_task"]


def build_task(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    recipe: LoraRecipe,
    about: About,
    report: Report = lambda step, steps, loss: None,
) -> Brick:
    """A LoRA brick trained on the responses of ``sequences``, its tensors in the base's dtype.

    The base is not changed: PEFT's layers are put in for the training and taken out again.

    Args:
        loaded: the base, in the dtype to train in.
        sequences: prompts with responses.
        recipe: form and training of the LoRA.
        about: what the brick says of itself.
        report: called after each step with the step, the number of steps, and the loss.

    Raises:
        DataError: if there is nothing to train on.
    """
    return train_lora(loaded, sequences, recipe, about, report=report)
