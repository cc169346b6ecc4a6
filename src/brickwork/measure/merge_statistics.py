"""What a merge may weigh by, measured once and kept: a folder of one tensor for each parameter.

``statistics.safetensors`` holds float32 tensors under the names of the checkpoint,
``statistics.json`` says of which model and data they are. The kind ``fisher`` has a tensor of
every parameter's shape; the kind ``gram`` one matrix, inputs by inputs, for the weight of every
linear map.
"""

import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from brickwork.brick.base import Fingerprint
from brickwork.brick.durable import require_free, sync_folder
from brickwork.brick.files import json_bytes, read_json
from brickwork.brick.spec import explain
from brickwork.errors import BrickFormatError, DataError, MergeError, ModelError, listed
from brickwork.measure.fisher import add_fisher
from brickwork.measure.grams import add_grams, chosen_weights, find_readers, transposed_weights
from brickwork.measure.merge_sums import Sums, file_hash
from brickwork.measure.results import Result
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel
from brickwork.model.saved import as_saved
from brickwork.model.shards import Held, read_header
from brickwork.model.train import Encoded

ABOUT, TENSORS = "statistics.json", "statistics.safetensors"
Kind = Literal["fisher", "gram"]
KINDS: Mapping[str, str] = {
    "fisher": "mean squared gradient of every parameter (Matena and Raffel 2021)",
    "gram": "second moments of what every linear map reads (RegMean, Jin et al. 2022)",
}
Advance = Callable[[float], None]


@dataclass(frozen=True)
class Measurement:
    """What to measure, and on what.

    Attributes:
        kind: one of ``KINDS``.
        labels: for ``fisher``: answers of the data, or tokens drawn from the model.
        tokens: for ``gram``: after how many tokens it is enough; None: all. Instances are drawn at
            random until then.
        seed: decides what is drawn.
        data: a name for the data.
        data_sha256: what identifies it.
        sites: for ``gram``: measure these linear maps alone, by their addresses; none: all.
    """

    kind: Kind
    labels: Literal["given", "sampled"] = "given"
    tokens: int | None = None
    seed: int = 0
    data: str = ""
    data_sha256: str = ""
    sites: tuple[str, ...] = ()


class StatisticsSpec(Result):
    """What ``statistics.json`` says."""

    format: Literal[1] = 1
    kind: Kind
    base: Fingerprint
    prefix: str
    """What some checkpoints put before the names of parameters, and others leave out."""
    transposed: tuple[str, ...]
    """Weights of linear maps that are inputs by outputs; all others are outputs by inputs."""
    labels: Literal["given", "sampled", ""]
    data: str
    data_sha256: str
    instances: int
    tokens: int
    seed: int
    same: dict[str, str]
    """Weights that have no matrix of their own, for they read what another reads."""
    sha256: str
    brickwork: str
    sites: tuple[str, ...] = ()
    """Addresses of the linear maps that were measured, if not all were."""


def statistics_bytes(model: CausalModel, kind: Kind, sites: Sequence[str] = ()) -> int:
    """The most that the tensors will take; an outline of a model will do.

    Raises:
        UnknownNameError: if a site is none that the kind ``gram`` measures.
    """
    if kind == "fisher":
        return 4 * sum(p.numel() for p in model.parameters())
    return 4 * sum(size**2 for size in chosen_weights(model, sites).values())


def collect_statistics(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    measurement: Measurement,
    folder: Path,
    *,
    advance: Advance = lambda _steps: None,
) -> StatisticsSpec:
    """Measure, and write the folder: all of it, or nothing.

    Sums are kept in the file behind a memory map, so that the memory beside the model is that of
    one batch.

    Args:
        loaded: the model; it is left as it is.
        sequences: prompts with responses.
        measurement: what to measure.
        folder: where; there must be nothing yet.
        advance: told the number of instances that have just been done.

    Raises:
        DataError: if there is no sequence, something is there already, or the disk is too small.
        ModelError: if the model cannot be measured so.
        UnknownNameError: if a site is none that the kind measures.
    """
    chosen = _within(sequences, measurement)
    if not chosen:
        raise DataError("statistics of 0 instances were asked for; give at least one.")
    require_free(folder, "a folder of statistics", DataError)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=".brickwork-", dir=folder.parent))
    try:
        new = workshop / "new"
        new.mkdir()
        collect = {"fisher": _collect_fisher, "gram": _collect_grams}[measurement.kind]
        same = collect(loaded, chosen, measurement, new / TENSORS, advance)
        spec = _spec(loaded, chosen, measurement, same, file_hash(new / TENSORS))
        (new / ABOUT).write_bytes(json_bytes(ABOUT, spec.model_dump(mode="json")))
        sync_folder(new)
        require_free(folder, "a folder of statistics", DataError)
        new.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return spec


class Statistics:
    """An open folder of statistics; get one by ``open_statistics``."""

    def __init__(self, folder: Path, spec: StatisticsSpec, held: Mapping[str, Held]) -> None:
        self.folder, self.spec, self._held = folder, spec, held
        self._map = np.memmap(folder / TENSORS, dtype=np.uint8, mode="c")

    @property
    def names(self) -> list[str]:
        """The parameters that have a tensor, as the measured model's checkpoint names them."""
        return [*self._held, *self.spec.same]

    def tensor(self, name: str) -> Tensor | None:
        """The tensor of a parameter, behind a memory map; None if that parameter has none."""
        found = self._find(name)
        if found is None:
            return None
        held = self._held[found]
        window = np.asarray(self._map[held.offset : held.offset + held.bytes])
        return torch.from_numpy(window).view(torch.float32).reshape(held.shape)

    def transposed(self, name: str) -> bool:
        """Whether the weight of that name is inputs by outputs."""
        return any(spelling in self.spec.transposed for spelling in self._spellings(name))

    def require(self, architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse to weigh the parameters of a model that these statistics cannot be of.

        Args:
            architecture: the model's ``model_type``.
            shapes: of its parameters, by name.

        Raises:
            MergeError: with everything that does not fit.
        """
        problems = []
        if self.spec.sites:
            problems.append(
                f"they are of {', '.join(self.spec.sites[:3])} alone ({len(self.spec.sites)} "
                "sites), and a merge weighs all linear maps"
            )
        if architecture != self.spec.base.architecture:
            problems.append(f"they are of the architecture {self.spec.base.architecture!r}")
        for name, shape in shapes.items():
            held = self._held.get(self._find(name) or "")
            wanted = self._shape_for(name, shape)
            if held is not None and held.shape != wanted:
                problems.append(f"{name} has {list(held.shape)}, not {list(wanted)}")
        unknown = set(self.names) - {name for full in shapes for name in self._spellings(full)}
        problems += [f"{name} is no parameter of the model" for name in sorted(unknown)]
        if problems:
            raise MergeError(
                f"the statistics in {str(self.folder)!r} are not of this {architecture} model: "
                f"{listed(problems)}\nmeasure them again on the model that is merged."
            )

    def _shape_for(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.spec.kind == "fisher" or not shape:
            return shape
        inputs = shape[0 if self.transposed(name) else -1]
        return (inputs, inputs)

    def _find(self, name: str) -> str | None:
        for spelling in self._spellings(name):
            own = self.spec.same.get(spelling, spelling)
            if own in self._held:
                return own
        return None

    def _spellings(self, name: str) -> list[str]:
        prefix = f"{self.spec.prefix}."
        return [name, prefix + name, name.removeprefix(prefix)]


def open_statistics(folder: Path, kind: Kind | None = None) -> Statistics:
    """The statistics in a folder.

    Args:
        folder: one that ``collect_statistics`` has written.
        kind: refuse any other.

    Raises:
        MergeError: if it holds none, is damaged, or they are of another kind.
    """
    try:
        spec = StatisticsSpec.model_validate(read_json(folder, ABOUT))
        held = read_header(folder / TENSORS)
    except ValidationError as error:
        raise MergeError(
            f"{folder / ABOUT} describes no statistics ({explain(error)}); measure them again."
        ) from None
    except (BrickFormatError, ModelError) as error:
        raise MergeError(
            f"no statistics can be read from {str(folder)!r}: {error} Write them with "
            "`brickwork statistics`."
        ) from None
    if kind is not None and spec.kind != kind:
        raise MergeError(
            f"the merge weighs by statistics of the kind {kind!r}, but {str(folder)!r} holds "
            f"{spec.kind!r}; measure the other kind."
        )
    odd = [name for name, own in spec.same.items() if own not in held]
    odd += [name for name, one in held.items() if one.dtype != torch.float32]
    if odd or file_hash(folder / TENSORS) != spec.sha256:
        raise MergeError(
            f"{folder / TENSORS} is not the file that {ABOUT} describes; measure them again."
        )
    return Statistics(folder, spec, held)


def _within(sequences: Sequence[Encoded], measurement: Measurement) -> list[Encoded]:
    """Sequences in random order until there are enough tokens."""
    if measurement.kind == "fisher" or measurement.tokens is None:
        return list(sequences)
    chosen, tokens = [], 0
    for sequence in random.Random(measurement.seed).sample(sequences, len(sequences)):
        if tokens >= measurement.tokens:
            break
        chosen.append(sequence)
        tokens += len(sequence.ids)
    return chosen


def _collect_fisher(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    measurement: Measurement,
    file: Path,
    advance: Advance,
) -> dict[str, str]:
    model = loaded.model
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    draw = None
    if measurement.labels == "sampled":
        draw = torch.Generator().manual_seed(measurement.seed)
    scratch = file.with_name("sums")
    sums = Sums(scratch, shapes)
    add_fisher(model, sequences, sums.tensors, draw=draw, advance=advance)
    for total in sums.tensors.values():
        total.div_(len(sequences))
    saved = as_saved(model, sums.tensors)
    if {name: tuple(tensor.shape) for name, tensor in saved.items()} == shapes:
        sums.close()
        scratch.rename(file)
        return {}
    final = Sums(file, {name: tuple(tensor.shape) for name, tensor in saved.items()})
    for name, tensor in saved.items():
        final.tensors[name].copy_(tensor)
    final.close()
    sums.close()
    scratch.unlink()
    return {}


def _collect_grams(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    measurement: Measurement,
    file: Path,
    advance: Advance,
) -> dict[str, str]:
    model, readers = loaded.model, find_readers(loaded.model, measurement.sites)
    named = {name: _saved_names(model, name) for name in (*readers.sizes, *readers.same)}
    own = {name: named[name][0] for name in readers.sizes}
    sums = Sums(file, {own[name]: (size, size) for name, size in readers.sizes.items()})
    totals = {name: sums.tensors[own[name]] for name in readers.sizes}
    add_grams(model, sequences, totals, advance=advance)
    tokens = sum(len(s.ids) for s in sequences)
    for total in totals.values():
        total.div_(tokens)
    sums.close()
    same = {alias: own[name] for name in own for alias in named[name][1:]}
    return same | {
        alias: own[leader] for name, leader in readers.same.items() for alias in named[name]
    }


def _saved_names(model: CausalModel, name: str) -> list[str]:
    """What the checkpoint calls a parameter; several names if it keeps it in parts."""
    return list(as_saved(model, {name: model.get_parameter(name).detach().to("meta")}))


def _spec(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    measurement: Measurement,
    same: dict[str, str],
    sha256: str,
) -> StatisticsSpec:
    return StatisticsSpec(
        kind=measurement.kind,
        base=loaded.base.fingerprint,
        prefix=loaded.model.base_model_prefix,
        transposed=_transposed(loaded.model) if measurement.kind == "gram" else (),
        labels=measurement.labels if measurement.kind == "fisher" else "",
        data=measurement.data,
        data_sha256=measurement.data_sha256,
        instances=len(sequences),
        tokens=sum(len(s.ids) for s in sequences),
        seed=measurement.seed,
        same=same,
        sha256=sha256,
        brickwork=version("brickwork"),
        sites=measurement.sites if measurement.kind == "gram" else (),
    )


def _transposed(model: CausalModel) -> tuple[str, ...]:
    return tuple(alias for w in transposed_weights(model) for alias in _saved_names(model, w))
