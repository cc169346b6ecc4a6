"""Bricks of whole layers: blocks left out, and blocks after which a token may leave."""

from collections.abc import Sequence

import torch

from brickwork.brick.brick import Brick
from brickwork.brick.spec import BrickSpec, Function, Lineage
from brickwork.errors import ConfigurationError
from brickwork.model.load import LoadedModel


def skip_brick(loaded: LoadedModel, layers: Sequence[int], name: str = "") -> Brick:
    """A brick under which the model runs without these blocks.

    Raises:
        ConfigurationError: if the model has no such block, or none would be left.
    """
    sites = _blocks(loaded, layers)
    if len(sites) == len(loaded.base.of_kind("block")):
        raise ConfigurationError(
            f"all {len(sites)} blocks were to be skipped; leave at least one of them."
        )
    text = f"Leaves out {_listing(layers)}."
    spec = _spec(loaded, "skip", name or f"skip-{_name(layers)}", tuple(sites), text)
    return Brick(spec, {f"{path}/share": torch.ones(1) for path in sites})


def exit_brick(
    loaded: LoadedModel, layers: Sequence[int], confidence: float, name: str = ""
) -> Brick:
    """A brick under which a token may leave after these blocks.

    Args:
        loaded: the base.
        layers: blocks after which the next token is looked at.
        confidence: the probability, from 0 to 1, that the likeliest next token must have.

    Raises:
        ConfigurationError: if the model has no such block, or the confidence is no probability.
    """
    if not 0 <= confidence <= 1:
        raise ConfigurationError(
            f"an exit at confidence {confidence} was asked for; a probability is from 0 to 1."
        )
    sites = _blocks(loaded, layers)
    text = f"Lets sure tokens leave after {_listing(layers)}."
    arguments = {"confidence": confidence}
    spec = _spec(loaded, "exit", name or f"exit-{_name(layers)}", tuple(sites), text, arguments)
    return Brick(spec, {f"{path}/confidence": torch.tensor([confidence]) for path in sites})


def _blocks(loaded: LoadedModel, layers: Sequence[int]) -> list[str]:
    known = {site.layer: site.path for site in loaded.base.of_kind("block")}
    missing = [layer for layer in layers if layer not in known]
    if missing or not layers:
        what = f"layer {missing[0]}" if missing else "no layer"
        raise ConfigurationError(
            f"{what} was named; this model has the layers 0 to {len(known) - 1}."
            if known
            else f"{what} was named, but the blocks of a {loaded.model.config.model_type} model "
            "are not known; describe the family in a row first."
        )
    return [known[layer] for layer in sorted(set(layers))]


def _spec(
    loaded: LoadedModel,
    form: str,
    name: str,
    sites: tuple[str, ...],
    text: str,
    arguments: dict[str, float] | None = None,
) -> BrickSpec:
    return BrickSpec(
        name=name,
        form=form,
        base=loaded.base.fingerprint,
        sites=sites,
        origin="emergent",
        granularity="layer",
        function=Function(text=text),
        lineage=Lineage(method=form, arguments=dict(arguments or {})),
    )


def _listing(layers: Sequence[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, sorted(layers)))}"


def _name(layers: Sequence[int]) -> str:
    return "-".join(map(str, sorted(layers)))[:60].rstrip("-")
