"""A partition: the neurons of every FFN divided into groups, as data.

Groups are the self-organized bricks of Xiao et al. 2024 (arXiv:2409.02877), 2.1 and 4.1. Resident
neurons can be left out of the groups: they are shared, which means always kept.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from torch import Tensor

from brickwork.brick.base import Fingerprint
from brickwork.brick.brick import canonical_json
from brickwork.brick.files import json_bytes, read_json, read_tensors, tensor_bytes, write_folder
from brickwork.brick.spec import explain
from brickwork.errors import BrickFormatError

SHARED = -1
SPEC_FILE, TENSOR_FILE = "partition.json", "partition.safetensors"
FORMAT = 1
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class PartitionSpec(BaseModel):
    """How a partition came to be, and for which base; ``functions`` name the profile's columns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Fingerprint
    method: str
    arguments: dict[str, JsonValue] = {}
    data: str = ""
    seed: int = 0
    functions: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Partition:
    """Which group every neuron of every FFN belongs to.

    Attributes:
        owners: for each layer the group of every neuron, counted from 0, or ``SHARED``.
        profile: for each layer how much each group serves each functionality; empty if it was not
            measured.
    """

    spec: PartitionSpec
    owners: Mapping[int, Int[Tensor, " neurons"]]
    profile: Mapping[int, Float[Tensor, "groups functions"]] = field(default_factory=dict)

    def groups(self, layer: int) -> int:
        """How many groups a layer has."""
        return int(self.owners[layer].max()) + 1

    def members(self, layer: int) -> list[Int[Tensor, " size"]]:
        """The neurons of each group, ascending."""
        owner = self.owners[layer]
        return [(owner == group).nonzero().squeeze(1) for group in range(self.groups(layer))]

    def shared(self, layer: int) -> Int[Tensor, " shared"]:
        """The neurons that are always kept, ascending."""
        return (self.owners[layer] == SHARED).nonzero().squeeze(1)

    @cached_property
    def hash(self) -> str:
        """sha256 over the spec, the owners and the profile, in hex."""
        digest = hashlib.sha256(canonical_json(self.spec.model_dump(mode="json")).encode())
        digest.update(tensor_bytes(_tensors(self)))
        return digest.hexdigest()


def write_partition(partition: Partition, folder: Path) -> None:
    """Write the partition as a folder, all of it or nothing.

    Raises:
        BrickFormatError: if the partition is not well formed, or the folder is taken by anything
            but a partition.
    """
    found = _problems(partition)
    if found:
        raise BrickFormatError(f"the partition is not well formed: {'; '.join(found)}.")
    require_place(folder)
    spec = partition.spec.model_dump(mode="json")
    document = {"format": FORMAT, "hash": partition.hash, **spec}
    files = {
        SPEC_FILE: json_bytes(SPEC_FILE, document),
        TENSOR_FILE: tensor_bytes(_tensors(partition)),
    }
    write_folder(files, folder)


def require_place(folder: Path) -> None:
    """Refuse a folder that holds anything but a partition, which a new one would replace.

    Raises:
        BrickFormatError: if it does.
    """
    if folder.exists() and not (folder / SPEC_FILE).is_file() and any(folder.iterdir()):
        raise BrickFormatError(
            f"{folder} exists and holds no partition, so it is not replaced; choose another folder."
        )


def read_partition(folder: Path) -> Partition:
    """The partition of a folder, checked against its own hash.

    Raises:
        BrickFormatError: if a file is missing, damaged, changed or not what it should be.
    """
    document = read_json(folder, SPEC_FILE)
    written, wanted = document.pop("format", None), document.pop("hash", None)
    if type(written) is not int or written != FORMAT:
        raise BrickFormatError(
            f"{folder / SPEC_FILE} is of format {written!r}; this version reads {FORMAT}."
        )
    try:
        spec = PartitionSpec.model_validate(document)
    except ValidationError as error:
        raise BrickFormatError(
            f"{folder / SPEC_FILE} does not describe a partition: {explain(error)}"
        ) from None
    partition = Partition(spec, *_parts(read_tensors(folder, TENSOR_FILE), folder))
    found = _problems(partition)
    if found:
        raise BrickFormatError(f"{folder} holds no sound partition: {'; '.join(found)}.")
    if wanted != partition.hash:
        raise BrickFormatError(
            f"{folder} has changed since it was written (hash {partition.hash[:12]}, expected "
            f"{str(wanted)[:12]}); make the partition again."
        )
    return partition


def _tensors(partition: Partition) -> dict[str, Tensor]:
    owners = {f"layers.{n}.owners": o.to(torch.int32) for n, o in sorted(partition.owners.items())}
    profile = {f"layers.{n}.profile": p.float() for n, p in sorted(partition.profile.items())}
    return owners | profile


def _parts(tensors: Mapping[str, Tensor], folder: Path) -> tuple[dict[int, Any], dict[int, Any]]:
    parts: dict[str, dict[int, Any]] = {"owners": {}, "profile": {}}
    for name, tensor in tensors.items():
        word, number, part = (*name.split("."), "", "")[:3]
        if word != "layers" or not number.isdecimal() or part not in parts:
            raise BrickFormatError(
                f"{folder / TENSOR_FILE} holds {name!r}, which no partition has; make it again."
            )
        parts[part][int(number)] = tensor
    return dict(sorted(parts["owners"].items())), dict(sorted(parts["profile"].items()))


def _problems(partition: Partition) -> list[str]:
    found = [] if partition.owners else ["it has no layer"]
    found += [
        f"layers.{layer}: has a profile and no owners"
        for layer in partition.profile
        if layer not in partition.owners
    ]
    for layer, owner in partition.owners.items():
        if owner.dim() != 1 or not len(owner) or owner.dtype not in _WHOLE:
            found.append(f"layers.{layer}: owners are a list of whole numbers, one for each neuron")
        elif int(owner.min()) < SHARED or int(owner.max()) < 0:
            found.append(f"layers.{layer}: a group is counted from 0, or is {SHARED} (shared)")
        elif int(owner.max()) >= len(owner) or 0 in torch.bincount(owner[owner >= 0].long()):
            found.append(f"layers.{layer}: a group has no neurons")
        elif layer in partition.profile:
            shape = (partition.groups(layer), len(partition.spec.functions))
            if tuple(partition.profile[layer].shape) != shape:
                found.append(f"layers.{layer}: the profile is {list(shape)} in size")
    return found
