"""How few neurons a token needs: normalised indicators, and losses with the weakest masked.

Two indicators say how much a neuron matters to a token: the size of its activation, and its output
magnitude, the length of what it adds to the residual stream. Source: Xiao et al. 2024
(arXiv:2409.02877), section 4.3. The paper does not say by what it normalises; here each indicator
is divided by the largest of the same token and layer.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.measure.batch import RunningBatch
from brickwork.measure.results import Indicator, LayerSparsity
from brickwork.model.parts import CausalModel, layers_of
from brickwork.model.taps import NeuronTap, Routed, output_norms
from brickwork.model.units import unit_counts

STEPS = 100
EDGES = [step / STEPS for step in range(STEPS + 1)]
BELOW = 0.2
INDICATORS: tuple[Indicator, ...] = ("activation", "magnitude")


class SparsityCounts:
    """Counts the normalised indicators of all tokens that pass by, in ``STEPS`` steps."""

    def __init__(self, model: CausalModel, batch: RunningBatch) -> None:
        self._batch = batch
        self._neurons = [unit_counts(model, n)["mlp.neurons"] for n in range(layers_of(model))]
        self._norms = [output_norms(model, n) for n in range(layers_of(model))]
        self._counts = {
            (layer, indicator): torch.zeros(STEPS + 1, dtype=torch.int64)
            for layer in range(layers_of(model))
            for indicator in INDICATORS
        }

    def taps(self) -> dict[int, NeuronTap]:
        """A tap for each layer."""
        return {layer: self._tap(layer) for layer in range(len(self._norms))}

    def summary(self) -> list[LayerSparsity]:
        """What was counted, for each layer."""
        return [self._layer(layer) for layer in range(len(self._norms))]

    def _tap(self, layer: int) -> NeuronTap:
        def tap(h: Tensor, routed: Routed | None) -> None:
            tokens = self._batch.positions
            silent = (self._neurons[layer] - h.shape[1]) * int(tokens.sum())
            for indicator in INDICATORS:
                values = indicator_of(h, routed, self._norms[layer], indicator)[tokens]
                largest = values.amax(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
                # No number is left to whoever looks at the losses; here it would be no step.
                step = (values / largest * STEPS).nan_to_num_(0.0).ceil_().to(torch.int64)
                counts = torch.bincount(step.flatten(), minlength=STEPS + 1).cpu()
                counts[0] += silent  # neurons of experts that were not picked
                self._counts[layer, indicator] += counts

        return tap

    def _layer(self, layer: int) -> LayerSparsity:
        shares: dict[str, list[float]] = {}
        for indicator in INDICATORS:
            counts = self._counts[layer, indicator].double()
            shares[indicator] = (counts.cumsum(0) / counts.sum().clamp(min=1)).tolist()
        below = EDGES.index(BELOW)
        return LayerSparsity(
            layer=layer,
            activation=shares["activation"],
            magnitude=shares["magnitude"],
            activation_below=shares["activation"][below],
            magnitude_below=shares["magnitude"][below],
        )


def indicator_of(
    h: Float[Tensor, "positions active"],
    routed: Routed | None,
    norms: Float[Tensor, " neurons"],
    indicator: Indicator,
) -> Float[Tensor, "positions active"]:
    """How much every active neuron matters to every position.

    Args:
        h: activations, as a tap gets them.
        routed: whose they are, in an MoE.
        norms: lengths of the output columns of all neurons of the layer.
        indicator: which one.
    """
    size = h.abs().float()
    if indicator == "activation":
        return size
    if routed is None:
        return size.mul_(norms)
    return size.mul_(norms.view(-1, routed.width)[routed.experts].flatten(1))


def masking(
    model: CausalModel, indicator: Indicator, ratio: float, generator: torch.Generator
) -> Mapping[int, NeuronTap]:
    """Taps that silence, for every position and layer, the share of neurons that matter least.

    ``floor(ratio * neurons)`` are masked; at equal indicators more, which are mostly zeros. In an
    MoE the neurons of experts that were not picked are among them, as they are silent anyway. At
    random, every neuron is masked with the ratio as its probability.

    Args:
        model: whose neurons they are.
        indicator: what says how much a neuron matters; ``random`` masks any.
        ratio: the share that is masked.
        generator: on the CPU; for ``random``.
    """
    layers = range(layers_of(model))
    if indicator == "random":
        return {layer: _masking_any(ratio, generator) for layer in layers}
    return {layer: _masking(model, layer, indicator, ratio) for layer in layers}


def _masking(model: CausalModel, layer: int, indicator: Indicator, ratio: float) -> NeuronTap:
    norms = output_norms(model, layer)
    masked = int(ratio * len(norms))

    def tap(h: Tensor, routed: Routed | None) -> None:
        weakest = masked - (len(norms) - h.shape[1])
        if weakest > 0:
            values = indicator_of(h, routed, norms, indicator)
            _silence(h, values, values.kthvalue(weakest, dim=1, keepdim=True).values)

    return tap


def _masking_any(ratio: float, generator: torch.Generator) -> NeuronTap:
    on_device: dict[torch.device, torch.Generator] = {}

    def tap(h: Tensor, _routed: Routed | None) -> None:
        if h.device not in on_device:  # numbers are drawn where they are needed
            seed = int(torch.randint(2**62, (), generator=generator))
            on_device[h.device] = torch.Generator(h.device).manual_seed(seed)
        drawn = torch.rand(h.shape, generator=on_device[h.device], device=h.device)
        h.mul_(drawn.ge_(ratio).to(h.dtype))

    return tap


def _silence(h: Tensor, values: Tensor, threshold: Tensor) -> None:
    """Set to zero what is at or below the threshold; uses up the values.

    Comparing in place and multiplying takes a tenth of the time of ``masked_fill_`` on a CPU.
    """
    h.mul_(values.gt_(threshold).to(h.dtype))
