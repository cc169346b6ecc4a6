"""What ``brickwork grow branches`` costs, before anything is done."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brickwork.model.parts import CausalModel


def costs(
    outline: "CausalModel", model: str, count: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Parameters, bytes and FLOPs, told from shapes alone.

    Training takes three times what running takes, for each padded token. An ensemble runs every
    branch on every token, whichever take part in a prediction: all have to say whose text it is.

    Args:
        outline: the base.
        model: it, as it was written.
        count: branches.
        options: those of the command.

    Returns:
        Of the base and of the result ``parameters`` and ``flops_per_token``; ``bytes_to_write``,
        and ``training_flops`` at most.

    Raises:
        MergeError: if there can be no mixture of such branches.
    """
    from brickwork.model.cost import token_flops

    size, flops = sum(p.numel() for p in outline.parameters()), token_flops(outline)
    width = next(outline.parameters()).dtype.itemsize
    written, training = count * size, count * options["steps"] * 3 * flops * options["batch"]
    joined = {"parameters": size, "flops_per_token": flops}
    if options["by"] == "ensemble":
        joined = {"parameters": count * size, "flops_per_token": count * flops}
    elif options["by"] == "mix":
        joined = _mixture(outline, model, count, options)
        training += options["tune_steps"] * 3 * joined["flops_per_token"] * options["batch"]
        written += joined["parameters"]
    if options["by"] != "ensemble":
        written += size  # the average
    return {
        "base": {"parameters": size, "flops_per_token": flops},
        "joined": joined,
        "bytes_to_write": written * width,
        "training_flops": training,
    }


def _mixture(
    outline: "CausalModel", model: str, count: int, options: Mapping[str, Any]
) -> dict[str, int]:
    """What a mixture has beyond the base is matrices, all of them read but for idle experts."""
    from brickwork.cli.branches_join import mixture_size
    from brickwork.model.cost import token_flops
    from brickwork.model.ffn import FFN, ffn_of
    from brickwork.model.parts import layers_of

    revision = options["revision"]
    size = mixture_size(f"{model}@{revision}" if revision else model, count, options)
    expert = 0
    for layer in range(layers_of(outline)):
        ffn = ffn_of(outline, layer)
        assert isinstance(ffn, FFN), "mixture_size has refused a base with experts"
        assert ffn.gate is not None, "families that mixtures are of have gated FFNs"
        expert += ffn.gate.numel() + ffn.up.numel() + ffn.down.numel()
    idle = (count - options["per_token"]) * expert
    beyond = size - sum(p.numel() for p in outline.parameters()) - idle
    return {"parameters": size, "flops_per_token": token_flops(outline) + 2 * beyond}
