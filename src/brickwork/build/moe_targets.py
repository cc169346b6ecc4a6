"""MOE_TARGETS: the mixture-of-experts families that a dense model can be written as.

A dense FFN is the sum of its groups, each with weight 1. No target says "weight 1": a target's
routing gives a weight that falls out of the router's logits. With logits near zero it is the same
for every expert (1 / experts under a softmax over all, 1 / top_k if the chosen are normalised, 1/2
under a sigmoid), and the inverse of that constant is put into the experts.

Checked against the code of transformers 5.23 and left out: ``olmoe`` (norms before the FFN, and
queries normed over all heads: no dense family has both), ``granitemoe`` and ``granitemoeshared``
(exact for one ``top_k`` alone, as ``mixtral``, and experts are stacked on disk), ``dots1`` (as
``glm4_moe``, with a norm of queries and keys always).
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import CONFIG_MAPPING, PreTrainedConfig

from brickwork.errors import ConfigurationError, ModelError, UnknownNameError, listed
from brickwork.model.heads import heads_of, layer_config

# Zero neurons where a family always has a shared expert and the partition has no shared group.
# vLLM cannot load one of no neurons, and shares these out over as many as 64 devices.
FILLER = 64


@dataclass(frozen=True)
class MoeSizes:
    """How large the mixture is, the same in every layer.

    Attributes:
        experts: groups that are routed to.
        width: neurons of each.
        shared: neurons that always work.
        top_k: experts of a token.
    """

    experts: int
    width: int
    shared: int
    top_k: int


@dataclass(frozen=True)
class MoeTarget:
    """One row of MOE_TARGETS.

    Attributes:
        model_type: the family that is written.
        dense: the families that have its block.
        shared: whether it has a shared expert: ``never``, ``always`` (a partition must have a
            shared group), or ``filled`` (zero neurons where there is no shared group).
        routing: how it weighs the experts of a token, in words.
        any_top_k: whether another ``top_k`` than the exported one also gives weight 1.
        scale: what the output of an expert is multiplied by, so that its weight becomes 1.
        shared_name: what its shared expert is called, empty if it has none.
        shared_scale: what the output of the shared expert is multiplied by.
        shared_gate: whether a gate multiplies the shared expert.
        config: the configuration beyond what both families have.
        misfits: what of the dense model it cannot express.
        server: what vLLM cannot do with the model; empty if nothing is known.
        source: the paper, and where its routing is documented.
    """

    model_type: str
    dense: tuple[str, ...]
    shared: Literal["never", "always", "filled"]
    routing: str
    any_top_k: bool
    scale: Callable[[MoeSizes], float]
    shared_name: str
    shared_scale: float
    shared_gate: bool
    config: Callable[[PreTrainedConfig, MoeSizes], dict[str, Any]]
    misfits: Callable[[PreTrainedConfig, MoeSizes], list[str]]
    server: Callable[[PreTrainedConfig], list[str]]
    source: str

    def problems(self, config: PreTrainedConfig, sizes: MoeSizes) -> list[str]:
        """Why the model cannot be written as this family; empty if it can."""
        if config.model_type not in self.dense:
            return [f"it has the block of {', '.join(self.dense)}, not of {config.model_type}"]
        found = _varied(config) + self.misfits(config, sizes)
        if sizes.shared and self.shared == "never":
            found.append(f"it has no shared expert, and {sizes.shared} neurons are shared")
        if not sizes.shared and self.shared == "always":
            found.append("it always has a shared expert, and the partition has no shared group")
        return found

    def shared_width(self, sizes: MoeSizes) -> int:
        """Neurons of the shared expert, filling included; 0 if there is none."""
        return sizes.shared or (FILLER if self.shared == "filled" else 0)


# The same words in all families; ``head_dim`` and the rotary parameters are added below.
_CARRIED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache",
    "tie_word_embeddings", "attention_dropout", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip


def moe_config(target: MoeTarget, config: PreTrainedConfig, sizes: MoeSizes) -> PreTrainedConfig:
    """The configuration of the mixture; whatever both families know is carried over."""
    heads = heads_of(config, 0)
    fields: dict[str, Any] = {name: getattr(config, name) for name in _CARRIED}
    fields |= {
        "num_key_value_heads": heads.kv_heads,
        "head_dim": heads.head_dim,
        "rope_parameters": copy.deepcopy(config.rope_parameters),
        "num_experts_per_tok": sizes.top_k,
    }
    made: PreTrainedConfig = CONFIG_MAPPING[target.model_type](
        **fields | target.config(config, sizes)
    )
    return made


def windows(config: PreTrainedConfig) -> list[int | None]:
    """How many tokens back each layer sees, None if all, as the family's own code reads it."""
    layers = config.num_hidden_layers
    window: int | None = getattr(config, "sliding_window", None)
    if config.model_type in {"mistral", "phi3"}:
        return [window] * layers
    if config.model_type in {"qwen2", "qwen3"}:
        return [window if kind == "sliding_attention" else None for kind in config.layer_types]
    return [None] * layers


def _varied(config: PreTrainedConfig) -> list[str]:
    """Layers that are not all of one shape; only a configuration for each layer can say that."""
    first = layer_config(config, 0)
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    return [
        f"layer {layer} has {name} {getattr(own, name, None)}, layer 0 {getattr(first, name, None)}"
        for layer in range(config.num_hidden_layers)
        for name in names
        if getattr(own := layer_config(config, layer), name, None) != getattr(first, name, None)
    ]


def _rotary_misfits(config: PreTrainedConfig, *, partial: bool) -> list[str]:
    rope: dict[str, Any] = config.rope_parameters
    share, kind, found = rope.get("partial_rotary_factor", 1.0), rope.get("rope_type"), []
    if share != 1 and not partial:
        found.append(f"it rotates whole heads, the model {share:.0%} of each")
    if kind == "longrope":
        found.append(
            "the rotary frequencies (longrope) change after a number of tokens, and only the "
            "model's own code starts its cache anew there"
        )
    return found


def _uniform_window(config: PreTrainedConfig) -> list[str]:
    seen = set(windows(config))
    return [] if len(seen) == 1 else ["all its layers see equally far back, the model's do not"]


def _no_window(config: PreTrainedConfig) -> list[str]:
    seen = {window for window in windows(config) if window is not None}
    return [f"its layers see all tokens, the model's only {min(seen)}"] if seen else []


def _window_fields(config: PreTrainedConfig) -> dict[str, Any]:
    seen = [window for window in windows(config) if window is not None]
    return {"use_sliding_window": bool(seen), "sliding_window": seen[0] if seen else None}


def _biases(config: PreTrainedConfig) -> list[str]:
    # Qwen 2 has biases for queries, keys and values without one for the output; it has no flag.
    attention, ffn = (getattr(config, f"{part}_bias", False) for part in ("attention", "mlp"))
    found = ["its attention has no bias on the output, the model's has"] if attention else []
    return [*found, "its experts have no biases, the model's FFNs have"] if ffn else found


def _qwen2_moe(config: PreTrainedConfig, sizes: MoeSizes) -> dict[str, Any]:
    kinds = [
        "full_attention" if window is None else "sliding_attention" for window in windows(config)
    ]
    return _window_fields(config) | {
        "num_experts": sizes.experts,
        "moe_intermediate_size": sizes.width,
        "shared_expert_intermediate_size": sizes.shared or FILLER,
        "intermediate_size": config.intermediate_size,
        "norm_topk_prob": False,
        "qkv_bias": True,  # zero where the model has none: some servers take them for granted
        "layer_types": kinds,
    }


def _qwen3_moe(config: PreTrainedConfig, sizes: MoeSizes) -> dict[str, Any]:
    return _window_fields(config) | {
        "num_experts": sizes.experts,
        "moe_intermediate_size": sizes.width,
        "intermediate_size": config.intermediate_size,
        "norm_topk_prob": False,
        "attention_bias": config.attention_bias,
    }


def _flex_olmo(config: PreTrainedConfig, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "num_experts": sizes.experts,
        "intermediate_size": sizes.width,
        "norm_topk_prob": False,
        "attention_bias": config.attention_bias,
    }


def _glm4_moe(config: PreTrainedConfig, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "n_routed_experts": sizes.experts,
        "n_shared_experts": sizes.shared // sizes.width,
        "moe_intermediate_size": sizes.width,
        "intermediate_size": config.intermediate_size,
        "norm_topk_prob": False,
        "routed_scaling_factor": 2.0,  # undoes the sigmoid's 1/2, so experts keep their weights
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "num_mtp_layers": 0,
        "use_qk_norm": config.model_type == "qwen3",
        "attention_bias": config.model_type == "qwen2",
        "partial_rotary_factor": config.rope_parameters.get("partial_rotary_factor", 1.0),
    }


def _mixtral(config: PreTrainedConfig, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "num_local_experts": sizes.experts,
        "intermediate_size": sizes.width,
        "sliding_window": windows(config)[0],
    }


def _glm4_misfits(config: PreTrainedConfig, sizes: MoeSizes) -> list[str]:
    found = _rotary_misfits(config, partial=True) + _no_window(config) + _biases(config)
    if sizes.shared % sizes.width:
        found.append(
            f"its shared expert is as wide as some experts together, but {sizes.shared} is no "
            f"multiple of {sizes.width}"
        )
    if sizes.experts < 2:
        found.append("it has at least 2 experts")
    return found


def _no_own_heads(config: PreTrainedConfig) -> list[str]:
    heads = heads_of(config, 0)
    usual = config.hidden_size // heads.heads
    if heads.head_dim == usual:
        return []
    return [f"heads are read as {usual} wide (hidden size / heads), these are {heads.head_dim}"]


def _mixed_windows(config: PreTrainedConfig) -> list[str]:
    mixed = len(set(windows(config))) > 1
    return ["layers are taken to see equally far back, these do not"] if mixed else []


def _only_silu(config: PreTrainedConfig) -> list[str]:
    act = config.hidden_act
    return [] if act == "silu" else [f"experts are computed with silu alone, these have {act}"]


def _no_attention_bias(config: PreTrainedConfig) -> list[str]:
    biased = getattr(config, "attention_bias", False)
    return ["biases of attention are not all read"] if biased else []


_ROWS = (
    MoeTarget(
        "qwen2_moe", ("llama", "mistral", "qwen2", "phi3"), "filled",
        "softmax over all experts, not normalised over the chosen; the shared expert is multiplied "
        "by the sigmoid of a gate, 1/2 here",
        True, lambda sizes: sizes.experts, "shared_expert", 2.0, True, _qwen2_moe,
        lambda config, _sizes: _rotary_misfits(config, partial=False) + _biases(config),
        lambda config: _no_own_heads(config) + _mixed_windows(config) + _only_silu(config),
        "Yang et al. 2024, arXiv:2407.10671",
    ),
    MoeTarget(
        "qwen3_moe", ("qwen3",), "never",
        "softmax over all experts, not normalised over the chosen",
        True, lambda sizes: sizes.experts, "", 1.0, False, _qwen3_moe,
        lambda config, _sizes: _rotary_misfits(config, partial=False) + _uniform_window(config),
        lambda config: _no_attention_bias(config) + _only_silu(config),
        "Yang et al. 2025, arXiv:2505.09388",
    ),
    MoeTarget(
        "flex_olmo", ("olmo2",), "never",
        "softmax over all experts, not normalised over the chosen; the router reads the residual "
        "stream without a norm",
        True, lambda sizes: sizes.experts, "", 1.0, False, _flex_olmo,
        lambda config, _sizes: _rotary_misfits(config, partial=False),
        lambda config: (
            _no_own_heads(config) + _no_attention_bias(config) + _only_silu(config)
        ),
        "Shi et al. 2025, arXiv:2507.07024",
    ),
    MoeTarget(
        "glm4_moe", ("llama", "mistral", "qwen2", "qwen3", "phi3"), "always",
        "sigmoid of each expert's logit, times a constant; a correction bias, zero here, takes "
        "part in the choice alone",
        True, lambda _sizes: 1.0, "shared_experts", 1.0, False, _glm4_moe, _glm4_misfits,
        _only_silu,
        "GLM-4.5 Team 2025, arXiv:2508.06471",
    ),
    MoeTarget(
        "mixtral", ("llama", "mistral", "phi3"), "never",
        "softmax over the chosen experts: weights add up to 1, so an expert's weight is right "
        "for the exported top_k alone",
        False, lambda sizes: sizes.top_k, "", 1.0, False, _mixtral,
        lambda config, _sizes: _rotary_misfits(config, partial=False) + _biases(config),
        _only_silu, "Jiang et al. 2024, arXiv:2401.04088",
    ),
)  # fmt: skip

MOE_TARGETS: Mapping[str, MoeTarget] = {row.model_type: row for row in _ROWS}

# Families that a row describes and no target fits.
_NO_TARGET: Mapping[str, str] = {
    "gemma2": "norms stand before and after its FFN, and its logits are capped",
    "gemma3_text": "norms stand before and after its FFN",
    "gpt2": "its FFN has no gate and its linear maps have biases, which no target's experts have",
    "gpt_neox": "its FFN has no gate and its linear maps have biases, which no target's experts "
    "have",
    "opt": "its FFN has no gate and its linear maps have biases, which no target's experts have",
}


def choose_target(config: PreTrainedConfig, sizes: MoeSizes, name: str | None = None) -> MoeTarget:
    """The target of that name, or the first row that fits the model and its partition.

    Raises:
        UnknownNameError: if there is no target of that name.
        ModelError: if no target has the block of the model's family.
        ConfigurationError: if the named target, or every target of the family, misfits.
    """
    family = config.model_type
    if name is not None and name not in MOE_TARGETS:
        raise UnknownNameError("mixture-of-experts family", name, MOE_TARGETS)
    able = [row for row in _ROWS if family in row.dense]
    if not able:
        dense = sorted({known for row in _ROWS for known in row.dense})
        reason = _NO_TARGET.get(family, "no target has its block")
        raise ModelError(
            f"a {family} model cannot be written as a mixture of experts: {reason}. Families that "
            f"can: {', '.join(dense)}. Run this one with a router brick instead."
        )
    fitting = [row for row in able if not row.problems(config, sizes)]
    if name is None and fitting:
        return fitting[0]
    asked = able if name is None else [MOE_TARGETS[name]]
    if name is not None and asked[0] in fitting:
        return asked[0]
    problems = [
        f"{row.model_type}: {problem}" for row in asked for problem in row.problems(config, sizes)
    ]
    others = ", ".join(row.model_type for row in fitting)
    advice = f"choose {others}" if fitting else "make a partition that one of these can hold"
    raise ConfigurationError(
        f"this {family} model cannot be written as {' or '.join(r.model_type for r in asked)}; "
        f"{advice}:{listed(problems)}"
    )
