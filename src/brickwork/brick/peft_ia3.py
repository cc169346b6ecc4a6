"""IA3 as PEFT writes it (Liu et al. 2022, arXiv:2205.05638)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.peft_adapter import PREFIX, Config, Decoded, Tensors, refuse_more, take
from brickwork.brick.peft_targets import match_pattern, read_targets
from brickwork.errors import BrickFormatError

_KNOWN = frozenset({
    "target_modules", "exclude_modules", "feedforward_modules", "fan_in_fan_out",
    "init_ia3_weights",
})  # fmt: skip


def encode(brick: Brick) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A configuration that names every site, and the factors as rows or columns."""
    tensors = {
        f"{PREFIX}{site}.ia3_l": factor[None] if slot == "factor_in" else factor[:, None]
        for site, slots in brick.by_site.items()
        for slot, factor in slots.items()
    }
    return {
        "peft_type": "IA3",
        "target_modules": list(brick.by_site),
        "feedforward_modules": [s for s, slots in brick.by_site.items() if "factor_in" in slots],
    }, tensors


def decode(config: Config, tensors: Tensors, attention: Sequence[str], embedding: str) -> Decoded:
    """The brick content of an IA3 adapter; see ``brickwork.brick.peft.from_peft``."""
    refuse_more(config, "IA3", _KNOWN)
    targets, named = read_targets(config), {}
    for match, factor in take(tensors, r"(?P<site>.+)\.ia3_l"):
        site = match["site"]
        if not targets.include(site):
            raise BrickFormatError(
                f"the adapter holds a tensor at {site!r}, which its configuration does not target."
            )
        on_input = _is_feedforward(config.get("feedforward_modules"), site)
        if factor.dim() != 2 or factor.shape[0 if on_input else 1] != 1:
            raise BrickFormatError(
                f"the adapter's configuration says that {site!r} scales its "
                f"{'inputs' if on_input else 'outputs'}, its tensor has shape "
                f"{list(factor.shape)}."
            )
        named[f"{site}/{'factor_in' if on_input else 'factor_out'}"] = factor.reshape(-1)
    return Decoded("ia3", {}, named)


def _is_feedforward(wanted: object, site: str) -> bool:
    """PEFT's ``_check_target_module_feedforward``: here the end need not start at a dot."""
    if isinstance(wanted, str):
        return match_pattern(wanted, site)
    if isinstance(wanted, list) and all(isinstance(name, str) for name in wanted):
        return any(site.endswith(name) for name in wanted)
    raise BrickFormatError(
        f"feedforward_modules is {wanted!r} in the adapter's configuration; write a list of the "
        "modules whose inputs are scaled, empty if there are none."
    )
