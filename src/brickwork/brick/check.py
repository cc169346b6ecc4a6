"""Is a brick well formed; does it fit that base; if not, why.

Every reason is found before anything is refused. PEFT accepts most of what is refused here
without a word: another base of the same shapes, missing layers, keys of no module, NaN weights.
"""

import math

import torch
from pydantic import ValidationError
from torch import Tensor

from brickwork.brick.base import Base, Fingerprint, Site
from brickwork.brick.brick import Brick
from brickwork.brick.effects import EFFECTS
from brickwork.brick.forms import Form, find_form, forms, load_target
from brickwork.brick.peft import kept_problems, untaught
from brickwork.brick.spec import BrickSpec, explain
from brickwork.errors import BrickFormatError, MisfitError, listed

_KEPT = "problems found"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def problems(brick: Brick) -> list[str]:
    """What is wrong with the brick itself, base aside; empty if nothing is.

    Found once for each brick object: whoever reads a brick checks it, and so does whoever runs it.
    """
    known: list[str] | None = vars(brick).get(_KEPT)
    if known is None:
        known = vars(brick)[_KEPT] = _problems(brick)
    return known


def _problems(brick: Brick) -> list[str]:
    if brick.spec.form not in forms():
        return [f"the form {brick.spec.form!r} is unknown; known: {', '.join(forms())}"]
    form = find_form(brick.spec.form)
    found = _spec_problems(brick.spec, form) + _site_problems(brick, form)
    shared: dict[str, int] = {}
    for site, slots in brick.by_site.items():
        found += _slot_problems(site, _shapes(slots), form, shared)
    for name, tensor in brick.tensors.items():
        found += _value_problems(name, tensor)
    if not found and form.check:
        found += load_target(form.check)(brick)
    return found or kept_problems(brick)


def misfits(brick: Brick, base: Base) -> list[str]:
    """Why the brick, which must be well formed, does not fit the base; empty if it does."""
    found = fingerprint_misfits(brick.spec.base, base.fingerprint)
    form = find_form(brick.spec.form)
    for path, slots in brick.by_site.items():
        site = base.sites.get(path)
        if site is None:
            found.append(f"the base has no module {path!r} where a brick can sit")
        elif site.kind not in form.sites:
            found.append(f"{path}: a {form.name} cannot sit at a site of kind {site.kind}")
        elif not site.address.endswith(form.role):
            found.append(
                f"{path}: a {form.name} sits at layers.N{form.role}, this is {site.address}"
            )
        else:
            found += _size_misfits(site, _shapes(slots), form)
    return found + _spread_misfits(brick, base, form)


def fingerprint_misfits(wanted: Fingerprint, found: Fingerprint) -> list[str]:
    """In what the two bases differ; empty if a brick for one is a brick for the other."""
    differences = []
    if wanted.architecture != found.architecture:
        differences.append(
            f"it was made for the architecture {wanted.architecture!r}, "
            f"this is {found.architecture!r}"
        )
    if wanted.shapes != found.shapes:
        differences.append("the base's parameters have other names or shapes")
    elif wanted.weights != found.weights:
        differences.append(
            f"the base's weights differ (made on {_short(wanted)}, this is {_short(found)})"
        )
    if None not in (wanted.tokenizer, found.tokenizer) and wanted.tokenizer != found.tokenizer:
        differences.append("the tokenizer differs")
    return differences


def require_well_formed(brick: Brick) -> None:
    """Raise ``BrickFormatError`` with every problem of the brick itself."""
    found = problems(brick)
    if found:
        raise BrickFormatError(f"brick {brick.spec.name!r} is not well formed:{listed(found)}")


def require_fit(brick: Brick, base: Base) -> None:
    """Raise ``MisfitError`` with every reason why the brick does not fit the base."""
    found = problems(brick) or misfits(brick, base)
    if found:
        raise MisfitError(brick.spec.name, found)


def require_weight(brick: Brick, weight: float) -> None:
    """Refuse a weight that has no meaning for the brick's form."""
    form = find_form(brick.spec.form)
    if not math.isfinite(weight):
        raise BrickFormatError(
            f"brick {brick.spec.name!r} got weight {weight}; a weight is a finite number."
        )
    if weight not in (0, 1) and not EFFECTS[form.effect].weighted:
        raise BrickFormatError(
            f"brick {brick.spec.name!r} got weight {weight}, but a {form.name} acts only as a "
            "whole; use weight 1 or leave it out."
        )


def _short(fingerprint: Fingerprint) -> str:
    return f"{fingerprint.name or fingerprint.architecture} {fingerprint.weights[:8]}"


def _spec_problems(spec: BrickSpec, form: Form) -> list[str]:
    """What validation says; ``model_copy`` can have made a spec that never was validated."""
    found = []
    try:
        BrickSpec.model_validate(spec.model_dump(warnings=False))
    except ValidationError as error:
        found.append(f"its spec: {explain(error)}")
    try:
        options = load_target(form.options)
        options.model_validate(spec.options, context={"sites": spec.sites})
    except ValidationError as error:
        found.append(f"options: {explain(error)}")
    return found


def _site_problems(brick: Brick, form: Form) -> list[str]:
    listed, held = brick.spec.sites, set(brick.by_site)
    found = [f"tensors of the listed site {s!r} are missing" for s in listed if s not in held]
    found += [
        f"tensors at {site!r}, which is not among the listed sites"
        for site in sorted(held.difference(listed))
    ]
    if len(set(listed)) != len(listed):
        found.append("a site is listed twice")
    if form.spread == "one" and len(listed) != 1:
        found.append(f"a {form.name} sits at one site, this has {len(listed)}")
    return found if listed or held else ["it has no tensors"]


def _value_problems(name: str, tensor: Tensor) -> list[str]:
    if tensor.dtype not in _DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        return [f"{name}: dtype {tensor.dtype} is not a floating-point type of bricks ({known})"]
    if tensor.is_meta or tensor.layout is not torch.strided:
        return [f"{name}: is not a plain tensor with values"]
    # A finite sum has finite terms; only where it overflows does each term have to be asked.
    finite = math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())
    return [] if finite else [f"{name}: holds NaN or infinite values"]


def _shapes(slots: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {slot: tuple(tensor.shape) for slot, tensor in slots.items()}


def _slot_problems(
    site: str, shapes: dict[str, tuple[int, ...]], form: Form, shared: dict[str, int]
) -> list[str]:
    schema = next((s for s in form.slots if set(s) == set(shapes)), None)
    if schema is None:
        wanted = " or ".join(" + ".join(s) for s in form.slots)
        return [f"{site}: holds {' + '.join(sorted(shapes))}, a {form.name} needs {wanted}"]
    found = []
    local: dict[str, int] = {}
    for slot, axes in schema.items():
        if len(shapes[slot]) != len(axes):
            found.append(f"{site}/{slot}: shape {list(shapes[slot])}, axes are {' '.join(axes)}")
            continue
        for axis, size in zip(axes, shapes[slot], strict=True):
            known = shared if axis in form.shared else local
            if size < 1:
                found.append(f"{site}/{slot}: the axis {axis} is empty")
            elif axis == "one" and size != 1:
                found.append(f"{site}/{slot}: holds {size} numbers, a {form.name} needs one")
            elif known.setdefault(axis, size) != size:
                found.append(f"{site}/{slot}: {axis} is {size}, elsewhere {known[axis]}")
    return found


def _size_misfits(site: Site, shapes: dict[str, tuple[int, ...]], form: Form) -> list[str]:
    schema = next(s for s in form.slots if set(s) == set(shapes))
    return [
        f"{site.path}/{slot}: {axis} is {size}, the base has {site.sizes[axis]}"
        for slot, axes in schema.items()
        for axis, size in zip(axes, shapes[slot], strict=True)
        if axis in site.sizes and site.sizes[axis] != size
    ]


def _spread_misfits(brick: Brick, base: Base, form: Form) -> list[str]:
    """Sites in another order than the base's where that counts, and sites that are left out.

    It counts for forms that sit everywhere: PEFT keeps their sites as rows of one matrix.
    """
    found = []
    if form.spread == "all":
        order = [path for path in base.sites if path in brick.by_site]
        if order != [path for path in brick.spec.sites if path in base.sites]:
            found.append(f"its sites are not in the base's order, which is {', '.join(order)}")
        found += [
            f"a {form.name} sits at every {site.kind} of its base, but this has none at {site.path}"
            for kind in form.sites
            for site in base.of_kind(kind)
            if site.path not in brick.by_site
        ]
    return found + [
        f"its PEFT configuration also targets {path}, where it has no tensors"
        for path in untaught(brick, base)
    ]
