"""The memory brick: a bounded number of old instances, an equal share for each task.

The instances of a task stand in the order in which they are worth keeping, so that a share that
has become smaller is the beginning of the larger one (Rebuffi et al. 2017, iCaRL,
arXiv:1611.07725). What decides that order is a row of SELECTORS.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

import torch
from torch import Tensor

from brickwork.brick.base import Base, Fingerprint
from brickwork.brick.brick import Brick
from brickwork.brick.check import require_well_formed
from brickwork.brick.replay import ReplayOptions, instance_tensors
from brickwork.brick.spec import BrickSpec, Function, Lineage
from brickwork.errors import ConfigurationError, DataError, GrowthError
from brickwork.grow.selectors import Evidence, find_selector
from brickwork.measure.updates import site_seed
from brickwork.model.load import LoadedModel
from brickwork.model.train import Encoded

_OWN_NUMBERS = 3  # of each instance: length, start, task
_NUMBER = 4  # bytes


@dataclass(frozen=True)
class MemoryRecipe:
    """How large a memory is, and what it keeps.

    Attributes:
        instances: of all tasks together, at most.
        bytes: of the brick's tensors, at most; None: as many as the instances need.
        selector: a row of SELECTORS.
        seed: of random choices.
    """

    instances: int = 256
    bytes: int | None = None
    selector: str = "reservoir"
    seed: int = 0


def remember(
    loaded: LoadedModel,
    task: str,
    stream: Iterable[Encoded],
    recipe: MemoryRecipe,
    *,
    memory: Brick | None = None,
    evidence: Evidence | None = None,
    name: str = "memory",
) -> Brick:
    """A memory brick with instances of one more task; the tasks before it give way equally.

    A task of fewer instances than its share leaves the rest to the others. Instances are kept
    whole, so within the bytes of a share it is the best ones up to the first that does not fit.

    Args:
        loaded: the model whose token ids these are.
        task: its name, not yet in the memory.
        stream: its instances; read once, and not held unless the selector compares them all.
        recipe: size and selector.
        memory: what is remembered so far; None: nothing.
        evidence: what the selector decides by, a row for each instance in the order of the
            stream; None: it is measured with the model, if the selector needs it.
        name: of the brick.

    Raises:
        UnknownNameError: if there is no such selector.
        ConfigurationError: if the bounds are too small for the tasks.
        GrowthError: if the task is in the memory already, or it is of other token ids.
        DataError: if the task has no instance, or ids that the model does not have.
    """
    kept = remembered(memory) if memory else {}
    base = loaded.base
    if task in kept:
        raise GrowthError(
            f"the task {task!r} was to be remembered, but the memory {name!r} holds it already, "
            f"beside {', '.join(kept)}; give it another name."
        )
    if memory is not None:
        _require_same_words(memory, base.fingerprint)
    selector = find_selector(recipe.selector)
    chance = torch.Generator().manual_seed(site_seed(recipe.seed, task))
    if recipe.instances < 1:
        raise _too_small([*kept, task], recipe)
    kept[task] = selector.choose(
        loaded, stream, evidence=evidence, most=recipe.instances, generator=chance
    )
    _require_known(loaded, task, kept[task])
    lineage = Lineage(
        method="replay memory",
        arguments={**asdict(recipe), "task": task},
        parents=(memory.hash,) if memory else (),
    )
    return _brick(within(kept, recipe), base, name, lineage)


def _brick(kept: Mapping[str, Sequence[Encoded]], base: Base, name: str, lineage: Lineage) -> Brick:
    (site,) = (s.path for s in base.of_kind("embedding"))
    numbered = [(s, n) for n, own in enumerate(kept.values()) for s in own]
    tensors = instance_tensors(
        [s.ids for s, _ in numbered],
        [s.response_start for s, _ in numbered],
        [n for _, n in numbered],
    )
    spec = BrickSpec(
        name=name,
        form="replay",
        base=base.fingerprint,
        sites=(site,),
        options=ReplayOptions(tasks=tuple(kept)).model_dump(mode="json"),
        function=Function(text="Instances of earlier tasks.", labels=tuple(kept)),
        lineage=lineage,
    )
    return Brick(spec, {f"{site}/{slot}": tensor for slot, tensor in tensors.items()})


def recall(memory: Brick) -> list[Encoded]:
    """The instances of a memory brick, task after task, each task's best ones first.

    Raises:
        BrickFormatError: if the brick is not well formed.
        GrowthError: if it is of another form.
    """
    return [instance for own in remembered(memory).values() for instance in own]


def remembered(memory: Brick) -> dict[str, list[Encoded]]:
    """The same by task."""
    if memory.spec.form != "replay":
        raise GrowthError(
            f"instances of {memory.spec.name!r} were asked for, but it is a {memory.spec.form}; "
            "name a brick of the form replay, as `remember` makes it."
        )
    require_well_formed(memory)
    tasks = ReplayOptions.model_validate(memory.spec.options).tasks
    (slots,) = memory.by_site.values()
    numbers = {slot: [int(n) for n in tensor.tolist()] for slot, tensor in slots.items()}
    kept: dict[str, list[Encoded]] = {task: [] for task in tasks}
    ends = list(accumulate(numbers["length"]))
    for end, length, start, task in zip(
        ends, numbers["length"], numbers["start"], numbers["task"], strict=True
    ):
        kept[tasks[task]].append(Encoded(numbers["ids"][end - length : end], start))
    return kept


def within(kept: Mapping[str, Sequence[Encoded]], recipe: MemoryRecipe) -> dict[str, list[Encoded]]:
    """The beginning of each task's instances, so many that the bounds hold.

    Raises:
        ConfigurationError: if a task would have none.
    """
    counts = fair_shares([len(own) for own in kept.values()], recipe.instances)
    shares = {task: list(own[:n]) for (task, own), n in zip(kept.items(), counts, strict=True)}
    if recipe.bytes is not None:
        sizes = [sum(map(_size, own)) for own in shares.values()]
        room = dict(zip(kept, fair_shares(sizes, recipe.bytes), strict=True))
        shares = {task: _fitting(own, room[task]) for task, own in shares.items()}
    if not all(shares.values()):
        raise _too_small(list(kept), recipe)
    return shares


def fair_shares(wanted: Sequence[int], total: int) -> list[int]:
    """Shares of a total that are equal, but for those who want less.

    What is left after equal shares goes to the first.

    >>> fair_shares([9, 2, 9], 11), fair_shares([1, 2], 9)
    ([5, 2, 4], [1, 2])
    """
    shares = [0] * len(wanted)
    left = total
    order = sorted(range(len(wanted)), key=lambda place: (wanted[place], -place))
    for done, place in enumerate(order):
        others = len(order) - done
        shares[place] = min(wanted[place], left // others)
        left -= shares[place]
    return shares


def _size(instance: Encoded) -> int:
    return _NUMBER * (len(instance.ids) + _OWN_NUMBERS)


def _fitting(own: Sequence[Encoded], room: int) -> list[Encoded]:
    ends = accumulate(map(_size, own))
    return [instance for instance, end in zip(own, ends, strict=True) if end <= room]


def _too_small(tasks: Sequence[str], recipe: MemoryRecipe) -> ConfigurationError:
    bound = "" if recipe.bytes is None else f" and {recipe.bytes:,} bytes"
    return ConfigurationError(
        f"a memory of {recipe.instances} instances{bound} was asked for, which leaves a task of "
        f"{', '.join(tasks)} without any; allow more."
    )


def _require_same_words(memory: Brick, now: Fingerprint) -> None:
    before = memory.spec.base
    if before.tokenizer and now.tokenizer and before.tokenizer != now.tokenizer:
        raise GrowthError(
            f"the memory {memory.spec.name!r} holds token ids of {before.name or 'a model'}, and "
            f"{now.name or 'this model'} has another tokenizer; begin a new memory from the texts."
        )


def _require_known(loaded: LoadedModel, task: str, instances: Sequence[Encoded]) -> None:
    weight = loaded.model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    known = weight.shape[0]
    ids = [token for instance in instances for token in instance.ids]
    if not instances or not all(s.ids for s in instances):
        raise DataError(
            f"the task {task!r} was to be remembered from {len(instances)} instances, of which "
            f"{sum(not s.ids for s in instances)} have no token; give at least one, with tokens."
        )
    if not 0 <= min(ids) <= max(ids) < known:
        raise DataError(
            f"the task {task!r} has token ids from {min(ids)} to {max(ids)}, but the model knows 0 "
            f"to {known - 1}; encode it with the model's own tokenizer."
        )
