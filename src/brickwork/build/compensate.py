"""Let the kept neurons of an FFN stand in for those that are gone, without training.

What a neuron that is gone would have said is predicted from the kept ones of its layer, linearly,
as well as least squares can on the instances that units were chosen on; the prediction is folded
into the output projection. Where that has a bias, the prediction has a constant, and what the
neurons that are gone say on average goes into the bias. Source: the reconstruction of pruned layers
(Frantar and Alistarh 2023, SparseGPT, arXiv:2301.00774; An et al. 2023, FLAP, arXiv:2312.11983);
here all layers are solved at once, on the activations of the full model.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from brickwork.errors import ConfigurationError
from brickwork.measure.perplexity import token_losses, token_mask
from brickwork.model.carve import Kept, places_of
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.load import LoadedModel
from brickwork.model.taps import NeuronTap, Routed, tapped
from brickwork.model.train import Encoded, groups_by_length

_TOKENS_PER_BATCH = 2048
_BYTES = 1 << 30  # of second moments at once; layers beyond take another pass
_RIDGE = 0.1  # of the mean square of a kept neuron; 0.01 to 1 did equally well


@torch.no_grad()
def compensate(
    carved: PreTrainedModel,
    loaded: LoadedModel,
    kept: Kept,
    sequences: Sequence[Encoded],
    *,
    advance: Callable[[float], None] = lambda _steps: None,
) -> None:
    """Change the output projections of a carved model, in place.

    Args:
        carved: of ``carve_model``.
        loaded: the full model; it is left as it is.
        kept: what was kept of it.
        sequences: those that it was chosen on; every token counts.
        advance: told the number of sequences that have just been done.

    Raises:
        ConfigurationError: if neurons of experts are gone: what they say at tokens that the router
            gave to others is not known.
    """
    places = places_of(loaded, kept)
    wanted = {}
    for new, layer in enumerate(places):
        if layer in kept.neurons:
            ffn = ffn_of(carved, new)
            if not isinstance(ffn, FFN):
                raise ConfigurationError(
                    f"neurons of experts are gone in layers.{layer}, and only plain FFNs can be "
                    "compensated; leave it out, or heal the model."
                )
            wanted[layer] = ffn
    for some in _chunks(loaded, list(wanted)):
        moments = _second_moments(loaded, sequences, some, advance)
        for layer, (moment, mean) in moments.items():
            full = ffn_of(loaded.model, layer)
            assert isinstance(full, FFN), "as in the carved model"
            stay = kept.neurons[layer].to(moment.device)
            at = torch.searchsorted(places[layer].to(stay.device), stay)
            _fold(wanted[layer], full, stay, at, _Moments(moment, mean))


class _Moments:
    """What predicts neurons from others: second moments, about the mean if there is a bias."""

    def __init__(self, second: Float[Tensor, "neurons neurons"], mean: Tensor) -> None:
        self.second, self.mean = second, mean

    def prediction(
        self, stay: Tensor, gone: Tensor, *, centred: bool
    ) -> tuple[Float[Tensor, "kept gone"], Float[Tensor, " gone"]]:
        """Factors of the kept neurons, and the constant."""
        second = self.second.double()
        if centred:
            second = second - torch.outer(self.mean, self.mean).double()
        own = second[stay][:, stay]
        own.diagonal().add_(_RIDGE * own.diagonal().mean())
        factors = torch.linalg.solve(own, second[stay][:, gone]).float()
        constant = self.mean[gone] - self.mean[stay] @ factors
        return factors, constant if centred else torch.zeros_like(constant)


def _fold(
    carved: FFN, full: FFN, stay: Int[Tensor, " kept"], at: Int[Tensor, " kept"], moments: _Moments
) -> None:
    everything = torch.arange(full.neurons, device=stay.device)
    gone = everything[~torch.isin(everything, stay)]
    if not len(gone):
        return
    centred = carved.down_bias is not None
    factors, constant = moments.prediction(stay, gone, centred=centred)
    lost = full.down[:, gone].float()  # hidden gone
    changed = carved.down[:, at].float() + lost @ factors.T
    carved.down[:, at] = changed.to(carved.down.dtype)
    if carved.down_bias is not None:
        carved.down_bias.add_((lost @ constant).to(carved.down_bias.dtype))


def _chunks(loaded: LoadedModel, layers: list[int]) -> list[list[int]]:
    """Layers whose second moments fit into memory together; one at least."""
    if not layers:
        return []
    widest = max(_width(loaded, layer) for layer in layers)
    step = max(1, _BYTES // (4 * widest**2))
    return [layers[i : i + step] for i in range(0, len(layers), step)]


def _width(loaded: LoadedModel, layer: int) -> int:
    return ffn_of(loaded.model, layer).neurons


def _second_moments(
    loaded: LoadedModel,
    sequences: Sequence[Encoded],
    layers: Sequence[int],
    advance: Callable[[float], None],
) -> dict[int, tuple[Float[Tensor, "neurons neurons"], Float[Tensor, " neurons"]]]:
    """Means over all tokens of the products of every two neurons, and of every neuron."""
    device = loaded.device
    widths = {layer: _width(loaded, layer) for layer in layers}
    second = {layer: torch.zeros(width, width, device=device) for layer, width in widths.items()}
    first = {layer: torch.zeros(width, device=device) for layer, width in widths.items()}
    tokens = 0

    def adding(layer: int, real: Tensor) -> NeuronTap:
        def tap(h: Tensor, _routed: Routed | None) -> None:
            said = h[real].float()
            second[layer].addmm_(said.T, said)
            first[layer].add_(said.sum(0))

        return tap

    for group in groups_by_length([len(s.ids) for s in sequences], _TOKENS_PER_BATCH):
        batch = [sequences[i] for i in group]
        real = token_mask(batch).flatten().to(device)
        tokens += int(real.sum())
        with tapped(loaded.model, neurons={layer: adding(layer, real) for layer in layers}):
            token_losses(loaded.model, batch, whole=False)
        advance(len(group))
    return {layer: (second[layer] / tokens, first[layer] / tokens) for layer in layers}
