"""Losses on the evaluation instances, of the whole model and of changed ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from brickwork.errors import ModelError
from brickwork.measure.ablation import NeuronMeans
from brickwork.measure.batch import RunningBatch
from brickwork.measure.intervals import per_token, perplexity_increase, resample_counts
from brickwork.measure.perplexity import Losses, instance_losses
from brickwork.measure.results import BaseLoss, Interval
from brickwork.measure.sparsity import SparsityCounts
from brickwork.measure.study import Study
from brickwork.model.taps import BlockTap, HeadTap, NeuronTap, Routed, tapped


@dataclass(frozen=True, eq=False)
class Taps:
    """What is changed in a pass."""

    neurons: Mapping[int, NeuronTap] | None = None
    heads: Mapping[int, HeadTap] | None = None
    blocks: Mapping[int, BlockTap] | None = None


class Passes:
    """Runs passes over the evaluation instances and compares them with the whole model's."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.running = RunningBatch()
        self.means = NeuronMeans(study.loaded.model, self.running)
        self.sparsity = SparsityCounts(study.loaded.model, self.running)
        self._base = self._run_base()

    def losses(self, name: str, *depends: str, taps: Taps, whole: bool = False) -> Losses:
        """The losses of a changed model; taken from the study's folder if they are there.

        Args:
            name: of the change; part of a file name.
            depends: what the change depends on that the name does not say.
            taps: the change.
            whole: whether losses on prompts are wanted, too.
        """
        study, evaluation = self.study, self.study.evaluation

        def make() -> dict[str, Tensor]:
            with tapped(study.loaded.model, **vars(taps)):
                found = instance_losses(
                    study.loaded.model, evaluation.sequences, whole=whole, running=self.running
                )
            _require_finite(found, name)
            response = {"response": found.response}
            return response if found.whole is None else {**response, "whole": found.whole}

        kept = study.kept(f"losses/{name}", str(whole), *depends, make=make)
        base = self._base
        return Losses(kept["response"], base.response_tokens, kept.get("whole"), base.whole_tokens)

    def base(self) -> dict[str, BaseLoss]:
        """The whole model's losses."""
        response, whole = self.response_losses(self._base), self._whole_losses()
        return {f: BaseLoss(response=response[f], whole=whole[f]) for f in response}

    def response_losses(self, losses: Losses) -> dict[str, Interval]:
        """Nats per response token, for each functionality."""
        tokens = losses.response_tokens
        return self._each(lambda own, n: per_token(losses.response[own], tokens[own], n))

    def _whole_losses(self) -> dict[str, Interval]:
        nats, tokens = _both(self._base)
        return self._each(lambda own, n: per_token(nats[own], tokens[own], n))

    def increase(self, losses: Losses) -> dict[str, Interval]:
        """How much the perplexity on responses rose, for each functionality."""
        before, after, tokens = self._base.response, losses.response, losses.response_tokens
        return self._each(
            lambda own, n: perplexity_increase(before[own], after[own], tokens[own], n)
        )

    def whole_increase(self, losses: Losses) -> dict[str, Interval]:
        """How much the perplexity on prompts and responses together rose."""
        (before, tokens), (after, _) = _both(self._base), _both(losses)
        return self._each(
            lambda own, n: perplexity_increase(before[own], after[own], tokens[own], n)
        )

    @property
    def unchanged(self) -> Losses:
        """The whole model's losses, for every instance."""
        return self._base

    def _run_base(self) -> Losses:
        """One pass without a change, which the means and the sparsity are counted in, too."""
        counting, averaging = self.sparsity.taps(), self.means.taps()
        taps = {layer: _after(counting[layer], averaging[layer]) for layer in counting}
        study = self.study
        with (
            study.watch("the whole model", len(study.evaluation.sequences)) as advance,
            tapped(study.loaded.model, neurons=taps),
        ):
            found = instance_losses(
                study.loaded.model,
                study.evaluation.sequences,
                whole=True,
                running=self.running,
                advance=advance,
            )
        _require_finite(found, "the whole model")
        return found

    def _each(self, interval: Callable[[Tensor, Tensor], Interval]) -> dict[str, Interval]:
        """An interval for each functionality, from its samples and their resample counts."""
        return {
            name: interval(self.study.evaluation.of(i), self._counts[i])
            for i, name in enumerate(self.study.functions)
        }

    @cached_property
    def _counts(self) -> list[Float[Tensor, "resamples samples"]]:
        """Resamples of each functionality's instances, the same for all that is compared."""
        return [
            resample_counts(
                len(self.study.evaluation.of(i)),
                self.study.settings.resamples,
                self.study.generator("resamples", name),
            )
            for i, name in enumerate(self.study.functions)
        ]


def _require_finite(losses: Losses, name: str) -> None:
    """Before anything is kept: in float16 a model can overflow, the more so without its parts."""
    bad = int((~losses.response.isfinite()).sum())
    if bad:
        raise ModelError(
            f"the losses of {bad} of {len(losses.response)} evaluation instances are no finite "
            f"numbers ({name}); run the model in bfloat16 or float32 (--dtype), or check its "
            "weights."
        )


def _both(losses: Losses) -> tuple[Tensor, Tensor]:
    assert losses.whole is not None, "asked of a pass that measured whole sequences"
    return losses.whole, losses.whole_tokens


def _after(first: NeuronTap, second: NeuronTap) -> NeuronTap:
    def tap(h: Tensor, routed: Routed | None) -> None:
        first(h, routed)
        second(h, routed)

    return tap
