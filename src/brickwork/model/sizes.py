"""Models of other sizes: their configurations, their outlines, and the models themselves."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from brickwork.errors import ModelError
from brickwork.model.config import transformers_at
from brickwork.model.load import OWN_CODE_ONLY, LoadedModel, wrap_model
from brickwork.model.parts import ffn_row_of

# Where a family's configuration has the inner width of its FFNs, and of its experts.
WIDTH_KEY = "intermediate_size"
WIDTH_KEYS: Mapping[str, str] = {"gpt2": "n_inner", "opt": "ffn_dim"}
EXPERT_WIDTH_KEYS: Mapping[str, str] = {"qwen3_moe": "moe_intermediate_size"}


def config_with(config: PreTrainedConfig, entries: Mapping[str, object]) -> PreTrainedConfig:
    """A copy of a configuration with some entries changed, checked by its own class.

    Raises:
        ModelError: if the class refuses the entries.
    """
    changed = copy.deepcopy(config)
    with transformers_at(f"make a {config.model_type} of {dict(entries)}"):
        changed.get_text_config().update(dict(entries))
        made: PreTrainedConfig = type(changed).from_dict(changed.to_dict())
    return made


def outline_of(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The modules and shapes of a configuration, without weights.

    Raises:
        ModelError: if transformers cannot build it.
    """
    with torch.device("meta"), transformers_at(f"build a {config.model_type} model"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, **OWN_CODE_ONLY
        )
    return cast(PreTrainedModel, model.eval())


def model_of(
    config: PreTrainedConfig,
    tensors: Mapping[str, Tensor],
    like: LoadedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> LoadedModel:
    """A model of these parameters, ready to evaluate; it takes the tensors, without a copy.

    Args:
        config: of the model.
        tensors: every parameter by its path, tied ones once.
        like: whose device, name and settings of generation it has.
        tokenizer: by default that of ``like``.

    Raises:
        ModelError: if transformers cannot build it.
    """
    build = transformers_at(f"build a {config.model_type} model")
    with torch.random.fork_rng(devices=[]), no_init_weights(), build:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=like.dtype, **OWN_CODE_ONLY)
    model.load_state_dict(dict(tensors), strict=False, assign=True)
    model.tie_weights()
    strays = {path for path, _ in model.named_parameters()} ^ set(tensors)
    assert not strays, f"{sorted(strays)[:3]} are not on both sides"
    model.to(like.device)
    if like.model.can_generate():
        model.generation_config = copy.deepcopy(like.model.generation_config)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return wrap_model(model.eval(), tokenizer or like.tokenizer, like.name)


def layer_entries(model: PreTrainedModel, sources: Sequence[int]) -> dict[str, object]:
    """The entries of the configuration for a model that has these layers, in this order.

    Raises:
        ModelError: if a layer computes something else in another place.
    """
    config = model.config.get_text_config()
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise ModelError(
            f"other layers were asked for of a {config.model_type} model that scales attention by "
            "a layer's number (scale_attn_by_inverse_layer_idx); change its neurons instead."
        )
    entries: dict[str, object] = {"num_hidden_layers": len(sources)}
    if getattr(config, "layer_types", None):
        entries["layer_types"] = [config.layer_types[n] for n in sources]
    if hasattr(config, "mlp_only_layers"):
        forms = [ffn_row_of(model, n).form for n in sources]
        entries["mlp_only_layers"] = [n for n, form in enumerate(forms) if form != "moe_gated"]
        entries["decoder_sparse_step"] = 1
    return entries
