"""Learned growth: maps from the small model to the large one, trained for some hundred steps."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from pydantic import JsonValue
from torch import nn
from torch.func import functional_call

from brickwork.grow.growth import GrownWeights
from brickwork.grow.learned_maps import GrowthMaps, Start
from brickwork.grow.recipe import GrowthRecipe, grow_by_recipe
from brickwork.grow.record import Step
from brickwork.measure.results import Result
from brickwork.model.fit import FitRecipe, Report, fit, training_batches
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel
from brickwork.model.sizes import model_of
from brickwork.model.train import Encoded
from brickwork.model.weights import ModelWeights


class LearnedGrowth(Result):
    """What was done.

    Attributes:
        brickwork: its version.
        model: the name of the small one.
        steps: the growths that the maps started from.
        start: ``exact`` or ``selection``, see GrowthMaps.
        recipe: how the maps were trained, by field.
        sequences: how many they were trained on.
        trained: numbers of the maps.
        parameters: of the large model.
        losses: of each batch, before the step that it led to.
    """

    brickwork: str
    model: str
    steps: tuple[Step, ...]
    start: Start
    recipe: dict[str, JsonValue]
    sequences: int
    trained: int
    parameters: int
    losses: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Learned:
    """The large model, and how it came to be."""

    loaded: LoadedModel
    record: LearnedGrowth


def learn_growth(
    loaded: LoadedModel,
    growths: GrowthRecipe,
    sequences: Sequence[Encoded],
    recipe: FitRecipe,
    *,
    start: Start = "exact",
    report: Report = lambda step, steps, loss: None,
) -> Learned:
    """A larger model, linear in this one's parameters by maps that are trained.

    All is done in memory, in float32: beside the model, it takes about two of the larger one,
    and the maps with their optimizer. The model itself stays as it is.

    Args:
        loaded: the small model.
        growths: what it grows to, by width, heads, hidden size and depth; with ``start`` what the
            maps are at first. Where all steps keep all logits, and the start is exact, training
            begins with the small model's loss.
        sequences: prompts with responses.
        recipe: how the maps are trained; the paper takes 100 steps.
        start: see GrowthMaps.
        report: called after each step with the step, the number of steps, and the loss.

    Raises:
        GrowthError: if the model cannot grow so, or not by maps.
        ConfigurationError: if there is no step, or the options of a growth are not its own.
        DataError: if there is nothing to train on.
        ModelError: if the loss is no number any more.

    Source:
        LiGO (Wang et al. 2023, arXiv:2303.00980).
    """
    grown = grow_by_recipe(ModelWeights(loaded.model), growths, tokenizer=loaded.tokenizer)
    assert isinstance(grown.weights, GrownWeights), "a recipe has at least one step"
    maps = GrowthMaps(grown.weights, start, growths.seed)
    large = _model_by(maps, grown.weights, loaded, torch.float32)
    losses = fit(
        _Grower(large.model, maps),
        maps.parameters(),
        training_batches(sequences, recipe),
        recipe,
        report=report,
    )
    record = LearnedGrowth(
        brickwork=version("brickwork"),
        model=loaded.name,
        steps=grown.steps,
        start=start,
        recipe=asdict(recipe),
        sequences=len(sequences),
        trained=sum(p.numel() for p in maps.parameters()),
        parameters=sum(p.numel() for p in large.model.parameters()),
        losses=tuple(losses),
    )
    return Learned(_model_by(maps, grown.weights, loaded), record)


class _Grower(nn.Module):
    """The large model, whose parameters are computed from the maps whenever it is called."""

    def __init__(self, model: CausalModel, maps: GrowthMaps) -> None:
        super().__init__()
        self.model, self.maps = model, maps

    def forward(self, **inputs: Any) -> Any:
        return functional_call(self.model, self.maps(), (), inputs)


@torch.no_grad()
def _model_by(
    maps: GrowthMaps, grown: GrownWeights, like: LoadedModel, dtype: torch.dtype | None = None
) -> LoadedModel:
    """The large model as the maps make it now; without ``dtype``, in those of the small one."""
    made = {path: t.to(dtype or grown.dtype_of(path)) for path, t in maps().items()}
    return model_of(grown.outline.config, made, like)
