"""STRATEGIES: every way to learn a stream of tasks one after the other.

An outside package adds rows through the entry-point group ``brickwork.stream_strategies``.
"""

from collections.abc import Mapping
from functools import cache

from brickwork.brick.tables import collect_rows, find_row
from brickwork.errors import GrowthError
from brickwork.grow.strategy import Strategy

_MODELS, _BRICKS = "brickwork.grow.strategy_models", "brickwork.grow.strategy_bricks"

_ROWS = (
    Strategy(
        "full", "all weights of a copy are trained on",
        f"{_MODELS}:train_all", f"{_MODELS}:RehearsalOptions", (),
        "the plain way, as a yardstick; replay after Robins 1995, Catastrophic forgetting, "
        "rehearsal and pseudorehearsal",
    ),
    Strategy(
        "lora", "one LoRA for all tasks is trained on",
        f"{_MODELS}:train_shared_lora", f"{_MODELS}:SharedLoraOptions", (),
        "Hu et al. 2021, arXiv:2106.09685",
    ),
    Strategy(
        "blocks", "new blocks between the old ones are trained on, the old ones rest",
        f"{_MODELS}:train_blocks", f"{_MODELS}:BlockExpansionOptions", (),
        "LLaMA Pro: Wu et al. 2024, arXiv:2401.02415",
    ),
    Strategy(
        "bricks", "a brick for each task, then frozen, and a router that picks one or none",
        f"{_BRICKS}:route_bricks", f"{_BRICKS}:NoOptions",
        ("build", "router", "logits", "brick_flops"),
        "Xiao et al. 2024, arXiv:2409.02877, section 4.4",
    ),
    Strategy(
        "oracle", "a brick for each task, and the true task is told",
        f"{_BRICKS}:tell_bricks", f"{_BRICKS}:NoOptions", ("build", "logits", "brick_flops"),
        "the upper bound of routing",
    ),
    Strategy(
        "o-lora", "a LoRA for each task that reads other directions, and all of them act together",
        f"{_BRICKS}:add_orthogonal", f"{_BRICKS}:OrthogonalOptions", ("logits", "brick_flops"),
        "Wang et al. 2023, arXiv:2310.14152",
    ),
    Strategy(
        "progressive", "a soft prompt for each task behind the new one, and the true task is told",
        f"{_BRICKS}:tell_prompts", f"{_BRICKS}:PromptOptions", ("logits", "brick_flops"),
        "Razdaibiedina et al. 2023, arXiv:2301.12314",
    ),
)  # fmt: skip


@cache
def strategies() -> Mapping[str, Strategy]:
    """All rows by name, those of installed packages included."""
    return collect_rows(_ROWS, "brickwork.stream_strategies", "strategy", GrowthError)


def find_strategy(name: str) -> Strategy:
    """The row of that name, or an error that lists the nearest names."""
    return find_row(strategies(), "strategy", name)
