"""LoRA as PEFT writes it (Hu et al. 2021, arXiv:2106.09685; rsLoRA, arXiv:2312.03732)."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.lora import LoraOptions
from brickwork.brick.peft_adapter import PREFIX, Config, Decoded, Tensors, refuse_more, take
from brickwork.brick.peft_targets import read_targets
from brickwork.brick.spec import Finite, explain
from brickwork.errors import BrickFormatError

# Fields that a plain LoRA has, or that act while it is trained only.
_KNOWN = frozenset({
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout",
    "fan_in_fan_out", "megatron_core", "qalora_group_size", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config",
})  # fmt: skip
# The other initialisations change the base's weights too, and PEFT does so again on loading.
_KEEPS_BASE = (True, False, None, "gaussian", "orthogonal", "eva")


class _Scaling(BaseModel):
    r: int = 8
    lora_alpha: Finite = 8
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, Finite] | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True


def encode(brick: Brick) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A configuration that names every site, rank and alpha, and the tensors."""
    options = LoraOptions.model_validate(brick.spec.options)
    ranks = {site: slots["A"].shape[0] for site, slots in brick.by_site.items()}
    tensors = {
        f"{PREFIX}{site}.lora_{slot}.weight": tensor
        for site, slots in brick.by_site.items()
        for slot, tensor in slots.items()
    }
    rank = Counter(ranks.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _whole(options.alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": options.rslora,
        "target_modules": list(ranks),
        "rank_pattern": {f"^{site}": r for site, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{site}": _whole(alpha) for site, alpha in options.alphas.items()},
    }, tensors


def decode(config: Config, tensors: Tensors, attention: Sequence[str], embedding: str) -> Decoded:
    """The brick content of a LoRA adapter; see ``brickwork.brick.peft.from_peft``."""
    refuse_more(config, "LoRA", _KNOWN)
    scaling = _read_scaling(config)
    found = take(tensors, r"(?P<site>.+)\.lora_(?P<slot>[AB])\.weight")
    named = {f"{match['site']}/{match['slot']}": tensor for match, tensor in found}
    ranks = {m["site"]: t.shape[0] for m, t in found if m["slot"] == "A" and t.dim() == 2}
    targets = read_targets(config)
    for site, rank in sorted(ranks.items()):
        said = _pattern_value(scaling.rank_pattern, site, scaling.r)
        if said != rank:
            raise BrickFormatError(
                f"the adapter's configuration says rank {said} at {site!r}, its tensor has rank "
                f"{rank}; the scaling would be wrong."
            )
        if not targets.include(site):
            raise BrickFormatError(
                f"the adapter holds a tensor at {site!r}, which its configuration does not target."
            )
    alphas = {s: _pattern_value(scaling.alpha_pattern, s, scaling.lora_alpha) for s in ranks}
    options = LoraOptions(alpha=scaling.lora_alpha, rslora=scaling.use_rslora, alphas=alphas)
    return Decoded("lora", options.model_dump(), named)


def _read_scaling(config: Config) -> _Scaling:
    try:
        scaling = _Scaling.model_validate(dict(config))
    except ValidationError as error:
        raise BrickFormatError(f"the LoRA configuration is not valid: {explain(error)}.") from None
    if scaling.bias != "none":
        raise BrickFormatError(
            f"the adapter was trained with bias {scaling.bias!r}, which a plain LoRA brick would "
            "lose; train it without, or make a second brick of form 'bias'."
        )
    if scaling.init_lora_weights not in _KEEPS_BASE:
        raise BrickFormatError(
            f"the adapter was initialised by {scaling.init_lora_weights!r}, which changes the "
            "base's weights as well; save it again with PEFT's "
            "path_initial_model_for_weight_conversion, which makes it a plain LoRA."
        )
    return scaling


def _pattern_value(patterns: Mapping[str, float] | None, site: str, default: float) -> float:
    """PEFT's ``get_pattern_key``: the first pattern that matches the path, or the end of it."""
    for pattern, value in (patterns or {}).items():
        if not re.fullmatch(r"\^?(?:[A-Za-z0-9_.-]|\\\.)+", pattern):
            raise BrickFormatError(
                f"rank_pattern or alpha_pattern {pattern[:200]!r} is a regular expression; only "
                "module names are supported: save the adapter with the names written out."
            )
        if re.match(rf"(.*\.)?({pattern})$", site):
            return value
    return default


def _whole(number: float) -> float | int:
    return int(number) if number.is_integer() else number
