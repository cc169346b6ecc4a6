"""Bricks for tests: random and neutral ones of every form, and a base that is only data."""

from typing import Any

import torch
from torch import Tensor

from brickwork.brick.base import Base, Fingerprint, Site
from brickwork.brick.brick import Brick
from brickwork.brick.effects import EFFECTS
from brickwork.brick.forms import Form, find_form, forms
from brickwork.brick.spec import BrickSpec

FORMS = tuple(forms())
# An effect that takes a weight is nothing at weight 0, so its tensors can be nothing too.
FORMS_WITH_NEUTRAL = tuple(name for name in FORMS if EFFECTS[find_form(name).effect].weighted)
_OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"alpha": 8.0}, "router": {"density": 0.5}, "replay": {"tasks": ["a", "b"]},
}  # fmt: skip
_FREE_LENGTHS = (1, 5)
_MANY = {"positions": (5, 9)}  # every instance has a token
_FIXED_LENGTHS = {"one": 1}


def random_brick(
    form: Form | str,
    base: Base,
    generator: torch.Generator,
    *,
    sites: list[str] | None = None,
    dtype: torch.dtype = torch.float32,
    **spec: Any,
) -> Brick:
    """A well-formed brick that fits ``base``; ``spec`` sets fields of its spec.

    Without ``sites`` it takes all sites of its kinds, one, or some inside the layers, as the form
    asks. Slots, ranks and values are random.
    """
    row = find_form(form) if isinstance(form, str) else form
    chosen = _some_sites(row, base, generator) if sites is None else [base.sites[s] for s in sites]
    shared: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for site in chosen:
        schema = row.slots[_number(0, len(row.slots) - 1, generator)]
        free: dict[str, int] = {}
        for axis in dict.fromkeys(axis for axes in schema.values() for axis in axes):
            lengths = shared if axis in row.shared else free
            length = _FIXED_LENGTHS.get(axis) or _number(*_MANY.get(axis, _FREE_LENGTHS), generator)
            lengths.setdefault(axis, length)
        lengths = {**free, **shared, **site.sizes}
        for slot, axes in schema.items():
            size = [lengths[axis] for axis in axes]
            values = _special_values(slot, size, lengths, generator)
            if values is None:
                values = torch.randn(size, generator=generator)
            tensors[f"{site.path}/{slot}"] = values.to(dtype)
    fields = {"name": f"random-{row.name}", "options": _OPTIONS.get(row.name, {}), **spec}
    paths = tuple(site.path for site in chosen)
    return Brick(BrickSpec(form=row.name, base=base.fingerprint, sites=paths, **fields), tensors)


def _special_values(
    slot: str, size: list[int], lengths: dict[str, int], generator: torch.Generator
) -> Tensor | None:
    """Random values of a slot that cannot have any value."""
    if slot == "confidence":
        return torch.rand(size, generator=generator)
    if slot == "owner":  # every group has a neuron, and some may be shared
        order = torch.arange(size[0]) % (lengths["groups"] + 1) - 1
        return order.roll(-1)[torch.randperm(size[0], generator=generator)].float()
    if slot == "radius":  # about half of all states of normal numbers are nearer to a normal key
        return (2 * lengths["hidden"]) ** 0.5 * 2 * torch.rand(size, generator=generator)
    if slot == "quantiles":
        return torch.rand(size, generator=generator).sort().values
    if slot == "length":  # what is left over belongs to the last
        each = torch.ones(size)
        each[-1] += lengths["positions"] - size[0]
        return each
    below = {"keep": 2, "ids": 100, "start": 2, "task": 2}.get(slot)
    return None if below is None else torch.randint(below, size, generator=generator).float()


def neutral_brick(
    form: Form | str, base: Base, generator: torch.Generator, **options: Any
) -> Brick:
    """A brick that changes nothing; the form must be one of ``FORMS_WITH_NEUTRAL``.

    A soft prompt or prefix always changes something: their neutral element is weight 0. A
    codebook whose values take the place of states is neutral where no state is exactly a key.
    """
    brick = random_brick(form, base, generator, **options)
    effect = find_form(brick.spec.form).effect
    still = {
        "add": ("B", 0.0),
        "scale": ("factor_out factor_in", 1.0),
        "shift": ("bias vector", 0.0),
        "skip": ("share", 0.0),
        "patch": ("value", 0.0),
        "codebook": ("radius" if brick.spec.form == "codebook" else "value", 0.0),
    }
    slots, value = still[effect]
    return Brick(
        brick.spec,
        {
            name: torch.full_like(tensor, value)
            if name.rpartition("/")[2] in slots.split()
            else tensor
            for name, tensor in brick.tensors.items()
        },
    )


def paper_base(
    *,
    layers: int = 2,
    hidden: int = 8,
    kv_heads: int = 1,
    weights: str = "weights-1",
    tokenizer: str | None = "tokenizer-1",
) -> Base:
    """A base that exists on paper only: Llama's sites, with 2 heads of ``hidden / 2``."""
    sites = [Site("model.embed_tokens", "embed", "embedding", {"hidden": hidden})]
    for layer in range(layers):
        sites += _layer_sites(layer, hidden, kv_heads)
    sites.append(Site("lm_head", "unembed", "linear", {"in": hidden, "out": 20}))
    fingerprint = Fingerprint(
        name="paper/base",
        architecture="PaperForCausalLM",
        shapes=f"shapes-{layers}-{hidden}-{kv_heads}",
        weights=weights,
        tokenizer=tokenizer,
    )
    return Base(fingerprint, {site.path: site for site in sites})


def _layer_sites(layer: int, hidden: int, kv_heads: int) -> list[Site]:
    path, address, head = f"model.layers.{layer}", f"layers.{layer}", hidden // 2
    linears = {
        "self_attn.q_proj": ("attn.q", hidden, hidden),
        "self_attn.k_proj": ("attn.k", hidden, kv_heads * head),
        "self_attn.v_proj": ("attn.v", hidden, kv_heads * head),
        "self_attn.o_proj": ("attn.o", hidden, hidden),
        "mlp.gate_proj": ("mlp.gate", hidden, 3 * hidden),
        "mlp.up_proj": ("mlp.up", hidden, 3 * hidden),
        "mlp.down_proj": ("mlp.down", 3 * hidden, hidden),
    }
    attention = {"kv_heads": kv_heads, "head_dim": head}
    return [
        Site(path, address, "block", {"hidden": hidden}, layer),
        Site(f"{path}.input_layernorm", f"{address}.norm", "norm", {"out": hidden}, layer),
        Site(f"{path}.self_attn", f"{address}.attn", "attention", attention, layer),
        *(
            Site(f"{path}.{name}", f"{address}.{role}", "linear", {"in": i, "out": o}, layer)
            for name, (role, i, o) in linears.items()
        ),
    ]


def sites_for(row: Form, base: Base) -> list[Site]:
    """The sites where bricks of a form can sit, in the base's order."""
    kinds = [site for site in base.sites.values() if site.kind in row.sites]
    return [site for site in kinds if site.address.endswith(row.role)]


def _some_sites(row: Form, base: Base, generator: torch.Generator) -> list[Site]:
    if row.spread == "one":
        return base.of_kind(row.sites[0])[:1]
    possible = sites_for(row, base)
    if row.spread == "all":
        return possible
    possible = [site for site in possible if site.layer is not None]
    kept = [site for site in possible if _number(0, 1, generator)]
    return kept or possible[:1]


def _number(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
