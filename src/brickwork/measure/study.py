"""One analysis at work: the model, its instances as tokens, and the folder that keeps what is done.

What takes long is kept under the folder as soon as it is there, by a key that says what it was
made of; the same analysis started again takes it from there.
"""

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from brickwork.brick.durable import write_file
from brickwork.brick.files import json_bytes, read_json, tensor_bytes
from brickwork.errors import BrickFormatError
from brickwork.measure.instances import Instance, content_hash, encode_instances, split_instances
from brickwork.measure.results import FORMAT, DataFacts, FunctionFacts, Settings
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel
from brickwork.model.train import Encoded

# Shows a person how far a step is: what is being done and its number of parts in, a function to
# call with the parts just done out.
Watch = Callable[[str, float], AbstractContextManager[Callable[[float], None]]]


def unwatched(_description: str, _total: float) -> AbstractContextManager[Callable[[float], None]]:
    """Shows nothing."""
    return nullcontext(lambda _steps: None)


@dataclass(frozen=True, eq=False)
class Side:
    """The instances of one side of the split, as they are measured."""

    instances: Sequence[Instance]
    sequences: Sequence[Encoded]
    labels: Int[Tensor, " samples"]

    def of(self, function: int) -> Int[Tensor, " some"]:
        """The samples of a functionality."""
        return (self.labels == function).nonzero().squeeze(1)


@dataclass(eq=False)
class Study:
    """What every step of an analysis needs; made by ``open_study``."""

    loaded: LoadedModel
    functions: list[str]
    localisation: Side
    evaluation: Side
    facts: DataFacts
    settings: Settings
    folder: Path
    watch: Watch = unwatched
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0

    @cached_property
    def model_key(self) -> str:
        """Says which model computes, with which code, and on what kind of device."""
        config = {k: v for k, v in self.loaded.model.config.to_dict().items()
                  if k != "_name_or_path"}  # fmt: skip
        return digest(
            version("brickwork"),
            str(FORMAT),
            exact_hash(self.loaded.model),
            json.dumps(config, sort_keys=True, default=str),
            str(self.loaded.dtype),
            self.loaded.device.type,
        )

    def rows_key(self, side: Side) -> str:
        """Says what the rows of some instances depend on."""
        return digest(self.model_key, str([(s.ids, s.response_start) for s in side.sequences]))

    @cached_property
    def key(self) -> str:
        """Says what all numbers depend on; the name of the data is no number."""
        return digest(
            self.rows_key(self.localisation),
            self.rows_key(self.evaluation),
            self.settings.model_dump_json(),
            self.facts.model_copy(update={"name": ""}).model_dump_json(),
            str([i.source for i in self.localisation.instances]),
        )

    def generator(self, *purpose: object) -> torch.Generator:
        """A random stream of its own for each purpose, so that steps can be left out."""
        seed = digest(str(self.settings.seed), *map(str, purpose))
        return torch.Generator().manual_seed(int(seed[:15], 16))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Account for the time of a step, also over several runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            self.peak_memory = max(self.peak_memory, _most_memory())
            account = {"key": self.key, "seconds": self.seconds, "peak_memory": self.peak_memory}
            write_file(self.folder / "steps.json", json_bytes("steps.json", account))

    def kept(
        self, name: str, *depends: str, make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors from the folder, or made and put there.

        Args:
            name: of the result; a path of one folder and one file name.
            depends: what the result depends on besides the study's key.
            make: called if they are not there.
        """
        path = self.folder / "kept" / f"{name}-{digest(self.key, *depends)[:16]}.safetensors"
        try:
            return safetensors.load(path.read_bytes())
        except (FileNotFoundError, SafetensorError):  # a damaged one is made anew
            made = dict(make())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, tensor_bytes(made))
        return made


def exact_hash(model: CausalModel) -> str:
    """The sha256 of all parameters, to the bit; a base's fingerprint rounds them."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
        content = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(content.numpy().data)
    return found.hexdigest()


def digest(*parts: str) -> str:
    """The sha256 of some texts, in hex."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def open_study(
    loaded: LoadedModel,
    instances: Sequence[Instance],
    settings: Settings,
    folder: Path,
    *,
    name: str = "",
    longest: int = 512,
    watch: Watch = unwatched,
) -> Study:
    """Prepare an analysis, or go on with one.

    Args:
        loaded: the model with its tokenizer.
        instances: labelled; of two functionalities at least.
        settings: what decides the numbers.
        folder: where results go; made if it is not there.
        name: of the data, for the report.
        longest: tokens after which an instance is cut; never more than the model can.
        watch: shows progress.

    Raises:
        DataError: if the data cannot be split, or too little of it is left.
        ConfigurationError: if the model has no tokenizer.
    """
    config = loaded.model.config.get_text_config()
    longest = min(longest, getattr(config, "max_position_embeddings", longest))
    encoded = encode_instances(loaded, instances, longest)
    pairs = [(i, s) for i, s in zip(instances, encoded.sequences, strict=True) if s is not None]
    usable = [instance for instance, _ in pairs]
    split = split_instances(usable, evaluation=settings.evaluation, seed=settings.seed)
    functions = sorted({instance.functionality for instance in usable})
    sides = [_side(pairs, chosen, functions) for chosen in (split.localisation, split.evaluation)]
    facts = DataFacts(
        name=name,
        sha256=content_hash(instances),
        functions=[_function_facts(f, i, *sides) for i, f in enumerate(functions)],
        longest=longest,
        cut=encoded.cut,
        left_out=encoded.left_out,
        sources=len({instance.source for instance in usable if instance.source}),
    )
    study = Study(loaded, functions, sides[0], sides[1], facts, settings, folder, watch)
    _resume_account(study)
    return study


def _side(
    pairs: Sequence[tuple[Instance, Encoded]], chosen: Sequence[int], functions: Sequence[str]
) -> Side:
    instances = [pairs[i][0] for i in chosen]
    labels = torch.tensor([functions.index(i.functionality) for i in instances])
    return Side(instances, [pairs[i][1] for i in chosen], labels)


def _function_facts(name: str, number: int, localisation: Side, evaluation: Side) -> FunctionFacts:
    own = [side.sequences[i] for side in (localisation, evaluation) for i in side.of(number)]
    return FunctionFacts(
        name=name,
        localisation=len(localisation.of(number)),
        evaluation=len(evaluation.of(number)),
        prompt_tokens=sum(s.response_start for s in own),
        response_tokens=sum(len(s.ids) - s.response_start for s in own),
    )


def _resume_account(study: Study) -> None:
    """Take over the times of an earlier run of the same analysis."""
    try:
        account: dict[str, Any] = read_json(study.folder, "steps.json")
    except BrickFormatError:  # none, or none that can be used: times are told anew
        return
    if account.get("key") == study.key:
        study.seconds = account["seconds"]
        study.peak_memory = account["peak_memory"]


def _most_memory() -> int:
    """Bytes that this process held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
