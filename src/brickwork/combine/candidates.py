"""Candidates of a search made and measured in memory: of bricks, or of whole models."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.combine.bricks import combine_by, keys_of
from brickwork.combine.methods import find_method, merge_tensors
from brickwork.combine.products import Recipe
from brickwork.combine.search_space import Candidate
from brickwork.combine.weighted import WeightedBricks
from brickwork.errors import ConfigurationError, DataError, MergeError, UnknownNameError
from brickwork.measure.instances import Instance
from brickwork.measure.perplexity import response_losses
from brickwork.measure.updates import site_seed
from brickwork.model.fingerprint import named_tensors, weights_hash
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel
from brickwork.model.train import Encoded

Pair = tuple[Instance, Encoded]


@dataclass(frozen=True)
class Split:
    """The instances that are searched on, and those that the report shows beside."""

    search: Sequence[Pair]
    held_out: Sequence[Pair]


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> Split:
    """Set aside about this share of every functionality; equal prompts stay together.

    Raises:
        DataError: if a side is left without instances of a functionality.
    """

    def draw(instance: Instance) -> float:
        digest = hashlib.sha256(f"{seed} {instance.prompt}".encode()).digest()
        return int.from_bytes(digest[:8], "little") / 2**64

    split = Split(
        [pair for pair in pairs if draw(pair[0]) >= share],
        [pair for pair in pairs if draw(pair[0]) < share],
    )
    names = {instance.functionality for instance, _ in pairs}
    for side in (split.search, split.held_out):
        bare = names - {instance.functionality for instance, _ in side}
        if bare or not side:
            raise DataError(
                f"of {len(pairs)} instances {len(side)} are on one side of the split, and none of "
                f"{', '.join(sorted(bare)) or 'any functionality'}; give more instances."
            )
    return split


def require_apart(search: Sequence[Pair], held_out: Sequence[Pair]) -> None:
    """Refuse to report on what was searched on.

    Raises:
        DataError: if prompts are on both sides.
    """
    both = {i.prompt for i, _ in search} & {i.prompt for i, _ in held_out}
    if both:
        raise DataError(
            f"{len(both)} prompts are among those that are searched on and among those that are "
            f"reported on ({min(both)[:60]!r}); a search finds what fits them by luck, so give "
            "others to --held-out, or leave it out and a part of the data is set aside."
        )


def require_objectives(objectives: Sequence[str], pairs: Sequence[Pair], *, sized: bool) -> None:
    """Refuse objectives that cannot be measured.

    Raises:
        UnknownNameError: if there is no such objective or functionality.
        ConfigurationError: if all candidates have one size, or an objective is named twice.
    """
    known = {"loss", "size", *(f"loss:{i.functionality}" for i, _ in pairs)}
    for name, times in Counter(objectives).items():
        if name not in known:
            raise UnknownNameError("objective", name, known)
        if times > 1 or (name == "size" and not sized):
            raise ConfigurationError(
                f"the objective {name!r} is named twice, or is the same for all candidates; name "
                "it once, and for `size` give bricks and several `ranks`."
            )


class BrickTrials:
    """Bricks of one form, combined into one brick for each candidate."""

    def __init__(self, loaded: LoadedModel, bricks: Sequence[Brick], blocks: int) -> None:
        self.loaded, self.bricks = loaded, bricks
        self.whole = WeightedBricks(loaded, bricks, blocks)

    def brick(self, candidate: Candidate, seed: int, name: str = "candidate") -> Brick:
        """The brick that a candidate describes."""

        def values(site: str) -> Mapping[str, Any]:
            return candidate.parameters[self.whole.group_of(site)]

        recipe = Recipe(candidate.method, values, keys_of(self.bricks), candidate.rank, seed)
        written = {str(n): block for n, block in enumerate(candidate.written)}
        return combine_by(recipe, self.bricks, name=name, written=written).brick

    def evaluate(self, candidate: Candidate, seed: int, pairs: Sequence[Pair]) -> dict[str, float]:
        """The objectives of a candidate on some instances."""
        return self.of_brick(self.brick(candidate, seed), pairs)

    @property
    def hashes(self) -> list[str]:
        """What identifies the bricks."""
        return [brick.hash for brick in self.bricks]

    def alone(self, place: int | None, pairs: Sequence[Pair]) -> dict[str, float]:
        """The objectives of one of the bricks, or of the bare base."""
        return self.of_brick(None if place is None else self.bricks[place], pairs)

    def of_brick(self, brick: Brick | None, pairs: Sequence[Pair]) -> dict[str, float]:
        """The objectives of one brick, or of the bare base."""
        bricks = WeightedBricks(self.loaded, [] if brick is None else [brick])
        weights = [] if brick is None else [[1.0]]
        losses = {
            name: bricks.mean(weights, own, "loss") for name, own in by_function(pairs).items()
        }
        return _objectives(losses) | {"size": float(brick.bytes if brick else 0)}


class ModelTrials:
    """Whole models of one shape, merged in memory into the base's place for each candidate."""

    def __init__(self, loaded: LoadedModel, models: Mapping[str, CausalModel], blocks: int) -> None:
        self.loaded, self.models = loaded, models
        self._base = {name: p.detach() for name, p in loaded.model.named_parameters()}
        self._own = {key: dict(model.named_parameters()) for key, model in models.items()}
        self._whole = WeightedBricks(loaded, [], blocks)
        for key, own in self._own.items():
            other = [n for n, p in self._base.items() if n not in own or own[n].shape != p.shape]
            if other or len(own) != len(self._base):
                example = (other or sorted(set(own) - set(self._base)))[0]
                raise MergeError(
                    f"the model {key!r} has not the parameters of the base (for example "
                    f"{example!r}); a search merges models of one shape."
                )

    def evaluate(self, candidate: Candidate, seed: int, pairs: Sequence[Pair]) -> dict[str, float]:
        """The objectives of a candidate on some instances."""
        with torch.no_grad():
            merged = {name: self._merged(name, candidate, seed) for name in self._base}
        return self._measured(merged, pairs)

    @property
    def hashes(self) -> list[str]:
        """What identifies the models."""
        return [weights_hash(named_tensors(model)) for model in self.models.values()]

    def alone(self, place: int | None, pairs: Sequence[Pair]) -> dict[str, float]:
        """The objectives of one of the models, or of the base."""
        own = self._base if place is None else list(self._own.values())[place]
        return self._measured({name: p.detach() for name, p in own.items()}, pairs)

    def _merged(self, name: str, candidate: Candidate, seed: int) -> Tensor:
        return merge_tensors(
            candidate.method,
            [own[name].detach() for own in self._own.values()],
            base=self._base[name] if _takes_base(candidate.method) else None,
            keys=list(self._own),
            seed=site_seed(seed, name),
            **candidate.parameters[self._group_of(name)],
        )

    def _group_of(self, parameter: str) -> int:
        path = parameter
        while path and path not in self.loaded.base.sites:
            path = path.rpartition(".")[0]
        return self._whole.group_of(path) if path else self._whole.groups - 1

    def _measured(self, tensors: Mapping[str, Tensor], pairs: Sequence[Pair]) -> dict[str, float]:
        with _replaced(self.loaded.model, tensors):
            labels = [instance.functionality for instance, _ in pairs]
            losses = response_losses(self.loaded.model, [s for _, s in pairs], labels)
        return _objectives(losses)


def by_function(pairs: Sequence[Pair]) -> dict[str, list[Encoded]]:
    """The sequences of each functionality."""
    found: dict[str, list[Encoded]] = {}
    for instance, sequence in pairs:
        found.setdefault(instance.functionality, []).append(sequence)
    return dict(sorted(found.items()))


def _objectives(losses: Mapping[str, float]) -> dict[str, float]:
    named = {f"loss:{name}": loss for name, loss in losses.items()}
    return {"loss": sum(losses.values()) / len(losses), **named}


def _takes_base(method: str) -> bool:
    return find_method(method).base != "operand"


@contextmanager
def _replaced(model: CausalModel, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the parameters hold other values; afterwards their own, to the bit."""
    kept = {name: parameter.data for name, parameter in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.data = tensors[name].to(kept[name])
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = kept[name]
