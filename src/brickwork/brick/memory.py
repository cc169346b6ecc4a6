"""Forms that act on the states of single tokens: added neurons, codebooks, memories of facts."""

from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.effects import Codebook, Effect, Patch


def patch_effects(brick: Brick) -> list[Effect]:
    """T-Patcher: every added neuron answers to one token of a fact."""
    return [
        Patch(site, slots["key"], slots["bias"], slots["value"])
        for site, slots in brick.by_site.items()
    ]


def codebook_effects(brick: Brick) -> list[Effect]:
    """GRACE: a state near a key is replaced by the key's value."""
    return [_codebook(site, slots, replaces=True) for site, slots in brick.by_site.items()]


def memory_effects(brick: Brick) -> list[Effect]:
    """SERAC: where the scope holds, the value of the nearest fact is added."""
    return [_codebook(site, slots, replaces=False) for site, slots in brick.by_site.items()]


def codebook_problems(brick: Brick) -> list[str]:
    """Radii that are no distances."""
    return [
        f"{site}/radius: holds {slots['radius'].min().item():.3g}, but a radius is at least 0"
        for site, slots in brick.by_site.items()
        if bool((slots["radius"] < 0).any())
    ]


def _codebook(site: str, slots: dict[str, Tensor], *, replaces: bool) -> Codebook:
    return Codebook(
        site, slots["key"], slots["value"], slots["radius"], slots.get("projection"), replaces
    )
