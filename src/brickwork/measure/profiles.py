"""What neurons and groups of neurons do for functionalities: from an analysis, or from labels.

Two figures, for each functionality. Of an analysis: the functionality score, in (0, 1]. Of labelled
instances alone, in one pass: the mean |activation| over the prompts of the functionality, divided
by its mean over all functionalities; 1 means that the neuron makes no difference between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from brickwork.brick.spec import explain
from brickwork.errors import DataError
from brickwork.measure.activations import part_shares, pooled_neurons
from brickwork.measure.clustering import assign
from brickwork.measure.results import FILE, Analysis
from brickwork.model.load import LoadedModel
from brickwork.model.parts import layers_of
from brickwork.model.taps import NeuronTap, Routed
from brickwork.model.train import Encoded
from brickwork.model.units import unit_counts

SCORES = "scores.safetensors"


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """What an analysis found of single neurons, for each layer."""

    functions: tuple[str, ...]
    activation: Mapping[int, Float[Tensor, "neurons functions"]]
    selectivity: Mapping[int, Float[Tensor, "neurons functions"]]


def read_scores(folder: Path, loaded: LoadedModel) -> NeuronScores:
    """The scores of an analysis of this model.

    Args:
        folder: that ``brickwork analyze`` wrote to.
        loaded: the model; its weights are compared with the analysed ones.

    Raises:
        DataError: if the folder holds no whole analysis, or one of another model.
    """
    try:
        analysis = Analysis.model_validate_json((folder / FILE).read_bytes())
        tensors = load_file(folder / SCORES)
    except ValidationError as error:
        raise DataError(
            f"{folder / FILE} is not an analysis: {explain(error)}; make it again."
        ) from None
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"neuron scores were asked of {folder}, which holds no whole analysis ({error}); name "
            "the folder that `brickwork analyze` wrote to."
        ) from None
    own = loaded.base.fingerprint.weights
    if analysis.model.fingerprint != own:
        raise DataError(
            f"the analysis in {folder} is of {analysis.model.name!r} with weights "
            f"{analysis.model.fingerprint[:12]}, not of this model ({own[:12]}); analyse this one."
        )
    functions = tuple(function.name for function in analysis.data.functions)
    return NeuronScores(
        functions,
        *(_of_layers(tensors, word, loaded, len(functions), folder)
          for word in ("activation", "selectivity")),
    )  # fmt: skip


def _of_layers(
    tensors: Mapping[str, Tensor], word: str, loaded: LoadedModel, functions: int, folder: Path
) -> dict[int, Float[Tensor, "neurons functions"]]:
    found = {}
    for layer in range(layers_of(loaded.model)):
        name = f"layers.{layer}.mlp.neurons.{word}"
        shape = (unit_counts(loaded.model, layer)["mlp.neurons"], functions)
        if name not in tensors or tuple(tensors[name].shape) != shape:
            other = list(tensors[name].shape) if name in tensors else "missing"
            raise DataError(
                f"{folder / SCORES} should hold {name!r} of size {list(shape)}, but it is "
                f"{other}; make the analysis again."
            )
        found[layer] = tensors[name].float()
    return found


class FunctionMeans:
    """The mean |activation| of every neuron over prompts, for each functionality."""

    def __init__(self, loaded: LoadedModel, functions: Sequence[str]) -> None:
        self.functions = tuple(functions)
        layers = range(layers_of(loaded.model))
        self._neurons = [unit_counts(loaded.model, n)["mlp.neurons"] for n in layers]
        self._sums = [
            torch.zeros(len(functions), n, dtype=torch.float64, device=loaded.device)
            for n in self._neurons
        ]
        self._instances = torch.zeros(len(functions), dtype=torch.int64, device=loaded.device)
        self._shares, self._labels = torch.zeros(0, 0), self._instances[:0]

    def begin(self, batch: Sequence[Encoded], labels: Int[Tensor, " rows"], tokens: int) -> None:
        """Say what the batch that is about to run is of, padded to so many tokens."""
        device = self._instances.device
        self._shares = part_shares(batch, tokens, "prompt").to(device)
        self._labels = labels.to(device)
        self._instances += torch.bincount(self._labels, minlength=len(self.functions))

    def taps(self) -> dict[int, NeuronTap]:
        """A tap for each layer."""
        return {layer: self._tap(layer) for layer in range(len(self._neurons))}

    def relative(self, layer: int) -> Float[Tensor, "neurons functions"]:
        """Means over a functionality, divided by the mean over all; 1 for a silent neuron."""
        means = self._sums[layer] / self._instances.clamp(min=1).unsqueeze(1)
        overall = means.mean(0)
        relative = torch.where(overall > 0, means / overall, 1.0)
        return relative.T.float().cpu()

    def _tap(self, layer: int) -> NeuronTap:
        def tap(h: Tensor, routed: Routed | None) -> None:
            rows = pooled_neurons(
                h.abs().float(), routed, self._shares, largest=False, neurons=self._neurons[layer]
            )
            self._sums[layer].index_add_(0, self._labels, rows.double())

        return tap


def group_means(
    values: Float[Tensor, "neurons functions"], owners: Int[Tensor, " neurons"]
) -> Float[Tensor, "groups functions"]:
    """The mean over the neurons of each group; those of no group (below 0) are left out."""
    own = owners >= 0
    sums = values.new_zeros(int(owners.max()) + 1, values.shape[1])
    sums.index_add_(0, owners[own].long(), values[own])
    return sums / torch.bincount(owners[own], minlength=len(sums)).unsqueeze(1)


def split_by_function(
    scores: Float[Tensor, "neurons functions"], groups: int
) -> Int[Tensor, " neurons"]:
    """Equal groups of neurons that serve the same functionality.

    Scores are standardised over the neurons, for each functionality. Each functionality gets
    groups, more where more neurons serve it best; where there are fewer groups than
    functionalities, the most alike of these are taken together. Neurons are then assigned as by
    ``clustering.assign``, and those of one functionality cut into groups from the highest score
    to the lowest.

    Args:
        scores: functionality scores; higher for a neuron that serves a functionality more.
        groups: how many; they must divide the number of neurons.
    """
    size = len(scores) // groups
    spread = scores.std(0, correction=0).clamp(min=torch.finfo(scores.dtype).tiny)
    serving = _bundled((scores - scores.mean(0)) / spread, groups)  # neurons bundles
    rooms = _shared_out(torch.bincount(serving.argmax(1), minlength=serving.shape[1]), groups)
    function = assign(-serving, rooms * size)
    own = serving.gather(1, function.unsqueeze(1)).squeeze(1)
    order = own.sort(descending=True, stable=True).indices
    order = order[function[order].sort(stable=True).indices]
    owners = torch.empty(len(scores), dtype=torch.int64)
    owners[order] = torch.arange(len(scores)) // size
    return owners


def _bundled(
    scores: Float[Tensor, "neurons functions"], most: int
) -> Float[Tensor, "neurons bundles"]:
    """Columns for at most so many bundles of functionalities; a bundle's score is its best."""
    columns = list(scores.T)
    while len(columns) > most:
        every = torch.stack(columns)
        alike = torch.corrcoef(every).nan_to_num(0.0) if len(every) > 1 else every
        alike.fill_diagonal_(-torch.inf)
        first, second = sorted(divmod(int(alike.argmax()), len(columns)))
        columns[first] = torch.maximum(columns[first], columns.pop(second))
    return torch.stack(columns, dim=1)


def _shared_out(demand: Int[Tensor, " bundles"], groups: int) -> Int[Tensor, " bundles"]:
    """So many groups for bundles: one each, the rest in proportion to demand (Sainte-Lague)."""
    rooms = torch.ones_like(demand)
    for _ in range(groups - len(demand)):
        rooms[int((demand / (2 * rooms + 1)).argmax())] += 1
    return rooms
