"""A brick: a spec and named tensors."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from brickwork.brick.spec import BrickSpec


@dataclass(frozen=True, eq=False)
class Brick:
    """These tensors, of this form, for this base, made so, for this function.

    A tensor's name is ``<site>/<slot>``: the module path of its site, and its role in the form
    (``model.layers.0.self_attn.q_proj/A``). Two bricks are equal if their content hashes are; the
    hash is taken once, so the tensors of a brick must not be changed in place.
    """

    spec: BrickSpec
    tensors: Mapping[str, Tensor]

    @cached_property
    def hash(self) -> str:
        """sha256 over the spec and all tensors (name, dtype, shape, bytes), in hex."""
        digest = hashlib.sha256(canonical_json(self.spec.model_dump(mode="json")).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            # JSON, so that no name can look like the end of one tensor and the start of another.
            header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            digest.update(canonical_json(header).encode())
            flat = tensor.reshape(-1)
            if flat.stride() != (1,):  # a single number may have any stride and be contiguous
                flat = flat.clone(memory_format=torch.contiguous_format)
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    @cached_property
    def by_site(self) -> dict[str, dict[str, Tensor]]:
        """The tensors as ``{site: {slot: tensor}}``, in the spec's order of sites."""
        sites: dict[str, dict[str, Tensor]] = {site: {} for site in self.spec.sites}
        for name in sorted(self.tensors):
            site, _, slot = name.rpartition("/")
            sites.setdefault(site, {})[slot] = self.tensors[name]
        return {site: slots for site, slots in sites.items() if slots}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Brick) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)


def canonical_json(document: object) -> str:
    """JSON whose bytes depend on the content alone.

    >>> canonical_json({"b": 1, "a": [0.5, "é"]})
    '{"a":[0.5,"é"],"b":1}'

    Raises:
        ValueError: if a number is NaN or infinite, for which JSON has no word.
    """
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
