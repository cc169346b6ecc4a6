"""Tensors of a model under the names, and in the shapes, that its checkpoint has them."""

from collections.abc import Mapping

from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from brickwork.model.config import transformers_at
from brickwork.model.parts import CausalModel


def as_saved(model: CausalModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a checkpoint would hold in place of these tensors, which belong to parameters by name.

    Mixtures keep their experts stacked in memory and apart on disk; other families keep all as it
    is. What comes back may be views.

    Raises:
        ModelError: if transformers cannot turn them back.
    """
    with transformers_at("name the parameters as a checkpoint does"):
        found: dict[str, Tensor] = revert_weight_conversion(model, dict(tensors))
    return found
