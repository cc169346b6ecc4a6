"""What a choice of units is made for: instances to choose on, and others to measure losses on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from brickwork.errors import DataError, UnknownNameError
from brickwork.measure.instances import Instance, encode_instances, split_instances
from brickwork.measure.perplexity import instance_losses
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel
from brickwork.model.train import Encoded

EXAMPLES = "examples"  # what the instances of ``aim_like`` are called among functionalities


@dataclass(frozen=True, eq=False)
class Aim:
    """What is to be kept able.

    Attributes:
        name: of the functionality, or ``EXAMPLES``.
        choosing: instances of it that units are chosen on.
        evaluation: for each functionality, its own among them, instances that losses are measured
            on; none of them has a prompt of ``choosing``.
        instances: those of ``choosing``, as text.
        measured: the prompts of ``evaluation``.
    """

    name: str
    choosing: list[Encoded]
    evaluation: dict[str, list[Encoded]]
    instances: list[Instance]
    measured: frozenset[str]

    def unmeasured(
        self, loaded: LoadedModel, instances: Sequence[Instance], longest: int = 512
    ) -> list[Encoded]:
        """Instances to train on: those that no loss is measured on, nor any of the same prompt."""
        others = [i for i in instances if i.prompt not in self.measured]
        return [s for s in encode_instances(loaded, others, longest).sequences if s is not None]

    def losses(self, model: CausalModel) -> dict[str, float]:
        """A model's mean loss in nats per response token, for each functionality."""
        found = {}
        for name, sequences in self.evaluation.items():
            losses = instance_losses(model, sequences)
            found[name] = float(losses.response.sum() / losses.response_tokens.sum())
        return found


def aim_at(
    loaded: LoadedModel,
    instances: Sequence[Instance],
    function: str,
    *,
    evaluation: int = 40,
    seed: int = 0,
    longest: int = 512,
) -> Aim:
    """Aim at one functionality of labelled data.

    Args:
        loaded: the model with its tokenizer.
        instances: labelled; of two functionalities at least.
        function: name of one, in any case.
        evaluation: instances of each functionality to measure on; never more than a fifth of it.
        seed: equal seeds, equal splits.
        longest: tokens after which an instance is cut.

    Raises:
        UnknownNameError: if the data has no such functionality; lists the nearest.
        DataError: if there are too few instances.
    """
    name = _function(function, sorted({i.functionality for i in instances}))
    split = split_instances(instances, evaluation=evaluation, seed=seed)
    own = [instances[i] for i in split.localisation if instances[i].functionality == name]
    return _aim(loaded, name, own, [instances[i] for i in split.evaluation], longest)


def aim_like(
    loaded: LoadedModel,
    examples: Sequence[Instance],
    others: Sequence[Instance] = (),
    *,
    evaluation: int = 40,
    seed: int = 0,
    longest: int = 512,
) -> Aim:
    """Aim at what some examples show; a fifth of them is measured on.

    Args:
        loaded: the model with its tokenizer.
        examples: instances with two different prompts at least; their functionality is not read.
        others: labelled instances of other functionalities, to measure on, too.
        evaluation: as in ``aim_at``.
        seed: as in ``aim_at``.
        longest: as in ``aim_at``.

    Raises:
        DataError: if there are too few examples.
    """
    prompts = sorted({example.prompt for example in examples})
    if len(prompts) < 2:
        raise DataError(
            f"{len(examples)} examples with {len(prompts)} different prompts were given; units are "
            "chosen on some and measured on others, so give at least two, better fifty."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(prompts), generator=generator).tolist()
    measured = {prompts[i] for i in order[: max(1, min(evaluation, len(prompts) // 5))]}
    own = [example for example in examples if example.prompt not in measured]
    rest = [_labelled(example) for example in examples if example.prompt in measured]
    if others:
        split = split_instances(others, evaluation=evaluation, seed=seed)
        rest += [others[i] for i in split.evaluation]
    return _aim(loaded, EXAMPLES, own, rest, longest)


def _labelled(example: Instance) -> Instance:
    return Instance(EXAMPLES, example.prompt, example.response)


def _aim(
    loaded: LoadedModel,
    name: str,
    own: list[Instance],
    measured: list[Instance],
    longest: int,
) -> Aim:
    config = loaded.model.config.get_text_config()
    longest = min(longest, getattr(config, "max_position_embeddings", longest))
    used = {instance.prompt for instance in own}
    measured = [instance for instance in measured if instance.prompt not in used]
    choosing = [s for s in encode_instances(loaded, own, longest).sequences if s is not None]
    evaluation: dict[str, list[Encoded]] = {name: []}
    encoded = encode_instances(loaded, measured, longest).sequences
    for instance, sequence in zip(measured, encoded, strict=True):
        if sequence is not None:
            evaluation.setdefault(instance.functionality, []).append(sequence)
    if not choosing or not evaluation[name]:
        raise DataError(
            f"of {len(own)} instances of {name!r} to choose on {len(choosing)} have a response "
            f"within {longest} tokens, and {len(evaluation[name])} of those to measure on; give "
            "more, or shorter ones."
        )
    return Aim(name, choosing, evaluation, own, frozenset(i.prompt for i in measured))


def _function(function: str, known: Sequence[str]) -> str:
    same = [name for name in known if name.casefold() == function.casefold()]
    if not same:
        raise UnknownNameError("functionality of this data", function, known)
    return function if function in same else same[0]
