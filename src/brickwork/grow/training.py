"""Train a grown model on: all of it, or only what is new, with old instances among the batches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from brickwork.errors import ConfigurationError
from brickwork.grow.curve import Curve
from brickwork.grow.fresh import Fresh, fresh_masks
from brickwork.measure.perplexity import response_losses
from brickwork.model.fit import FitRecipe, Report, descend, only_training, training_batches
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel
from brickwork.model.train import Encoded


@dataclass(frozen=True)
class Replay:
    """Older instances among the new ones.

    Attributes:
        instances: as ``recall`` gives them, at least one.
        share: of each batch's tokens that is taken from them, above 0 and below 1.
    """

    instances: Sequence[Encoded]
    share: float


@dataclass(frozen=True)
class Watch:
    """Losses that are measured before the first step, now and then, and after the last.

    Attributes:
        instances: by functionality, none of them trained on.
        every: so many steps apart.
    """

    instances: Mapping[str, Sequence[Encoded]]
    every: int = 50


def continue_training(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    recipe: FitRecipe,
    *,
    replay: Replay | None = None,
    fresh: Sequence[Fresh] = (),
    watch: Watch | None = None,
    report: Report = lambda step, steps, loss: None,
) -> Curve:
    """Train the model itself, in place and for good, and tell how its losses went.

    It is trained in float32 and gets its own number format back; its mode stays (no dropout, if
    it is ready to evaluate). Where only new numbers are trained, the old ones stay equal to the
    bit, under weight decay too. That does not keep what the model says: replay does.

    Args:
        loaded: the model; what is known of its fingerprint is forgotten.
        sequences: prompts with responses.
        recipe: how it is trained.
        replay: older instances to mix in.
        fresh: what growth has added, to train that alone; empty: all parameters are trained.
        watch: what is measured meanwhile.
        report: told of each step, the number of steps, and the loss.

    Raises:
        ConfigurationError: if the share is no share, losses are to be measured every 0 steps or on
            nothing, or the model has no such new numbers.
        DataError: if there is nothing to train on, or to replay.
        ModelError: if the loss is no number any more.

    Source:
        Replay: Rolnick et al. 2019 (arXiv:1811.11682). New parts alone: Wu et al. 2024, LLaMA-Pro
        (arXiv:2401.02415).
    """
    watched = _Watched(loaded.model, watch or Watch({}))
    batches = _mixed_batches(sequences, replay, recipe)
    with _in_float32(loaded), _trained_parts(loaded.model, fresh) as parts:
        watched.measure(0)

        def after(step: int, steps: int, loss: float) -> None:
            for part in parts:
                part.write()
            if step % watched.watch.every == 0 or step == steps:
                watched.measure(step)
            report(step, steps, loss)

        losses = descend(loaded.model, [p.leaf for p in parts], batches, recipe, report=after)
    return Curve(
        brickwork=version("brickwork"),
        model=loaded.name,
        recipe=asdict(recipe),
        share=replay.share if replay else 0.0,
        replayed=len(replay.instances) if replay else 0,
        sequences=len(sequences),
        trained=sum(part.leaf.numel() for part in parts),
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        training=tuple(losses),
        **watched.found(),
    )


class _Watched:
    """What has been measured so far."""

    def __init__(self, model: CausalModel, watch: Watch) -> None:
        if watch.every < 1 or not all(watch.instances.values()):
            counts = {name: len(own) for name, own in watch.instances.items()}
            raise ConfigurationError(
                f"losses were to be measured every {watch.every} steps on {counts} instances; name "
                "at least 1 step, and 1 instance for each functionality."
            )
        self.model, self.watch = model, watch
        self.steps: list[int] = []
        self.losses: dict[str, list[float]] = {name: [] for name in watch.instances}

    def measure(self, step: int) -> None:
        """Measure once more, without dropout."""
        given, training = self.watch.instances, self.model.training
        self.model.eval()
        self.steps.append(step)
        sequences = [s for own in given.values() for s in own]
        labels = [name for name, own in given.items() for _ in own]
        for name, loss in response_losses(self.model, sequences, labels).items():
            self.losses[name].append(loss)
        self.model.train(training)

    def found(self) -> dict[str, Any]:
        """What a curve says of it."""
        return {
            "instances": {name: len(own) for name, own in self.watch.instances.items()},
            "steps": tuple(self.steps),
            "losses": {name: tuple(own) for name, own in self.losses.items()},
        }


@dataclass(frozen=True, eq=False)
class _Part:
    """A parameter of the model, which of its entries are trained, and what trains them.

    ``leaf`` is the parameter itself where it is trained as a whole, else a copy of the new
    entries: so neither rounding nor weight decay can reach the others, and the optimizer keeps
    moments of the new ones alone.
    """

    parameter: nn.Parameter
    mask: Bool[Tensor, "..."] | None
    leaf: nn.Parameter

    def gather(self, parameter: Tensor) -> None:
        """Hand the gradient of the new entries to the leaf, and let go of the rest."""
        assert self.mask is not None
        assert parameter.grad is not None
        grad = parameter.grad[self.mask]
        self.leaf.grad = grad if self.leaf.grad is None else self.leaf.grad + grad
        parameter.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """Put the leaf's entries into the parameter."""
        if self.mask is not None:
            self.parameter[self.mask] = self.leaf


@contextmanager
def _trained_parts(model: nn.Module, fresh: Sequence[Fresh]) -> Iterator[list[_Part]]:
    """Inside, what is trained asks for gradients, and those of new entries go to their copies."""
    parts = _parts(model, fresh)
    with ExitStack() as stack:
        stack.enter_context(only_training(model, [part.parameter for part in parts]))
        for part in parts:
            if part.mask is not None:
                hook = part.parameter.register_post_accumulate_grad_hook(part.gather)
                stack.callback(hook.remove)
        yield parts


def _parts(model: nn.Module, fresh: Sequence[Fresh]) -> list[_Part]:
    named = dict(model.named_parameters())
    if not fresh:
        return [_Part(parameter, None, parameter) for parameter in named.values()]
    parts = []
    for name, mask in fresh_masks(model, fresh).items():
        parameter = named[name]
        if mask is None:
            parts.append(_Part(parameter, None, parameter))
        else:
            here = mask.to(parameter.device)
            parts.append(_Part(parameter, here, nn.Parameter(parameter.detach()[here])))
    return parts


@contextmanager
def _in_float32(loaded: LoadedModel) -> Iterator[None]:
    """The model in float32, afterwards in its own number formats, with nothing known of it."""
    dtypes = {p: p.dtype for p in loaded.model.parameters()}
    for parameter in dtypes:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in dtypes.items():
            parameter.data = parameter.data.to(dtype)
        vars(loaded).pop("base", None)  # a fingerprint of what it was


def _mixed_batches(
    sequences: Sequence[Encoded], replay: Replay | None, recipe: FitRecipe
) -> Iterator[list[Encoded]]:
    """Batches of which a share of the tokens is of the replayed instances."""
    if replay is None:
        return training_batches(sequences, recipe)
    if not 0 < replay.share < 1:
        raise ConfigurationError(
            f"a share of {replay.share:g} of each batch was to be replayed; name one above 0 and "
            "below 1, or replay nothing."
        )
    old = round(recipe.tokens_per_batch * replay.share)
    new = recipe.tokens_per_batch - old
    pairs = zip(
        training_batches(sequences, replace(recipe, tokens_per_batch=new)),
        training_batches(replay.instances, replace(recipe, tokens_per_batch=old)),
        strict=False,  # both are without end
    )
    return (ours + theirs for ours, theirs in pairs)
