"""Forms that stand before the context: soft prompts and key-value prefixes."""

from brickwork.brick.brick import Brick
from brickwork.brick.effects import Effect, Embed, Prefix


def prompt_effects(brick: Brick) -> list[Effect]:
    """Prompt tuning: the vectors stand before the embeddings of the prompt's tokens."""
    return [Embed(site, slots["vectors"]) for site, slots in brick.by_site.items()]


def prefix_effects(brick: Brick) -> list[Effect]:
    """Prefix tuning: keys and values of each attention, used as they are (never rotated)."""
    return [Prefix(site, slots["key"], slots["value"]) for site, slots in brick.by_site.items()]
