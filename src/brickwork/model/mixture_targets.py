"""MIXTURE_TARGETS: the mixture-of-experts families that dense models become one model of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from brickwork.errors import MergeError, UnknownNameError, listed

# Neurons of the shared expert, all zero, where a family always has one and the recipe has none.
FILLER = 64
_NOT_CARRIED = ("architectures", "model_type", "transformers_version", "layer_types")


@dataclass(frozen=True)
class MixtureSizes:
    """Experts of a layer, those of a token, shared experts, and neurons of each."""

    experts: int
    per_token: int
    shared: int
    width: int


@dataclass(frozen=True)
class MixtureTarget:
    """One row of MIXTURE_TARGETS.

    Attributes:
        model_type: the family that is written.
        label: what mergekit calls it; ``architecture`` may give its beginning.
        kind: its class, as configurations name it.
        dense: the families of models that can be its experts, and its base.
        block: where a layer has its experts and its router.
        names: what an expert's tensors are called there.
        shared: whether every layer has a shared expert, with a gate.
        zero_biases: families without biases of queries, keys and values, where it has them.
        fields: its configuration beyond what it has in common with the base's.
        misfits: what of the base it cannot express.
        source: the paper.
    """

    model_type: str
    label: str
    kind: str
    dense: tuple[str, ...]
    block: str
    names: Mapping[str, str]
    shared: bool
    zero_biases: tuple[str, ...]
    fields: Callable[[PreTrainedConfig, MixtureSizes], dict[str, Any]]
    misfits: Callable[[PreTrainedConfig], list[str]]
    source: str

    def problems(self, config: PreTrainedConfig, sizes: MixtureSizes) -> list[str]:
        """Why the base and its experts cannot be written as this family; empty if they can."""
        if config.model_type not in self.dense:
            return [f"it has the block of {', '.join(self.dense)}, not of {config.model_type}"]
        most = 1 if self.shared else 0
        found = self.misfits(config)
        if sizes.shared > most:
            found.append(f"it has at most {most} shared experts, not {sizes.shared}")
        return found

    def config(self, base: PreTrainedConfig, sizes: MixtureSizes) -> PreTrainedConfig:
        """The mixture's configuration: the base's where both have a setting."""
        made = CONFIG_MAPPING[self.model_type]
        stated = base.to_dict()
        carried = {
            key: stated[key]
            for key in made().to_dict()
            if key in stated and key not in _NOT_CARRIED
        }
        config: PreTrainedConfig = made(
            **carried
            | {"head_dim": head_width(base), "num_experts_per_tok": sizes.per_token}
            | self.fields(base, sizes)
        )
        config.architectures = [self.kind]
        return config


def head_width(config: PreTrainedConfig) -> int:
    """Width of one head of attention."""
    stated: int | None = getattr(config, "head_dim", None)
    return stated or config.hidden_size // config.num_attention_heads


def choose_target(
    config: PreTrainedConfig, sizes: MixtureSizes, name: str | None = None
) -> MixtureTarget:
    """The family of that name, by its beginning, or the first one that fits.

    Raises:
        UnknownNameError: if no family is called so.
        MergeError: if the named family, or every one, misfits.
    """
    asked = [row for row in _ROWS if name is None or row.label.lower().startswith(name.lower())]
    asked = asked or [row for row in _ROWS if row.model_type == name]
    if not asked:
        raise UnknownNameError("mixture-of-experts family", str(name), MIXTURE_TARGETS)
    for row in asked:
        if not row.problems(config, sizes):
            return row
    problems = [
        f"{row.model_type}: {problem}" for row in asked for problem in row.problems(config, sizes)
    ]
    raise MergeError(
        f"a mixture of {config.model_type} models was asked for, and no family that can be "
        f"written fits; name another base, `architecture` or `shared_experts`:{listed(problems)}"
    )


def _mixtral(base: PreTrainedConfig, sizes: MixtureSizes) -> dict[str, Any]:
    return {"num_local_experts": sizes.experts}


def _qwen(base: PreTrainedConfig, sizes: MixtureSizes) -> dict[str, Any]:
    windowed = _kinds(base) == {"sliding_attention"}
    return {
        "num_experts": sizes.experts,
        "moe_intermediate_size": sizes.width,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": windowed,
        "sliding_window": base.sliding_window if windowed else None,
    }


def _qwen2(base: PreTrainedConfig, sizes: MixtureSizes) -> dict[str, Any]:
    own = {
        "shared_expert_intermediate_size": sizes.width if sizes.shared else FILLER,
        "qkv_bias": True,
    }
    seen = _layer_kinds(base)
    windowed = "sliding_attention" in seen
    window = {"use_sliding_window": windowed, "layer_types": seen}
    window["sliding_window"] = base.sliding_window if windowed else None
    return _qwen(base, sizes) | own | window


def _layer_kinds(base: PreTrainedConfig) -> list[str]:
    """What each layer sees: the last tokens of a window, or all."""
    stated: list[str] | None = getattr(base, "layer_types", None)
    kind = "sliding_attention" if getattr(base, "sliding_window", None) else "full_attention"
    return list(stated) if stated else [kind] * base.num_hidden_layers


def _kinds(base: PreTrainedConfig) -> set[str]:
    return set(_layer_kinds(base))


def _plain(base: PreTrainedConfig) -> list[str]:
    found = []
    if getattr(base, "attention_bias", False):
        found.append("its attention has no bias on the output, the base's has")
    return [*found, *_common(base)]


def _common(base: PreTrainedConfig) -> list[str]:
    found = []
    if getattr(base, "mlp_bias", False):
        found.append("its experts have no biases, the base's FFNs have")
    if (base.rope_parameters or {}).get("partial_rotary_factor", 1.0) != 1:
        found.append("it rotates whole heads, the base a part of each")
    return found


def _even(base: PreTrainedConfig) -> list[str]:
    mixed = len(_kinds(base)) > 1
    found = ["all its layers see equally far back, the base's do not"] if mixed else []
    return found + _common(base)


_SAME = {part: part for part in ("gate_proj", "up_proj", "down_proj")}
_ROWS = (
    MixtureTarget(
        "mixtral", "Mixtral", "MixtralForCausalLM", ("llama", "mistral"), "block_sparse_moe",
        {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}, False, (), _mixtral, _plain,
        "Jiang et al. 2024, arXiv:2401.04088",
    ),
    MixtureTarget(
        "qwen2_moe", "Qwen MoE", "Qwen2MoeForCausalLM", ("qwen2", "llama", "mistral"), "mlp",
        _SAME, True, ("llama", "mistral"), _qwen2, _plain, "Yang et al. 2024, arXiv:2407.10671",
    ),
    MixtureTarget(
        "qwen3_moe", "Qwen3 MoE", "Qwen3MoeForCausalLM", ("qwen3",), "mlp", _SAME, False, (),
        _qwen, _even, "Yang et al. 2025, arXiv:2505.09388",
    ),
)  # fmt: skip

MIXTURE_TARGETS: Mapping[str, MixtureTarget] = {row.model_type: row for row in _ROWS}
