"""Which neurons of the FFNs an update changes most, and whether a functionality lives there."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.errors import DataError
from brickwork.measure.functionality import functional_units
from brickwork.measure.interference_results import Neurons
from brickwork.measure.profiles import read_scores
from brickwork.measure.updates import products_at
from brickwork.model.load import LoadedModel

_SHARE = 0.05  # of a layer's neurons, as in CFM
_OUT, _IN = (".mlp.gate", ".mlp.up", ".mlp.gate_up"), (".mlp.down",)


def neuron_energy(brick: Brick, loaded: LoadedModel) -> dict[int, Float[Tensor, " neurons"]]:
    """The squared length of what a LoRA adds to every neuron's rows and column, by layer.

    Args:
        brick: a LoRA that fits the model.
        loaded: says which sites are FFNs.
    """
    found: dict[int, Tensor] = {}
    for path in brick.spec.sites:
        site = loaded.base.sites[path]
        if site.layer is None or not site.address.endswith((*_OUT, *_IN)):
            continue
        (product,) = products_at([brick], path)
        A, B = product.A.double(), product.B.double() * product.scaling
        if site.address.endswith(_IN):
            energy = ((B.T @ B @ A) * A).sum(0)
        else:
            energy = ((B @ (A @ A.T)) * B).sum(1)
            if site.address.endswith(".gate_up"):  # both projections, one after the other
                energy = energy.reshape(2, -1).sum(0)
        found[site.layer] = found.get(site.layer, torch.zeros_like(energy)) + energy
    return found


def compare_neurons(
    bricks: Sequence[Brick], names: Sequence[str], loaded: LoadedModel, analysis: Path
) -> list[Neurons]:
    """For each functionality of an analysis, what the bricks write to its neurons.

    Args:
        bricks: LoRAs that fit the model.
        names: of the bricks.
        loaded: the model that was analysed.
        analysis: the folder that ``brickwork analyze`` wrote to.

    Raises:
        DataError: if the analysis is of another model, or no brick changes an FFN.
    """
    scores = read_scores(analysis, loaded)
    energies = [neuron_energy(brick, loaded) for brick in bricks]
    layers = [n for n in scores.activation if any(n in energy for energy in energies)]
    if not layers:
        raise DataError(
            f"neurons were to be compared, but none of {', '.join(names)} changes an FFN's linear "
            "maps; leave the analysis out."
        )
    most = [_most_written(energy, layers) for energy in energies]
    found = []
    for place, function in enumerate(scores.functions):
        chosen = {n: functional_units(scores.activation[n], _SHARE)[place] for n in layers}
        found.append(
            Neurons(
                function=function,
                share=_SHARE,
                energy={
                    name: _energy_share(energy, chosen)
                    for name, energy in zip(names, energies, strict=True)
                },
                both=[
                    _shared(chosen, most[a], most[b]) for a, b in combinations(range(len(most)), 2)
                ],
                both_expected=_SHARE**2,
            )
        )
    return found


def _most_written(
    energy: Mapping[int, Float[Tensor, " neurons"]], layers: Sequence[int]
) -> dict[int, Tensor]:
    return {n: functional_units(energy[n][:, None], _SHARE)[0] for n in layers if n in energy}


def _energy_share(
    energy: Mapping[int, Float[Tensor, " neurons"]], chosen: Mapping[int, Tensor]
) -> float:
    part = sum(energy[n][units].sum().item() for n, units in chosen.items() if n in energy)
    whole = sum(own.sum().item() for own in energy.values())
    return part / whole if whole else 0.0


def _shared(
    chosen: Mapping[int, Tensor], a: Mapping[int, Tensor], b: Mapping[int, Tensor]
) -> float:
    both = sum(
        len(set(units.tolist()) & set(a[n].tolist()) & set(b[n].tolist()))
        for n, units in chosen.items()
        if n in a and n in b
    )
    return both / sum(len(units) for units in chosen.values())
