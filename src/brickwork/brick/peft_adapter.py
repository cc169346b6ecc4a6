"""What the PEFT adapters of all forms share: tensor names, and what is refused."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from brickwork.errors import BrickFormatError

Tensors = Mapping[str, Tensor]
Config = Mapping[str, Any]
PREFIX = "base_model.model."

# Fields of any adapter that do not change what it computes.
_HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "runtime_config", "task_type",
})  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """What a PEFT adapter holds, in Brickwork's words."""

    form: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]


def refuse_more(config: Config, form: str, known: frozenset[str]) -> None:
    """Refuse a configuration that asks for something that the form does not have.

    A field that nobody here knows is refused too, unless it is empty: PEFT grows by fields, and
    one that is not understood may change what the adapter computes.
    """
    asked = sorted(
        name for name, value in config.items() if value and name not in known | _HARMLESS
    )
    if asked:
        raise BrickFormatError(
            f"the adapter uses {', '.join(asked)}, which a plain {form} brick would lose; merge it "
            "into its base, train it without, or, if it does not change what the adapter "
            "computes, delete it from adapter_config.json."
        )


def take(tensors: Tensors, pattern: str) -> list[tuple[re.Match[str], Tensor]]:
    """The tensors with the match of the pattern in their names; all must match.

    Raises:
        BrickFormatError: if there are none, or one has another name.
    """
    names = sorted(tensors)
    matches = [(re.fullmatch(re.escape(PREFIX) + pattern, name), tensors[name]) for name in names]
    strange = [name for name, (match, _) in zip(names, matches, strict=True) if not match]
    if strange:
        raise BrickFormatError(
            f"the adapter holds tensors that this form does not have: {', '.join(strange[:5])}"
            f"{f' and {len(strange) - 5} more' if len(strange) > 5 else ''}; they would be lost."
        )
    if not matches:
        raise BrickFormatError("the adapter holds no tensors.")
    return [(match, tensor) for match, tensor in matches if match]
