"""Bricks as PEFT adapters: the configuration and the tensor names that PEFT writes and reads.

Only what is fully understood is taken over: every tensor must have found its place, and a
configuration that asks for more (DoRA, trained embeddings, retrained modules) is refused with the
reason. PEFT itself is never imported here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from brickwork.brick import peft_ia3, peft_lora, peft_soft
from brickwork.brick.base import Base
from brickwork.brick.brick import Brick
from brickwork.brick.forms import find_form, load_target
from brickwork.brick.peft_adapter import PREFIX, Config, Decoded, Tensors
from brickwork.brick.peft_targets import read_targets
from brickwork.brick.spec import BrickSpec, explain
from brickwork.errors import BrickFormatError

__all__ = [
    "PREFIX", "Config", "Decoded", "Tensors", "decode_for", "from_peft", "kept_problems",
    "sites_of_base", "to_peft", "untaught",
]  # fmt: skip


@dataclass(frozen=True)
class _Codec:
    encode: Callable[[Brick], tuple[dict[str, Any], dict[str, Tensor]]]
    decode: Callable[[Config, Tensors, Sequence[str], str], Decoded]
    has_targets: bool


_CODECS: Mapping[str, _Codec] = {
    "LORA": _Codec(peft_lora.encode, peft_lora.decode, True),
    "IA3": _Codec(peft_ia3.encode, peft_ia3.decode, True),
    "PROMPT_TUNING": _Codec(peft_soft.encode_prompt, peft_soft.decode_prompt, False),
    "PREFIX_TUNING": _Codec(peft_soft.encode_prefix, peft_soft.decode_prefix, False),
}


def to_peft(brick: Brick) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The adapter configuration and tensors of a brick whose form PEFT has.

    The configuration of an imported adapter is written as it was.
    """
    config, tensors = _codec(find_form(brick.spec.form).peft).encode(brick)
    if brick.spec.peft is not None:
        return dict(brick.spec.peft), tensors
    common = {"task_type": "CAUSAL_LM", "inference_mode": True}
    return {**common, "base_model_name_or_path": brick.spec.base.name or None, **config}, tensors


def from_peft(
    config: Config, tensors: Tensors, attention: Sequence[str], embedding: str
) -> Decoded:
    """The brick content of a PEFT adapter.

    Args:
        config: the parsed ``adapter_config.json``.
        tensors: the tensors as PEFT names them.
        attention: module paths of the base's attentions in order (a prefix names none).
        embedding: module path of the base's input embedding (a soft prompt names none).

    Raises:
        BrickFormatError: if the type is not supported, or holds what would be lost.
    """
    return _codec(config.get("peft_type")).decode(config, tensors, attention, embedding)


def decode_for(spec: BrickSpec, config: Config, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of a brick folder that is also a PEFT folder, by the sites of its spec.

    Raises:
        BrickFormatError: if the configuration says otherwise than the spec.
    """
    decoded = from_peft(config, tensors, spec.sites, spec.sites[0] if spec.sites else "")
    form = find_form(spec.form)
    options = load_target(form.options)
    try:
        wanted = options.model_validate(spec.options)
    except ValidationError as error:
        raise BrickFormatError(f"options: {explain(error)}") from None
    if decoded.form != form.name or options.model_validate(decoded.options) != wanted:
        raise BrickFormatError(
            f"the brick's spec ({spec.form}, {spec.options}) and its PEFT configuration "
            f"({decoded.form}, {decoded.options}) contradict each other."
        )
    return decoded.tensors


def kept_problems(brick: Brick) -> list[str]:
    """Why the PEFT configuration that the spec keeps does not describe this (any more)."""
    if brick.spec.peft is None:
        return []
    if not find_form(brick.spec.form).peft:
        return [f"the spec keeps a PEFT configuration, but PEFT has no {brick.spec.form}"]
    try:
        own = set(decode_for(brick.spec, *to_peft(brick))) == set(brick.tensors)
    except BrickFormatError as error:
        return [f"the PEFT configuration that it keeps is not its own: {error} Set 'peft' to None."]
    return [] if own else ["the PEFT configuration that it keeps is for other tensors"]


def untaught(brick: Brick, base: Base) -> list[str]:
    """Modules that the kept PEFT configuration targets, but that the brick has no tensors for.

    PEFT would put an adapter with fresh weights there. An adapter that was made for a base with
    fewer layers shows itself so.
    """
    form = find_form(brick.spec.form)
    if brick.spec.peft is None or not form.peft or not _codec(form.peft).has_targets:
        return []
    targets = read_targets(brick.spec.peft)
    return [
        site.path
        for site in base.of_kind("linear")
        if site.path not in brick.by_site
        and targets.include(site.path)
        and not (targets.all_linear and site.address == "unembed")
    ]


def sites_of_base(base: Base) -> tuple[list[str], str]:
    """What ``from_peft`` has to know of a base: its attentions and its input embedding."""
    embeddings = base.of_kind("embedding")
    return [s.path for s in base.of_kind("attention")], embeddings[0].path if embeddings else ""


def _codec(kind: object) -> _Codec:
    if not isinstance(kind, str) or kind not in _CODECS:
        raise BrickFormatError(
            f"a PEFT adapter of type {kind!r} is not supported; supported: "
            f"{', '.join(sorted(_CODECS))}."
        )
    return _CODECS[kind]
