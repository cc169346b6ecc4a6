"""FORMS: every form a brick can have, what its tensors are, and how it acts.

A row says which slots sit at which kind of site and with which named axes. An axis that the site
knows (``in``, ``out``, ``hidden``, ...) must have the site's length; any other (``rank``,
``tokens``) is free, at least 1, and one length per site, or, under ``shared``, per brick. An
outside package adds rows through the entry-point group ``brickwork.forms``.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from brickwork.brick.base import SiteKind
from brickwork.brick.tables import collect_rows, find_row
from brickwork.errors import BrickFormatError

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick
    from brickwork.brick.effects import Effect

Axes = tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """One row of FORMS.

    Attributes:
        name: the form's name in specs, on the command line and in the docs.
        meaning: one line for people.
        effect: the row of EFFECTS that it acts by.
        sites: kinds of site where it can sit.
        slots: alternatives; each site holds exactly the slots of one of them.
        target: ``"module:function"`` that turns a brick into its effects; empty while no
            code can run the form, and such a brick is refused, never ignored.
        options: ``"module:class"`` of the pydantic model that its options must fit.
        peft: the PEFT type that its folder is written as, empty if PEFT has none.
        source: the paper.
        shared: axes that have one length in the whole brick.
        spread: how many of the base's sites of its kinds it takes: any, exactly one, or all.
        role: the end that the address of each of its sites has, empty if any will do.
        check: ``"module:function"`` that lists what is wrong with a brick's values, if their
            shapes are right; empty if any values are.
    """

    name: str
    meaning: str
    effect: str
    sites: tuple[SiteKind, ...]
    slots: tuple[Mapping[str, Axes], ...]
    target: str
    options: str
    peft: str
    source: str
    shared: frozenset[str] = field(default=frozenset())
    spread: Literal["any", "one", "all"] = "any"
    role: str = ""
    check: str = ""


_KEY_VALUE = ("kv_heads", "tokens", "head_dim")
_ROWS = (
    Form(
        "lora", "low-rank update of linear maps (LoRA, rsLoRA)", "add", ("linear",),
        ({"A": ("rank", "in"), "B": ("out", "rank")},),
        "brickwork.brick.lora:effects", "brickwork.brick.lora:LoraOptions", "LORA",
        "Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732",
    ),
    Form(
        "ia3", "learned factors on keys, values and FFN units (IA3)", "scale", ("linear",),
        ({"factor_out": ("out",)}, {"factor_in": ("in",)}),
        "brickwork.brick.vectors:scale_effects", "brickwork.brick.vectors:NoOptions", "IA3",
        "Liu et al. 2022, arXiv:2205.05638",
    ),
    Form(
        "bias", "learned biases (BitFit, as a difference)", "shift", ("linear", "norm"),
        ({"bias": ("out",)},),
        "brickwork.brick.vectors:bias_effects", "brickwork.brick.vectors:NoOptions", "",
        "Ben Zaken et al. 2021, arXiv:2106.10199",
    ),
    Form(
        "steering", "vector added to the residual stream", "shift", ("block",),
        ({"vector": ("hidden",)},),
        "brickwork.brick.vectors:steering_effects", "brickwork.brick.vectors:NoOptions", "",
        "Turner et al. 2023, arXiv:2308.10248; function vectors: Todd et al. 2023, "
        "arXiv:2310.15213",
    ),
    Form(
        "prompt", "learned input vectors (prompt tuning)", "embed", ("embedding",),
        ({"vectors": ("tokens", "hidden")},),
        "brickwork.brick.soft:prompt_effects", "brickwork.brick.vectors:NoOptions",
        "PROMPT_TUNING", "Lester et al. 2021, arXiv:2104.08691", spread="one",
    ),
    Form(
        "prefix", "learned keys and values (prefix tuning)", "prefix", ("attention",),
        ({"key": _KEY_VALUE, "value": _KEY_VALUE},),
        "brickwork.brick.soft:prefix_effects", "brickwork.brick.vectors:NoOptions",
        "PREFIX_TUNING", "Li and Liang 2021, arXiv:2101.00190",
        # PEFT keeps one matrix, so all layers must agree in these.
        frozenset(_KEY_VALUE), spread="all",
    ),
    Form(
        "mask", "neurons, groups and heads of the base that are kept", "mask",
        ("linear", "experts"), ({"keep": ("in",)},),
        "brickwork.brick.selection:mask_effects", "brickwork.brick.vectors:NoOptions", "",
        "Xiao et al. 2024, arXiv:2409.02877, 4.5",
        check="brickwork.brick.selection:mask_problems",
    ),
    Form(
        "skip", "blocks that are left out", "skip", ("block",), ({"share": ("one",)},),
        "brickwork.brick.selection:skip_effects", "brickwork.brick.vectors:NoOptions", "",
        "Gromov et al. 2024, arXiv:2403.17887; ShortGPT: Men et al. 2024, arXiv:2403.03853",
    ),
    Form(
        "exit", "blocks after which a sure token leaves", "exit", ("block",),
        ({"confidence": ("one",)},),
        "brickwork.brick.selection:exit_effects", "brickwork.brick.vectors:NoOptions", "",
        "CALM: Schuster et al. 2022, arXiv:2207.07061",
        check="brickwork.brick.selection:exit_problems",
    ),
    Form(
        "router", "a router that chooses neurons for each token", "route", ("linear",),
        (
            {"quantiles": ("levels",)},
            {"magnitude": ("in",)},
            {"owner": ("in",), "weight": ("groups", "out")},
            {"owner": ("in",), "first": ("width", "out"), "second": ("groups", "width")},
        ),
        "brickwork.brick.selection:router_effects", "brickwork.brick.selection:RouterOptions", "",
        "MoEfication: Zhang et al. 2021, arXiv:2110.01786; CATS: Lee et al. 2024, "
        "arXiv:2404.08763; GRIFFIN: Dong et al. 2024, arXiv:2404.01365",
        role=".mlp.down", check="brickwork.brick.selection:router_problems",
    ),
    Form(
        "patch", "neurons added after a block (T-Patcher)", "patch", ("block",),
        ({"key": ("neurons", "hidden"), "bias": ("neurons",), "value": ("neurons", "hidden")},),
        "brickwork.brick.memory:patch_effects", "brickwork.brick.vectors:NoOptions", "",
        "Huang et al. 2023, arXiv:2301.09785",
    ),
    Form(
        "codebook", "states near a key are replaced (GRACE)", "codebook", ("block",),
        (
            {
                "key": ("entries", "hidden"), "value": ("entries", "hidden"),
                "radius": ("entries",),
            },
        ),
        "brickwork.brick.memory:codebook_effects", "brickwork.brick.vectors:NoOptions", "",
        "Hartvigsen et al. 2023, arXiv:2211.11031",
        check="brickwork.brick.memory:codebook_problems",
    ),
    Form(
        "memory", "values added where a learned scope says so (SERAC)", "codebook", ("block",),
        (
            {
                "projection": ("width", "hidden"), "key": ("entries", "width"),
                "value": ("entries", "hidden"), "radius": ("entries",),
            },
        ),
        "brickwork.brick.memory:memory_effects", "brickwork.brick.vectors:NoOptions", "",
        "Mitchell et al. 2022, arXiv:2206.06520",
        check="brickwork.brick.memory:codebook_problems",
    ),
    Form(
        "replay", "instances of earlier tasks, to train on again", "none", ("embedding",),
        (
            {
                "ids": ("positions",), "length": ("samples",), "start": ("samples",),
                "task": ("samples",),
            },
        ),
        "", "brickwork.brick.replay:ReplayOptions", "",
        "CFM: Xiao et al. 2024, arXiv:2409.02877; Rolnick et al. 2019, arXiv:1811.11682",
        spread="one", check="brickwork.brick.replay:replay_problems",
    ),
)  # fmt: skip


@cache
def forms() -> Mapping[str, Form]:
    """All rows by name, those of installed packages included."""
    return collect_rows(_ROWS, "brickwork.forms", "form", BrickFormatError)


def find_form(name: str) -> Form:
    """The row of that name, or an error that lists the nearest names."""
    return find_row(forms(), "form", name)


def effects_of(brick: "Brick") -> list["Effect"]:
    """What the brick does to its base, as effects.

    Raises:
        BrickFormatError: if no code can run bricks of this form.
    """
    form = find_form(brick.spec.form)
    if not form.target:
        raise BrickFormatError(
            f"brick {brick.spec.name!r} has the form {form.name!r}, which can be stored and "
            "checked but not run by this version; leave it out of the configuration."
        )
    found: list[Effect] = load_target(form.target)(brick)
    return found


def load_target(target: str) -> Any:
    """The object that ``"module:name"`` names, imported on first use."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
