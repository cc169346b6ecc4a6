"""Which forms of brick can become one, and how: a table keyed by form.

A form that has no row, or a row with a reason, is refused with that reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.lora import LoraOptions
from brickwork.brick.replay import ReplayOptions
from brickwork.combine.coefficients import merge_updates
from brickwork.combine.products import Recipe, merge_products
from brickwork.errors import MergeError
from brickwork.measure.updates import NEUTRAL, products_at, site_seed, sites_of


@dataclass(frozen=True)
class Parts:
    """What bricks became: tensors by name, options, sites in order, and errors by site."""

    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any]
    sites: tuple[str, ...]
    errors: Mapping[str, float]


Merge = Callable[[Sequence[Brick], Recipe], Parts]


@dataclass(frozen=True)
class FormRule:
    """How bricks of one form become one.

    Attributes:
        merge: does it; None: nothing can.
        methods: the only names that it takes; empty: every row of METHODS.
        reason: why other methods, or all, are refused.
    """

    merge: Merge | None
    methods: tuple[str, ...] = ()
    reason: str = ""


def merge_lora(bricks: Sequence[Brick], recipe: Recipe) -> Parts:
    """One LoRA, whose scaling is 1. A brick without a site adds nothing there."""
    tensors, ranks, errors = {}, {}, {}
    wide = _widest(bricks)
    for site in sites_of(bricks):
        merged = merge_products(products_at(bricks, site), recipe, site)
        tensors[f"{site}/A"] = merged.product.A.to(wide).contiguous()
        tensors[f"{site}/B"] = merged.product.B.to(wide).contiguous()
        ranks[site], errors[site] = merged.product.rank, merged.error
    counts = list(ranks.values())
    usual = max(sorted(set(counts)), key=counts.count)
    options = LoraOptions(alpha=usual, alphas=ranks)
    return Parts(tensors, options.model_dump(), tuple(ranks), errors)


def merge_vectors(bricks: Sequence[Brick], recipe: Recipe) -> Parts:
    """One vector for each site; merged is what each does, its distance from doing nothing.

    For factors (IA3) that is the distance from 1, as a weight means it when a brick runs: the
    logarithm, the other choice, has no value at factors of 0 and below.
    """
    neutral, wide = NEUTRAL[bricks[0].spec.form], _widest(bricks)
    tensors, sites = {}, sites_of(bricks)
    for site in sites:
        held = [brick.by_site.get(site, {}) for brick in bricks]
        slots = {slot for tensors_of in held for slot in tensors_of}
        if len(slots) > 1:
            raise MergeError(
                f"at {site!r} some bricks hold {' and others '.join(sorted(slots))}, which act on "
                "different sides of the map; run them together instead: `brickwork run --bricks`."
            )
        (slot,) = slots
        given = next(own[slot] for own in held if own)
        updates = [
            own[slot].to(wide) - neutral if own else torch.zeros_like(given, dtype=wide)
            for own in held
        ]
        merged = merge_updates(
            recipe.method, updates, keys=recipe.keys,
            seed=site_seed(recipe.seed, site), parameters=recipe.parameters(site),
        )  # fmt: skip
        tensors[f"{site}/{slot}"] = merged + neutral
    return Parts(tensors, {}, sites, dict.fromkeys(sites, 0.0))


def concatenate(bricks: Sequence[Brick], recipe: Recipe) -> Parts:
    """Learned positions one behind the other, in the order of the bricks."""
    del recipe
    wide, sites, tensors = _widest(bricks), sites_of(bricks), {}
    apart = [b.spec.name for b in bricks if b.tensors.keys() != bricks[0].tensors.keys()]
    if apart:
        raise MergeError(
            f"{', '.join(apart)} acts at other sites than {bricks[0].spec.name!r}, and learned "
            "positions are as many at every site; run them together instead: "
            "`brickwork run --bricks a,b`."
        )
    for name in bricks[0].tensors:
        held = [brick.tensors[name].to(wide) for brick in bricks]
        _require_sizes(name, [(*t.shape[:-2], t.shape[-1]) for t in held])
        tensors[name] = torch.cat(held, dim=-2)
    return Parts(tensors, {}, sites, dict.fromkeys(sites, 0.0))


def join_entries(bricks: Sequence[Brick], recipe: Recipe) -> Parts:
    """The entries of all bricks, in their order; a brick without a site has none there.

    Two memories compare states in spaces of their own, so they go together only where their
    projections are the same.
    """
    del recipe
    wide, sites, tensors = _widest(bricks), sites_of(bricks), {}
    for site in sites:
        held = [brick.by_site[site] for brick in bricks if site in brick.by_site]
        for slot, first in held[0].items():
            name, parts = f"{site}/{slot}", [own[slot].to(wide) for own in held]
            _require_sizes(name, [tuple(part.shape[1:]) for part in parts])
            if slot == "projection" and not all(torch.equal(parts[0], p) for p in parts):
                raise MergeError(
                    f"{name!r} differs, so the keys of the bricks lie in different spaces; run "
                    "them together instead: `brickwork run --bricks a,b`."
                )
            tensors[name] = first.to(wide) if slot == "projection" else torch.cat(parts)
    return Parts(tensors, {}, sites, dict.fromkeys(sites, 0.0))


def join_instances(bricks: Sequence[Brick], recipe: Recipe) -> Parts:
    """The instances of all bricks, in their order; tasks of one name become one."""
    del recipe
    wide, sites = _widest(bricks), sites_of(bricks)
    own = [ReplayOptions.model_validate(brick.spec.options).tasks for brick in bricks]
    tasks = tuple(dict.fromkeys(task for names in own for task in names))
    tensors = {}
    for site in sites:
        held = [(b.by_site[site], names) for b, names in zip(bricks, own, strict=True)
                if site in b.by_site]  # fmt: skip
        for slot in held[0][0]:
            tensors[f"{site}/{slot}"] = torch.cat([slots[slot].to(wide) for slots, _ in held])
        tensors[f"{site}/task"] = torch.cat([
            torch.tensor([tasks.index(n) for n in names], dtype=wide)[slots["task"].long()]
            for slots, names in held
        ])  # fmt: skip
    options = ReplayOptions(tasks=tasks).model_dump(mode="json")
    return Parts(tensors, options, sites, dict.fromkeys(sites, 0.0))


def merge_masks(bricks: Sequence[Brick], recipe: Recipe) -> Parts:
    """What any of the masks keeps, or what all keep, at each site that one of them names.

    A brick that does not name a site has no say there, as when masks run side by side.
    """
    wide, sites, tensors = _widest(bricks), sites_of(bricks), {}
    for site in sites:
        masks = [b.by_site[site]["keep"].to(wide) for b in bricks if site in b.by_site]
        _require_sizes(f"{site}/keep", [tuple(mask.shape) for mask in masks])
        stacked = torch.stack(masks)
        kept = stacked.amax(0) if recipe.method == "union" else stacked.amin(0)
        tensors[f"{site}/keep"] = kept
    return Parts(tensors, {}, sites, dict.fromkeys(sites, 0.0))


_POSITIONS = (
    "its positions have no order that two bricks share, so an average of position 3 of one and "
    "position 3 of the other means nothing; `concatenate` puts one behind the other"
)
_ENTRIES = (
    "each of its entries answers to states of its own, and an average of two entries answers to "
    "neither's; `concatenate` keeps the entries of all"
)
_INSTANCES = (
    "it holds token ids, and an average of two texts is neither; `concatenate` keeps those of all"
)
_ONCE = "it decides where work is left out, and an average of two decisions is neither of them"

FORM_RULES: Mapping[str, FormRule] = {
    "lora": FormRule(merge_lora),
    "ia3": FormRule(merge_vectors),
    "bias": FormRule(merge_vectors),
    "steering": FormRule(merge_vectors),
    "prompt": FormRule(concatenate, ("concatenate",), _POSITIONS),
    "prefix": FormRule(concatenate, ("concatenate",), _POSITIONS),
    "mask": FormRule(
        merge_masks, ("union", "intersection"),
        "it holds 0 and 1 alone, and a unit is kept or silent; `union` keeps what any keeps, "
        "`intersection` what all keep",
    ),
    "patch": FormRule(join_entries, ("concatenate",), _ENTRIES),
    "codebook": FormRule(join_entries, ("concatenate",), _ENTRIES),
    "memory": FormRule(join_entries, ("concatenate",), _ENTRIES),
    "replay": FormRule(join_instances, ("concatenate",), _INSTANCES),
    "skip": FormRule(None, (), _ONCE),
    "exit": FormRule(None, (), _ONCE),
    "router": FormRule(
        None, (), "its groups are its own, and group 3 of one is not group 3 of the other"
    ),
}  # fmt: skip


def find_rule(form: str, method: str) -> Merge:
    """What merges bricks of a form by a method.

    Raises:
        MergeError: if nothing does, with the reason.
    """
    rule = FORM_RULES.get(form, FormRule(None, (), "no rule says what a mixture would mean"))
    together = "run them together instead: `brickwork run --bricks a,b`"
    if rule.merge is None:
        raise MergeError(f"bricks of the form {form} cannot become one: {rule.reason}; {together}.")
    if rule.methods and method not in rule.methods:
        raise MergeError(f"{method} cannot merge bricks of the form {form}: {rule.reason}.")
    if not rule.methods and method in OWN_METHODS:
        raise MergeError(
            f"{method} is for bricks of the forms {', '.join(OWN_METHODS[method])}, and these are "
            f"{form}; choose a merge method such as linear."
        )
    return rule.merge


OWN_METHODS: Mapping[str, tuple[str, ...]] = {
    method: tuple(form for form, rule in FORM_RULES.items() if method in rule.methods)
    for method in ("concatenate", "union", "intersection")
}
"""Methods that are no row of METHODS, with the forms that they are for."""


def _require_sizes(name: str, sizes: Sequence[tuple[int, ...]]) -> None:
    if len(set(sizes)) > 1:
        raise MergeError(
            f"{name!r} has the sizes {' and '.join(map(str, sorted(set(sizes))))}, so the bricks "
            "are for different models; leave one out."
        )


def _widest(bricks: Sequence[Brick]) -> torch.dtype:
    """At least float32, so that the result is rounded no more than the bricks were."""
    wide = torch.float32
    for brick in bricks:
        for tensor in brick.tensors.values():
            wide = torch.promote_types(wide, tensor.dtype)
    return wide
