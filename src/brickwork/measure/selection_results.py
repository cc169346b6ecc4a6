"""What running with part of a model was found to cost and save, as JSON documents.

Plain data without torch, so that a report can be drawn from it alone.
"""

from typing import Literal

from brickwork.measure.results import Result

QUALITY_FILE, CARVING_FILE = "routers.json", "carving.json"
FORMAT = 1


class RouterRow(Result):
    """One router at one density, acting in all layers.

    Attributes:
        partition: how the groups were made; empty for routers of single neurons.
        groups: groups of a layer, 0 for single neurons.
        router: a kind of router, or a control.
        density: the share of the neurons that was asked for.
        kept: the share that was kept, over tokens and layers.
        losses: nats per response token, for each functionality.
        captured: the share of the output energy that the kept neurons have.
        cost: multiply-adds relative to the dense FFN, the router's own included.
    """

    partition: str
    groups: int
    router: str
    level: Literal["token", "prompt"]
    density: float
    kept: float
    losses: dict[str, float]
    captured: float
    cost: float


class SpeedRow(Result):
    """One FFN in a decoding step, in seconds, on the machine that wrote the document."""

    density: float
    tokens: int
    dense: float
    sparse: float
    path: str
    dtype: str
    threads: int


class RouterQuality(Result):
    """Loss against density for routers and partitions, and what is measured of speed."""

    format: int = FORMAT
    brickwork: str
    model: str
    fingerprint: str
    data: str
    instances: int
    seed: int
    base_losses: dict[str, float]
    rows: tuple[RouterRow, ...]
    speeds: tuple[SpeedRow, ...] = ()


class LayerKept(Result):
    """What one layer keeps, and of how many; a skipped layer keeps nothing."""

    layer: int
    neurons: int
    of_neurons: int
    kv_heads: int
    of_kv_heads: int
    skipped: bool = False


class Carving(Result):
    """A smaller model: what was kept where, how it was chosen, and what it costs.

    Attributes:
        target: the functionality, or the file of examples, that it was made for.
        units: what was chosen among: neurons, groups, heads or layers.
        by: the method that says what is needed.
        widths: whether all layers have one width, or each its own.
        instances: held-out ones that losses were measured on.
        before: nats per response token on these, for each functionality.
        after: the same for the smaller model.
        random: the same with as many random units, a mean over several draws.
        healed: the same after healing; None without it.
        parameters: before and after.
        flops: for each token, before and after.
    """

    format: int = FORMAT
    brickwork: str
    model: str
    fingerprint: str
    data: str
    target: str
    units: str
    by: str
    density: float
    widths: str
    seed: int
    layers: tuple[LayerKept, ...]
    instances: int
    before: dict[str, float]
    after: dict[str, float]
    random: dict[str, float]
    healed: dict[str, float] | None = None
    parameters: tuple[int, int]
    flops: tuple[int, int]
