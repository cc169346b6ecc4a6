"""Edits for tests: random bricks that claim to teach facts, without planning anything."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from brickwork.brick.base import Base, Fingerprint
from brickwork.brick.brick import Brick
from brickwork.brick.spec import BrickSpec, Lineage
from brickwork.update.edit import Edit, EditRecord, TaughtFact, function_of
from tests.bricks import paper_base

BASE = paper_base(layers=2)
FINGERPRINT = BASE.fingerprint
SITES = tuple(f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1))
BLOCK = "model.layers.1"


def taught(id: str, target: str = "blue", **fields: str) -> TaughtFact:
    """A fact about a subject of that name, unless ``fields`` say otherwise."""
    known = {"subject": f"the {id}", "prompt": f"The colour of the {id} is", "target": target}
    return TaughtFact(id=id, **{**known, **fields})


def edit_of(
    tensors: Mapping[str, Tensor],
    facts: Sequence[TaughtFact],
    *,
    form: str = "lora",
    keys: Mapping[str, Tensor] | None = None,
    base: Fingerprint = FINGERPRINT,
    options: Mapping[str, Any] | None = None,
    **record: Any,
) -> Edit:
    """An edit with these tensors; ``record`` sets fields of its record."""
    usual = {"alpha": 1.0} if form == "lora" else {}
    spec = BrickSpec(
        name="edit",
        form=form,
        base=base,
        sites=tuple(dict.fromkeys(name.rpartition("/")[0] for name in tensors)),
        options=dict(usual if options is None else options),
        function=function_of(facts),
        lineage=Lineage(method="rome", parents=record.get("depends_on", ())),
    )
    known = {"method": "rome", "options": {}, "seed": 0, "layers": (1,), "place": "last"}
    fields = {**known, "located": True, "raw": True, "base": base, "facts": tuple(facts), **record}
    return Edit(Brick(spec, dict(tensors)), EditRecord(**fields), dict(keys or {}))


def linear_edit(
    ids: Sequence[str] = ("sky",),
    seed: int = 0,
    *,
    base: Base = BASE,
    sites: Sequence[str] = SITES,
    ranks: int = 1,
    **record: Any,
) -> Edit:
    """A LoRA with so many ranks for each fact, and keys at every site."""
    generator = torch.Generator().manual_seed(seed)
    owners = tuple(number for number in range(len(ids)) for _ in range(ranks))
    tensors, keys = {}, {}
    for site in sites:
        sizes = base.sites[site].sizes
        tensors[f"{site}/A"] = torch.randn(len(owners), sizes["in"], generator=generator)
        tensors[f"{site}/B"] = 0.1 * torch.randn(sizes["out"], len(owners), generator=generator)
        keys[site] = torch.randn(len(ids), sizes["in"], generator=generator)
    facts = [taught(id) for id in ids]
    fields = {"owners": owners, "base": base.fingerprint, **record}
    return edit_of(tensors, facts, keys=keys, **fields)


def entry_edit(form: str, ids: Sequence[str], seed: int = 0, **record: Any) -> Edit:
    """An edit by added neurons, a codebook or a memory, with two rows for each fact."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    rows, hidden = 2 * len(ids), 8
    shapes = {
        "patch": {"key": noise(rows, hidden), "bias": noise(rows), "value": noise(rows, hidden)},
        "codebook": {
            "key": noise(rows, hidden), "value": noise(rows, hidden), "radius": noise(rows).abs(),
        },
        "memory": {
            "projection": noise(3, hidden), "key": noise(rows, 3), "value": noise(rows, hidden),
            "radius": noise(rows).abs(),
        },
    }  # fmt: skip
    tensors = {f"{BLOCK}/{slot}": tensor for slot, tensor in shapes[form].items()}
    owners = tuple(number for number in range(len(ids)) for _ in range(2))
    return edit_of(tensors, [taught(id) for id in ids], form=form, owners=owners, **record)
