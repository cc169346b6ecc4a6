"""Stitching: the first blocks of one model go on in another of any width, through a linear map.

The map from the residual stream of the one to that of the other is found in closed form from what
both say of the same tokens. Each pair of places is a model of its own, so that two models give a
family of models between them.

Source: SN-Net, Pan et al. 2023, arXiv:2302.06586; SN-Netv2, Pan et al. 2023, arXiv:2307.00154.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.combine.stitch_sums import StreamSums
from brickwork.errors import ConfigurationError, DataError, MergeError, listed
from brickwork.measure.perplexity import TOKENS_PER_BATCH, token_mask
from brickwork.model.fingerprint import tokenizer_hash
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel, layers_of, row_of
from brickwork.model.stitched import StitchedModel, stitch_models
from brickwork.model.taps import BlockTap, tapped
from brickwork.model.train import Encoded, groups_by_length, pack

# Of the mean variance of a channel, so that scaling the activations changes nothing.
RIDGE = 1e-6


@dataclass(frozen=True, order=True)
class Point:
    """Where one model goes over into the other.

    Attributes:
        front: blocks of the front model that come first.
        back: number of the back model's block that comes next.
    """

    front: int
    back: int

    def __str__(self) -> str:
        return f"{self.front}:{self.back}"


@dataclass(frozen=True, eq=False)
class Stitch:
    """The map at one point.

    Attributes:
        point: where it is.
        weight: of the map.
        bias: of the map.
        explained: share of the variance of the back's stream that the map explains on tokens it
            was not fitted on, at most 1; None if it was not measured. The channels with the
            largest variance decide it.
        explained_median: the same for each channel alone, and of these the median.
    """

    point: Point
    weight: Float[Tensor, "back_hidden front_hidden"]
    bias: Float[Tensor, " back_hidden"]
    explained: float | None = None
    explained_median: float | None = None


@dataclass(frozen=True, eq=False)
class StitchedFamily:
    """Two models and what lies between them; the ends are the two models themselves.

    Attributes:
        front: gives embeddings and first blocks.
        back: gives last blocks and heads.
        stitches: one for each point.
    """

    front: LoadedModel
    back: LoadedModel
    stitches: tuple[Stitch, ...]

    @cached_property
    def ends(self) -> Mapping[Point, LoadedModel]:
        """The points at which nothing is stitched: no block of the front, or all of it alone."""
        last = Point(layers_of(self.front.model), layers_of(self.back.model))
        return {Point(0, 0): self.back, last: self.front}

    def model(self, point: Point) -> StitchedModel | CausalModel:
        """The model at a point; at an end that very model.

        Raises:
            MergeError: if there is no stitch at this point.
        """
        if point in self.ends:
            return self.ends[point].model
        found = [stitch for stitch in self.stitches if stitch.point == point]
        if not found:
            raise MergeError(
                f"the model at {point} was asked for, and there are stitches at "
                f"{', '.join(str(s.point) for s in self.stitches)}; choose one of them."
            )
        return stitch_models(
            self.front,
            self.back,
            blocks=(point.front, point.back),
            weight=found[0].weight,
            bias=found[0].bias,
        )


def spread_points(front_layers: int, back_layers: int, count: int | None = None) -> list[Point]:
    """Points at equal depth in both models, spread over the depth.

    Args:
        front_layers: of the front model.
        back_layers: of the back model.
        count: how many, if there are so many; None for all.

    >>> [str(point) for point in spread_points(4, 8)]
    ['1:1', '1:2', '2:3', '2:4', '3:5', '3:6', '3:7']
    >>> [str(point) for point in spread_points(4, 8, 3)]
    ['1:1', '2:4', '3:7']
    """
    deep = max(front_layers, back_layers)
    places = [
        [(2 * step * layers + deep) // (2 * deep) for layers in (front_layers, back_layers)]
        for step in range(1, max(deep, 2))
    ]
    every = sorted(
        {
            Point(
                min(max(front, 1), max(front_layers - 1, 1)),
                min(max(back, 1), back_layers - 1),
            )
            for front, back in places
        }
    )
    if count is None or count >= len(every):
        return every
    if count == 1:
        return [every[len(every) // 2]]
    return [every[step * (len(every) - 1) // (count - 1)] for step in range(count)]


def parse_points(text: str) -> list[Point]:
    """Points as people write them.

    Raises:
        ConfigurationError: if the text is none.

    >>> parse_points("2:3, 4:5")
    [Point(front=2, back=3), Point(front=4, back=5)]
    """
    points = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,4}):([0-9]{1,4})\s*", part, re.ASCII)
        if found is None:
            raise ConfigurationError(
                f"the points {text!r} have the part {part!r}, which is no point; write blocks of "
                "the front, a colon, and the back's next block, as in 2:3,4:5."
            )
        points.append(Point(int(found[1]), int(found[2])))
    return points


def width_of(loaded: LoadedModel) -> int:
    """The channels of a model's residual stream."""
    width: int = loaded.model.config.get_text_config().hidden_size
    return width


def fit_stitches(
    front: LoadedModel,
    back: LoadedModel,
    sequences: Sequence[Encoded],
    points: Sequence[Point],
    *,
    held_out: Sequence[Encoded] = (),
    ridge: float = RIDGE,
    advance: Callable[[float], None] = lambda _sequences: None,
) -> tuple[Stitch, ...]:
    """The maps of least squared error from the front's residual stream to the back's.

    Each model runs once over the data, whatever the number of points; only sums are kept.

    Args:
        front: the model whose stream is mapped.
        back: the model whose stream is to be met; of the same tokenizer.
        sequences: token ids to fit on; more tokens than the front has channels.
        points: where to stitch.
        held_out: other token ids, to tell how much of the variance is explained.
        ridge: added to the variances, in units of the mean variance of the front's channels.
        advance: told the number of sequences that have just been done.

    Raises:
        MergeError: if the models do not go together, a point is not between them, or there are
            too few tokens.
        DataError: if there is nothing to fit on.
        UnknownNameError: if no row describes a model's family.

    Source:
        SN-Net, arXiv:2302.06586, equation 3; here with a bias, by the normal equations in float64.
    """
    require_pair(front, back)
    require_points(front, back, points)
    if not sequences:
        raise DataError("stitches were to be fitted on no sequence; give at least one.")
    sums = StreamSums([(point.front, point.back) for point in points])
    for states in _streams(front, back, sequences, points, advance):
        sums.add(*states)
    maps = {point: sums.solve((point.front, point.back), ridge) for point in points}
    shares = _explained(_streams(front, back, held_out, points, advance), maps)
    return tuple(
        Stitch(point, weight.float(), bias.float(), *shares.get(point, (None, None)))
        for point, (weight, bias) in maps.items()
    )


def require_pair(front: LoadedModel, back: LoadedModel) -> None:
    """Refuse models that cannot be stitched to one another.

    Raises:
        MergeError: with every reason.
        UnknownNameError: if no row describes a model's family.
    """
    problems = []
    for loaded in (front, back):
        row_of(loaded.model)
    sizes = [each.model.config.get_text_config().vocab_size for each in (front, back)]
    words = [each.tokenizer and tokenizer_hash(each.tokenizer) for each in (front, back)]
    if words[0] != words[1]:
        problems.append(
            "their tokenizers differ, so that the same text is other tokens, and no map between "
            "streams has a meaning"
        )
    elif words[0] is None and sizes[0] != sizes[1]:
        problems.append(f"they have no tokenizers, and {sizes[0]} and {sizes[1]} tokens")
    if front.device != back.device:
        problems.append(f"one is on {front.device}, the other on {back.device}")
    if problems:
        raise MergeError(
            f"{front.name or 'a model'} cannot be stitched to {back.name or 'another'}; choose "
            f"models that share a tokenizer, on one device:{listed(problems)}"
        )


def require_points(front: LoadedModel, back: LoadedModel, points: Sequence[Point]) -> None:
    """Refuse points that are not between the models, or twice there.

    Raises:
        MergeError: with the points that there are.
    """
    first, last = layers_of(front.model), layers_of(back.model)
    bad = [str(p) for p in points if not (1 <= p.front <= first and 0 <= p.back < last)]
    if bad or not points or len(set(points)) < len(points):
        found = f"{', '.join(bad)} cannot be" if bad else "there are none, or one is there twice"
        raise MergeError(
            f"stitches were asked for at {', '.join(map(str, points)) or 'no point'}, and {found}; "
            f"in F:B, F is 1 to {first} blocks of {front.name or 'the front'}, and B is block 0 to "
            f"{last - 1} of {back.name or 'the back'}, which comes next."
        )


_Streams = Mapping[int, Float[Tensor, "positions hidden"]]


def _streams(
    front: LoadedModel,
    back: LoadedModel,
    sequences: Sequence[Encoded],
    points: Sequence[Point],
    advance: Callable[[float], None],
) -> Iterator[tuple[_Streams, _Streams]]:
    """Both models' residual streams at all places, without padding, batch by batch."""
    places = {point.front for point in points}, {point.back for point in points}
    for group in groups_by_length([len(s.ids) for s in sequences], TOKENS_PER_BATCH):
        batch = [sequences[i] for i in group]
        ids, mask = pack(batch, pad=0, prompt_weight=0.0).ids, token_mask(batch)
        yield (
            streams_at(front.model, ids, mask, places[0]),
            streams_at(back.model, ids, mask, places[1]),
        )
        advance(len(group))


@torch.inference_mode()
def streams_at(
    model: CausalModel,
    ids: Int[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
    places: set[int],
) -> dict[int, Float[Tensor, "positions hidden"]]:
    """The residual stream after so many blocks (0: before the first), where the mask is True."""
    found: dict[int, Tensor] = {}
    device = next(model.parameters()).device
    chosen = mask.to(device)

    def tap_of(layer: int) -> BlockTap:
        def look(before: Tensor, after: Tensor) -> None:
            for place, states in ((layer, before), (layer + 1, after)):
                if place in places and place not in found:
                    found[place] = states[chosen]

        return look

    blocks = {max(place - 1, 0) for place in places}
    with tapped(model, blocks={layer: tap_of(layer) for layer in blocks}):
        model.base_model(input_ids=ids.to(device), use_cache=False)
    return found


def _explained(
    streams: Iterator[tuple[_Streams, _Streams]],
    maps: Mapping[Point, tuple[Tensor, Tensor]],
) -> dict[Point, tuple[float, float]]:
    """Of each point the share of the variance that its map explains, and the median channel's.

    A point where nothing varies is left out, and so is such a channel.
    """
    errors: dict[Point, Tensor] = {}
    squares: dict[Point, Tensor] = {}
    totals: dict[Point, Tensor] = {}
    tokens = 0
    for front, back in streams:
        tokens += len(next(iter(front.values())))
        for point, (weight, bias) in maps.items():
            # Measured from the bias, which is near the mean: the sums stay small.
            target = back[point.back].double().cpu() - bias
            missed = front[point.front].double().cpu() @ weight.T - target
            for sums, values in (
                (errors, missed.square()), (squares, target.square()), (totals, target)
            ):  # fmt: skip
                sums[point] = sums.get(point, 0) + values.sum(0)
    found = {}
    for point, error in errors.items():
        variance = squares[point] - totals[point].square() / tokens
        varied = variance > 0
        if varied.any():
            alone = 1 - error[varied] / variance[varied]
            found[point] = (float(1 - error.sum() / variance.sum()), float(alone.median()))
    return found
