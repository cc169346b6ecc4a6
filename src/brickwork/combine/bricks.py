"""Several bricks become one, with its parents in its lineage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brickwork.brick.brick import Brick
from brickwork.brick.check import fingerprint_misfits, require_well_formed
from brickwork.brick.spec import BrickSpec, Function, Lineage, parse_spec
from brickwork.combine.brick_forms import Parts, find_rule
from brickwork.combine.products import Recipe
from brickwork.errors import MergeError, listed

_EXEMPLARS = 12  # of each parent, at most


@dataclass(frozen=True)
class Combined:
    """One brick made of several.

    Attributes:
        brick: the result.
        errors: for each site, how far the brick is from what the method wants, as a share of
            that; 0 where it is exact.
        notes: what a user should know, one line each.
    """

    brick: Brick
    errors: Mapping[str, float]
    notes: tuple[str, ...]

    def as_document(self) -> dict[str, Any]:
        """What a user sees of it, ready for JSON."""
        spec, errors = self.brick.spec, list(self.errors.values())
        ranks = [t.shape[0] for name, t in self.brick.tensors.items() if name.endswith("/A")]
        return {
            "name": spec.name,
            "hash": self.brick.hash,
            "form": spec.form,
            "sites": len(spec.sites),
            "rank": max(ranks, default=None),
            "bytes": self.brick.bytes,
            "licence": spec.licence,
            "lineage": spec.lineage.model_dump(mode="json"),
            "error_worst": max(errors),
            "error_mean": sum(errors) / len(errors),
            "errors": dict(self.errors),
            "notes": list(self.notes),
        }


def combine_bricks(
    bricks: Sequence[Brick],
    method: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    rank: int | None = None,
    name: str = "",
    seed: int = 0,
) -> Combined:
    """One brick that does what several do, by any merge method.

    The result is kept in float32 at least. Where a brick has no tensors at a site of another, it
    counts as doing nothing there; methods that normalise by weights still count it, while TIES
    lets only those vote that do something.

    Args:
        bricks: of one form and for one base, at least one.
        method: a row of METHODS; ``concatenate`` for prompts, prefixes and bricks of
            entries, ``union`` or ``intersection`` for masks.
        parameters: the method's; one value, or a sequence with one for each brick.
        rank: of the resulting LoRA at a site, at most; None: the sum of the bricks' ranks.
        name: of the result; empty: the parents' names, joined by ``-and-``.
        seed: of random choices. They depend on the bricks' names, not on their order.

    Raises:
        MergeError: if the bricks do not go together, with every reason.
        UnknownNameError: if there is no such method or parameter.
        BrickFormatError: if a brick is not well formed, or the name is none.
    """
    given = dict(parameters or {})
    recipe = Recipe(method, lambda site: given, keys_of(bricks), rank, seed)
    written = {key: list(v) if isinstance(v, list | tuple) else v for key, v in given.items()}
    return combine_by(recipe, bricks, name=name, written=written)


def combine_by(
    recipe: Recipe, bricks: Sequence[Brick], *, name: str, written: Mapping[str, Any]
) -> Combined:
    """As ``combine_bricks``, with parameters that may differ from site to site.

    Args:
        recipe: how.
        bricks: at least one.
        name: of the result; empty: made of the parents' names.
        written: the parameters as lineage keeps them.
    """
    require_alike(bricks)
    form = bricks[0].spec.form
    merge = find_rule(form, recipe.method)
    if recipe.rank is not None and (recipe.rank < 1 or form != "lora"):
        raise MergeError(
            f"a rank of {recipe.rank} was asked for; only LoRA bricks have one, and it is at "
            f"least 1 (these are {form}); leave it out."
        )
    parts = merge(bricks, recipe)
    brick = Brick(_spec(bricks, recipe, parts, name=name, written=written), parts.tensors)
    require_well_formed(brick)
    return Combined(brick, parts.errors, tuple(_notes(bricks, parts)))


def require_alike(bricks: Sequence[Brick]) -> None:
    """Refuse bricks of different forms, or for different bases.

    Raises:
        MergeError: with every reason.
    """
    if not bricks:
        raise MergeError("0 bricks were given; name at least one.")
    for brick in bricks:
        require_well_formed(brick)
    first = bricks[0].spec
    found = []
    for spec in (brick.spec for brick in bricks[1:]):
        if spec.form != first.form:
            found.append(f"{first.name!r} is a {first.form} and {spec.name!r} a {spec.form}")
        found += [
            f"{spec.name!r} beside {first.name!r}: {problem}"
            for problem in fingerprint_misfits(first.base, spec.base)
        ]
    if found:
        raise MergeError(
            f"{len(bricks)} bricks cannot become one:{listed(found)}\nBricks of different forms "
            "for one base run together as they are: `brickwork run --bricks a,b`."
        )


def keys_of(bricks: Sequence[Brick]) -> list[str]:
    """A name for each brick; one that is given twice gets its hash behind it, then a number."""
    names = [brick.spec.name for brick in bricks]
    keys: list[str] = []
    for brick in bricks:
        key = brick.spec.name
        if names.count(key) > 1:
            key = f"{key}@{brick.hash[:8]}"
        while key in keys:
            key += "+"
        keys.append(key)
    return keys


def joined_licence(bricks: Sequence[Brick]) -> str:
    """The one licence of all bricks, or all of them, as SPDX writes it."""
    licences = sorted({brick.spec.licence for brick in bricks})
    return licences[0] if len(licences) == 1 else " AND ".join(one or "unknown" for one in licences)


def _spec(
    bricks: Sequence[Brick],
    recipe: Recipe,
    parts: Parts,
    *,
    name: str,
    written: Mapping[str, Any],
) -> BrickSpec:
    first = bricks[0].spec
    functions = [brick.spec.function for brick in bricks]
    arguments = {
        "parameters": dict(written),
        "bricks": list(recipe.keys),
        "rank": recipe.rank,
        "seed": recipe.seed,
    }
    names = dict.fromkeys(b.spec.name for b in bricks)
    return parse_spec(
        {
            "name": name or "-and-".join(names)[:80].strip("-_."),
            "form": first.form,
            "base": first.base,
            "sites": parts.sites,
            "options": parts.options,
            "function": Function(
                text=" ".join(dict.fromkeys(f.text for f in functions if f.text)),
                labels=tuple(dict.fromkeys(label for f in functions for label in f.labels)),
                exemplars=tuple(
                    dict.fromkeys(text for f in functions for text in f.exemplars[:_EXEMPLARS])
                ),
            ),
            "lineage": Lineage(
                method=f"combine: {recipe.method}",
                arguments=arguments,
                parents=tuple(brick.hash for brick in bricks),
            ),
            "licence": joined_licence(bricks),
        },
        "what was asked for",
    )


def _notes(bricks: Sequence[Brick], parts: Parts) -> list[str]:
    notes = []
    partial = [b.spec.name for b in bricks if set(parts.sites) - set(b.by_site)]
    if partial:
        notes.append(
            f"{', '.join(partial)}: without tensors at some of the {len(parts.sites)} sites, "
            "where they count as no change"
        )
    cut = [error for error in parts.errors.values() if error > 0]
    if cut:
        notes.append(
            f"the rank cuts off up to {max(cut):.1%} of an update's length "
            f"({len(cut)} of {len(parts.errors)} sites)"
        )
    if len({brick.spec.licence for brick in bricks}) > 1:
        notes.append(f"licences of all parents apply: {joined_licence(bricks)}")
    return notes
