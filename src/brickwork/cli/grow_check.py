"""Whether a grown model says what the old one says: measured, after it was written."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.console import stderr_console

if TYPE_CHECKING:
    import torch

    from brickwork.grow.equivalence import Seen
    from brickwork.grow.growth import GrownWeights
    from brickwork.grow.recipe import GrownModel
    from brickwork.model.load import LoadedModel
    from brickwork.model.parts import CausalModel
    from brickwork.model.weights import Weights

# Both models in float32; beyond that, minutes and most of a small machine's memory.
MOST_BYTES = 4_000_000_000
_EXACT = 1e-4  # of the largest logit: sums in another order, in float32
_ROUNDINGS = 4
_LONGEST = 512  # where a family has no bound


class BrokenPromise(Exception):
    """A grown model that was to say what the old one says, and does not: a defect of ours."""


def check(
    grown: "GrownModel", old: "Weights", source: Path, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """How far the logits of the written model are from the old ones, on random texts.

    Both are loaded in float32, whatever their own number format, one after the other: so what is
    measured is what the weights say, and not what a format makes of it on the way.

    Args:
        grown: as it was planned and written.
        old: weights that it was grown from.
        source: folder of the old model.
        options: ``check``, ``out`` and ``device``.

    Returns:
        The differences, what is tolerated, and whether equality was promised. None: not checked.
    """
    from brickwork.model.load import load_model

    numbers = sum(p.numel() for w in (old, grown.weights) for p in w.outline.parameters())
    if not is_wanted(numbers, options["check"]):
        return None

    def loaded(folder: Path) -> "LoadedModel":
        return load_model(str(folder), device=options["device"], dtype="float32", tokenizer=False)

    stages, new = stages_of(grown.weights), grown.weights
    # All else is copied, set to zero, or divided so that the parts sum up to the bit.
    rounded = any(stage.growth.factors or stage.growth.made for stage in stages)
    dtypes = {new.dtype_of(path) for path, _ in new.outline.named_parameters() if rounded}
    return differences(
        lambda: loaded(source), lambda: loaded(options["out"]),
        vocabulary=grown.old_tokens, longest=longest_of(old.outline), dtypes=dtypes,
        promised=all(stage.growth.promise != "none" for stage in stages),
    )  # fmt: skip


def differences(
    old: "Callable[[], LoadedModel]",
    new: "Callable[[], LoadedModel]",
    *,
    vocabulary: int,
    longest: int,
    dtypes: "set[torch.dtype]",
    promised: bool,
) -> dict[str, Any]:
    """What two models say to the same texts, one of them in memory at a time.

    Args:
        old: loads the old model.
        new: loads the grown one.
        vocabulary: tokens that both know.
        longest: tokens of a text that both read.
        dtypes: number formats that weights of the grown model were rounded to.
        promised: whether it was to say what the old one says.
    """
    from brickwork.grow.equivalence import compare, look

    def said(load: "Callable[[], LoadedModel]") -> "Seen":
        return look(load(), vocabulary, longest=longest)

    found = compare(said(old), said(new))
    difference = found.difference if math.isfinite(found.difference) else None
    return {
        "difference": difference,
        "largest": found.largest if math.isfinite(found.largest) else None,
        "tolerance": tolerance(dtypes) * found.largest if math.isfinite(found.largest) else None,
        "same_answers": found.same_answers,
        "tokens": found.tokens,
        "promised": promised,
    }


def tolerance(dtypes: "set[torch.dtype]") -> float:
    """By what share of the largest logit a model may differ that promised to be equal.

    Where nothing is rounded, sums in another order, in float32, are all there is. Weights that are
    multiplied are rounded, by half of eps at most: as a sum of many is off by about as much of
    itself as its terms are, so are the logits, and those of layer after layer add up, which is
    what the factor leaves room for (measured on the reference model in bfloat16: 1.4 such errors
    for a larger hidden size, 0.3 for wider heads).
    """
    import torch

    half = max((torch.finfo(dtype).eps / 2 for dtype in dtypes), default=0.0)
    return _EXACT + _ROUNDINGS * half


def stages_of(weights: "Weights") -> "list[GrownWeights]":
    """The growths that these weights come from, in their order."""
    from brickwork.grow.growth import GrownWeights

    return [*stages_of(weights.old), weights] if isinstance(weights, GrownWeights) else []


def require_kept(document: Mapping[str, Any]) -> None:
    """Say that a model was changed where that was to be expected; refuse it where it was not.

    Raises:
        BrokenPromise: if equality was promised and does not hold.
    """
    found = document.get("equivalence")
    if found is None:
        return
    difference, allowed = found["difference"], found["tolerance"]
    measured = "no number" if difference is None else f"{difference:.3g}"
    if found["promised"] and not (difference is not None and allowed and difference <= allowed):
        most = "none" if allowed is None else f"{allowed:.3g}"
        raise BrokenPromise(
            f"the grown model was to say what the old one says, but their logits differ by "
            f"{measured} (tolerated: {most}); it is in {document['out']!r}, so do not use it."
        )
    if not found["promised"]:
        stderr_console().print(
            f"warning: this growth changes what the model says; logits differ by {measured}, "
            f"where the largest is {found['largest']:.3g}. Train it on before you use it.",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def longest_of(model: "CausalModel") -> int:
    """Tokens of the longest text that a model reads."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", _LONGEST)


def is_wanted(numbers: int, asked: bool | None) -> bool:
    """Whether models of so many numbers together are checked; says so if they are too large.

    Args:
        numbers: of the old and of the grown model.
        asked: ``--check`` or ``--no-check``; None: as their size allows.
    """
    size = 4 * numbers
    if asked is not None or size <= MOST_BYTES:
        return asked is not False
    stderr_console().print(
        f"not checked: both models together take {size / 1e9:.1f} GB in float32; --check does it",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    return False
