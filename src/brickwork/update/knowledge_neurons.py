"""Knowledge neurons: those that an answer's probability is owed to.

The attribution of a neuron is the integral of the gradient of the answer's probability along the
way on which its layer's activations, where the answer is predicted, grow from 0 to what they are.
The attributions of a layer sum to what the probability owes to the layer.

Source: Dai et al. 2022, Knowledge Neurons in Pretrained Transformers (arXiv:2104.08696), 3; after
integrated gradients, Sundararajan et al. 2017 (arXiv:1703.01365). Departures: midpoints of the
steps, which sum to the integral more closely; answers of several tokens count whole; activations
are what the output projection reads, so in a gated FFN the product with the gate; only wordings
count that the model answers rightly.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from brickwork.errors import EditError
from brickwork.measure.attribution import differentiable, gradient_budget
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel, layers_of
from brickwork.model.taps import NeuronTap, Routed, tapped
from brickwork.model.units import unit_counts
from brickwork.update.recall import (
    Recall,
    answer_logs,
    answer_text,
    knows,
    probabilities,
    reading,
    starting_at,
)
from brickwork.update.trace_results import KnowledgeNeurons, NeuronCheck, ScoredNeuron


@dataclass(frozen=True)
class NeuronRecipe:
    """How to find knowledge neurons.

    Attributes:
        steps: of the way from 0 to the activations.
        threshold: a neuron counts in a wording if its attribution is larger than this share of
            the largest of all layers.
        share: of the wordings that a neuron must count in.
        layers: where to look; None: everywhere.
    """

    steps: int = 20
    threshold: float = 0.2
    share: float = 0.7
    layers: tuple[int, ...] | None = None


def find_neurons(
    loaded: LoadedModel,
    recalls: Sequence[Recall],
    recipe: NeuronRecipe,
    *,
    advance: Callable[[float], None] = lambda _wordings: None,
) -> KnowledgeNeurons:
    """The neurons that an answer is owed to in most wordings of a fact.

    Args:
        loaded: the model; it is left as it is, without gradients.
        recalls: the fact's prompt, and other wordings with the same answer.
        recipe: how.
        advance: told the number of wordings that have just been done.

    Returns:
        Also when no neuron counts in enough wordings; ``neurons`` is empty then.

    Raises:
        EditError: if the model gives the answer to none of the wordings.
    """
    model = loaded.model
    known = [recall for recall in recalls if knows(model, recall)]
    if not known:
        raise _unknown(loaded, recalls)
    where = range(layers_of(model)) if recipe.layers is None else recipe.layers
    found = []
    for recall in known:
        found.append(attributions(model, recall, where, recipe.steps))
        advance(1)
    counts = [
        torch.cat(list(by_layer.values())).gt(recipe.threshold * _largest(by_layer))
        for by_layer in found
    ]
    mean = torch.stack([torch.cat(list(by_layer.values())) for by_layer in found]).mean(0)
    kept = torch.stack(counts).sum(0) >= recipe.share * len(known)
    places = [(n, i) for n, scores in found[0].items() for i in range(len(scores))]
    chosen = sorted(kept.nonzero().flatten().tolist(), key=lambda i: -float(mean[i]))
    return KnowledgeNeurons(
        id=recalls[0].id,
        answer=answer_text(loaded, known[0]),
        prompts=[recall.text for recall in known],
        coarse=[int(count.sum()) for count in counts],
        neurons=[
            ScoredNeuron(layer=places[i][0], neuron=places[i][1], score=float(mean[i]))
            for i in chosen
        ],
    )


@torch.enable_grad()
def attributions(
    model: CausalModel, recall: Recall, layers: Sequence[int], steps: int
) -> dict[int, Float[Tensor, " neurons"]]:
    """What the answer's probability owes to each neuron, by layer, in float32 on the CPU.

    Neuron i of expert e of an MoE layer counts as ``e * width + i``; those of experts that the
    router does not pick get 0.
    """
    read: dict[int, Tensor] = {}
    with torch.no_grad(), tapped(model, blocks=reading(read, layers_of(model))):
        answer_logs(model, recall, 1)
    rows = max(1, gradient_budget(model) // len(recall.ids))
    alphas = (torch.arange(steps, device=model.device) + 0.5) / steps
    found = {}
    with differentiable(model):
        for layer in layers:
            total = torch.zeros(unit_counts(model, layer)["mlp.neurons"], device=model.device)
            for chunk in alphas.split(rows):
                total += _summed(model, recall, layer, (chunk, read[layer])) / steps
            found[layer] = total.cpu()
    return found


def _summed(
    model: CausalModel, recall: Recall, layer: int, way: tuple[Tensor, Tensor]
) -> Float[Tensor, " neurons"]:
    """Gradient times activation, summed over some steps and all tokens of the answer."""
    alphas, states = way
    path = _Path(recall, alphas)
    rows = len(alphas)
    with (
        starting_at(model, layer, states.expand(rows, -1, -1)),
        tapped(model, neurons={layer: path.tap}),
    ):
        probability = probabilities(answer_logs(model, recall, rows), recall)
    gradient = torch.autograd.grad(probability.sum(), path.scaled)[0]
    values = path.whole.float() * gradient.float()
    return path.by_neuron(values, unit_counts(model, layer)["mlp.neurons"])


@dataclass(eq=False)
class _Path:
    """Scales a layer's activations where the answer is predicted, each row by another factor."""

    recall: Recall
    alphas: Float[Tensor, " rows"]
    whole: Float[Tensor, "spots neurons"] = field(init=False)
    scaled: Float[Tensor, "spots neurons"] = field(init=False)
    routed: Routed | None = field(init=False)
    spots: Int[Tensor, " spots"] = field(init=False)

    def tap(self, h: Tensor, routed: Routed | None) -> Tensor:
        rows, tokens, own = len(self.alphas), len(self.recall.ids), self.recall.spots
        starts = torch.arange(rows, device=h.device) * tokens
        self.spots = (starts.unsqueeze(1) + torch.tensor(list(own), device=h.device)).flatten()
        self.whole, self.routed = h.detach()[self.spots], routed
        factors = self.alphas.repeat_interleave(len(own)).unsqueeze(1)
        self.scaled = (self.whole * factors.to(h.dtype)).requires_grad_()
        return h.detach().index_put((self.spots,), self.scaled)

    def by_neuron(self, values: Float[Tensor, "spots columns"], neurons: int) -> Tensor:
        """The sums over spots; an MoE layer's columns are those of the experts picked there."""
        if self.routed is None:
            return values.sum(0)
        picked, width = self.routed.experts[self.spots], self.routed.width
        inside = torch.arange(width, device=values.device)
        numbers = (picked.unsqueeze(2) * width + inside).flatten()
        return values.new_zeros(neurons).index_add_(0, numbers, values.flatten())


@torch.inference_mode()
def check_neurons(
    loaded: LoadedModel,
    chosen: Mapping[int, Sequence[int]],
    recalls: Sequence[Recall],
    *,
    seed: int = 0,
) -> NeuronCheck:
    """What silencing and doubling neurons does to answers, beside random neurons.

    Args:
        loaded: the model; it is left as it is.
        chosen: numbers of neurons by layer.
        recalls: the fact's answers to wordings that the neurons were not found in, or answers
            that have nothing to do with the fact.
        seed: of the random neurons, as many in each layer, and none of the chosen ones.
    """
    model = loaded.model
    generator = torch.Generator().manual_seed(seed)
    others = {
        layer: _others(unit_counts(model, layer)["mlp.neurons"], units, generator)
        for layer, units in chosen.items()
    }

    def mean(units: Mapping[int, Sequence[int]], factor: float) -> float:
        taps = scaling(model, units, factor)
        with tapped(model, neurons=taps):
            found = [probabilities(answer_logs(model, one, 1), one).item() for one in recalls]
        return sum(found) / len(found)

    return NeuronCheck(
        prompts=len(recalls),
        before=mean({}, 1),
        silent=mean(chosen, 0),
        louder=mean(chosen, 2),
        random_silent=mean(others, 0),
        random_louder=mean(others, 2),
    )


def scaling(
    model: CausalModel, chosen: Mapping[int, Sequence[int]], factor: float
) -> dict[int, NeuronTap]:
    """Taps that multiply what the chosen neurons say, at every token."""

    def of(layer: int, units: Sequence[int]) -> NeuronTap:
        factors = torch.ones(unit_counts(model, layer)["mlp.neurons"], device=model.device)
        factors[list(units)] = factor

        def tap(h: Tensor, routed: Routed | None) -> Tensor:
            if routed is None:
                return h * factors.to(h.dtype)
            own = factors.view(-1, routed.width)[routed.experts]  # positions top_k width
            return h * own.flatten(1).to(h.dtype)

        return tap

    return {layer: of(layer, units) for layer, units in chosen.items()}


def _others(neurons: int, units: Sequence[int], generator: torch.Generator) -> list[int]:
    drawn = torch.randperm(neurons, generator=generator).tolist()
    taken = set(units)
    return [i for i in drawn if i not in taken][: len(units)]


def _largest(by_layer: Mapping[int, Tensor]) -> float:
    """The largest attribution of all layers; never below 0, so that harmful neurons never count."""
    return max(0.0, *(float(scores.max()) for scores in by_layer.values()))


def _unknown(loaded: LoadedModel, recalls: Sequence[Recall]) -> EditError:
    asked = f"{answer_text(loaded, recalls[0])!r} to {recalls[0].text!r}" if recalls else "nothing"
    return EditError(
        f"the neurons behind {asked} were asked for, but the model answers none of "
        f"{len(recalls)} wordings so; ask for an answer that it gives."
    )
