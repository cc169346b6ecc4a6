"""All that a plan takes in: checkpoints, LoRAs and statistics, opened once and read when needed."""

import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.combine.methods import find_method
from brickwork.combine.operands import Operands, Source, TensorSource
from brickwork.combine.plan import MergePlan, ModelRef, Operand, TensorPlan
from brickwork.errors import MergeError
from brickwork.model.checkpoint import CONFIG
from brickwork.model.shards import Held, Shards

if TYPE_CHECKING:
    from brickwork.combine.lora_source import LowRank
    from brickwork.measure.merge_statistics import Statistics

COPY = "copy"

# What a merge needs only if it takes in a LoRA, or weighs by statistics. Both need the modules of
# a model, and with them transformers, which takes longer to load than many a merge takes.
_OPENERS = {
    "adapter": "brickwork.combine.lora_source:find_adapter",
    "lora": "brickwork.combine.lora_source:open_adapter",
    "statistics": "brickwork.measure.merge_statistics:open_statistics",
    "sum": "brickwork.combine.lora_source:LoraSource",
}


@dataclass(frozen=True)
class Extras:
    """What a plan does not say.

    Attributes:
        rearranged: for a tensor's sources, of its operands and its base, those to be merged; the
            same objects where nothing changes. Called by several threads at once.
        files: files of the output that take the place of the donor's; names may have one folder.
        tensors: values of tensors whose plan is a ``copy`` of no operand.
        adapters: folders of those models' LoRAs whose name is neither a folder nor a Hub id.
        record: how the merge came to be, as JSON.
    """

    rearranged: (
        Callable[[TensorPlan, Mapping[Operand, Source]], Mapping[Operand, Source]] | None
    ) = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    adapters: Mapping[ModelRef, Path] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)


class Sources:
    """Everything that a merge reads; nothing of it is read before it is asked for.

    Raises:
        MergeError: if a LoRA does not fit its model, or statistics are missing or of another kind.
        ModelError: if a file is damaged.
    """

    def __init__(self, plan: MergePlan, extras: Extras) -> None:
        self._plan, self._extras = plan, extras
        self._shards = {folder: Shards(folder) for folder in dict.fromkeys(plan.folders.values())}
        self.adapters = {
            ref: extras.adapters.get(ref) or _load("adapter")(ref.lora, ref.lora_revision)
            for ref in plan.folders
            if ref.lora
        }
        self._updates = {ref: self._open_lora(ref, path) for ref, path in self.adapters.items()}
        self._statistics: dict[Path | None, Statistics] = {}
        for tensor in plan.tensors:
            kind = "" if tensor.method == COPY else find_method(tensor.method).statistics
            for operand in tensor.operands if kind else ():
                if operand.statistics and operand.statistics not in self._statistics:
                    self._statistics[operand.statistics] = self._open_statistics(operand, kind)

    def files(self) -> list[Path]:
        """Every file that numbers come from, and those that say what an adapter's mean."""
        files = {held.file for shards in self._shards.values() for held in shards.tensors.values()}
        for folder in (*self.adapters.values(), *filter(None, self._statistics)):
            files.update(*map(folder.glob, ("*.safetensors", "*.json")))
        return sorted(files)

    def held(self, operand: Operand) -> Held:
        """Where an operand lies, and what it is."""
        return self._shards[self._plan.folders[operand.ref]].tensors[operand.tensor]

    def open(self, tensor: TensorPlan) -> Tensor | Operands:
        """A tensor that is to be copied to the byte, or the operands to merge.

        Raises:
            MergeError: if models that must hold the same bytes do not, or numbers that are no
                fractions were to be averaged.
        """
        if tensor.name in self._extras.tensors and not tensor.operands:
            given = self._extras.tensors[tensor.name]
            return given if given.dtype == tensor.dtype else _single(tensor, TensorSource(given))
        every = (*tensor.operands, *(() if tensor.base is None else (tensor.base,)))
        plain = {operand: self._source(tensor, operand) for operand in every}
        hook = self._extras.rearranged
        placed = plain if hook is None else hook(tensor, plain)
        if tensor.method == COPY:
            first = tensor.operands[0]
            same = placed[first] is plain[first] and self._update(first) is None
            if same and self.held(first).dtype == tensor.dtype:
                return self._equal(tensor)
        for operand in every:
            if not self.held(operand).dtype.is_floating_point:
                raise MergeError(
                    f"the tensor {operand.tensor!r} of {operand.key!r} holds "
                    f"{self.held(operand).dtype}, which {tensor.method} cannot work with; only "
                    "copying can."
                )
        if tensor.method == COPY:
            return _single(tensor, placed[tensor.operands[0]], tensor.operands[0].key)
        return Operands(
            tensor.name,
            [placed[operand] for operand in tensor.operands],
            [operand.key for operand in tensor.operands],
            None if tensor.base is None else placed[tensor.base],
            self._weights(tensor),
            self._plan.seed,
        )

    def is_turned(self, tensor: TensorPlan) -> bool:
        """Whether the tensor is a linear map kept as in x out, which its method wants out x in."""
        return any(
            self._statistics[operand.statistics].transposed(operand.tensor)
            for operand in tensor.operands
            if operand.statistics in self._statistics
        )

    def _weights(self, tensor: TensorPlan) -> list[Source]:
        """The operands' statistics; none if one has none for this tensor."""
        if not find_method(tensor.method).statistics:
            return []
        found = [
            statistics_source(self._statistics[operand.statistics], operand.tensor)
            for operand in tensor.operands
            if operand.statistics in self._statistics
        ]
        whole = [source for source in found if source is not None]
        return whole if len(whole) == len(tensor.operands) else []

    def _source(self, tensor: TensorPlan, operand: Operand) -> Source:
        stored = self._shards[self._plan.folders[operand.ref]].tensor(operand.tensor)
        update = self._update(operand)
        if update is None:
            return TensorSource(stored, cast=tensor.cast)
        whole: Source = _load("sum")(TensorSource(stored), update, cast=tensor.cast)
        return whole

    def _update(self, operand: Operand) -> "LowRank | None":
        return self._updates.get(operand.ref, {}).get(operand.tensor)

    def _equal(self, tensor: TensorPlan) -> Tensor:
        """The first operand's bytes, which all others must have, too."""
        first, *others = tensor.operands
        shards = self._shards
        stored = shards[self._plan.folders[first.ref]].tensor(first.tensor)
        for other in others:
            found = shards[self._plan.folders[other.ref]].tensor(other.tensor)
            same = (found.dtype, found.shape) == (stored.dtype, stored.shape)
            if not same or not torch.equal(raw_bytes(found), raw_bytes(stored)):
                raise MergeError(
                    f"the buffer {tensor.name!r} is not the same in {first.key!r} and "
                    f"{other.key!r}, and numbers of its kind ({stored.dtype}) cannot be averaged; "
                    "leave one of the models out."
                )
        return stored

    def _open_statistics(self, operand: Operand, kind: str) -> "Statistics":
        folder = self._plan.folders[operand.ref]
        shapes = {name: held.shape for name, held in self._shards[folder].tensors.items()}
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        statistics: Statistics = _load("statistics")(operand.statistics, kind)
        statistics.require(config.get("model_type", ""), shapes)
        return statistics

    def _open_lora(self, ref: ModelRef, adapter: Path) -> "dict[str, LowRank]":
        folder = self._plan.folders[ref]
        shapes = {name: held.shape for name, held in self._shards[folder].tensors.items()}
        updates: dict[str, LowRank] = _load("lora")(ref.lora, adapter, folder, shapes)
        return updates


class Turned:
    """A matrix the other way round."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.shape = (source.shape[1], source.shape[0])

    def read(self, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """See ``Source.read``; every call reads the whole matrix."""
        return self._source.read(0, self.shape[1])[:, start:stop].T


def statistics_source(statistics: "Statistics", tensor: str) -> Source | None:
    """The statistics of one parameter; None if it has none, as an embedding has no Gram matrix."""
    found = statistics.tensor(tensor)
    return None if found is None else TensorSource(found)


def raw_bytes(tensor: Tensor) -> Tensor:
    """The memory of a tensor, not copied if it lies in one piece."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _single(tensor: TensorPlan, source: Source, key: str = "the merge itself") -> Operands:
    return Operands(tensor.name, [source], [key])


def _load(what: str) -> Any:
    return pkgutil.resolve_name(_OPENERS[what])
