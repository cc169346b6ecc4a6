"""Part of the base at work: what the masks, routers and exits of a batch's rows do to its modules.

Hooks silence what is not kept, which is right for every family and beside every other brick. What
is silent is not computed at all where that is safe: in a decoding step of a packed model, the FFN
reads the records of the kept neurons alone (``sparse_ffn``), if that is expected to be faster.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from brickwork.brick.base import Site
from brickwork.brick.effects import Exit, Mask, Route
from brickwork.model.attach import RowWork
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel, find_module, layers_of, role_path
from brickwork.model.taps import NeuronTap, tapped
from brickwork.runtime.exits import Exits
from brickwork.runtime.ffn_selection import FfnSelection, Spans
from brickwork.runtime.gather import Rows
from brickwork.runtime.kernels import Records
from brickwork.runtime.sparse_ffn import SparsePolicy, crossover, sparse_ffn

_DOWN, _EXPERTS = ".mlp.down", ".mlp.experts"


@contextmanager
def selecting(
    loaded: LoadedModel,
    rows: Rows,
    spans: Spans,
    *,
    records: Mapping[int, Records] | None = None,
    busy: Collection[str] = (),
) -> Iterator[Exits | None]:
    """Inside, each row computes with the part of the base that its bricks keep.

    Yields the early exits, if a row has any.

    Args:
        loaded: the base.
        rows: the loaded bricks of each row; those of weight 0 do nothing.
        spans: where the rows stand in the first pass.
        records: those of the FFNs, if the model is packed.
        busy: paths of modules that other bricks act at; an FFN with one of them is computed whole.

    Raises:
        UnknownNameError: if a router or an exit acts and no row describes the base's family.
    """
    model = loaded.model
    acting = [[use.resident for use in row if use.weight != 0] for row in rows]
    masks = _masks([[mask for brick in row for mask in brick.masks] for row in acting])
    routes = [[route for brick in row for route in brick.routes] for row in acting]
    ffns = _ffn_selections(loaded, masks, routes, spans)
    exits = _exits(loaded, [[e for brick in row for e in brick.exits] for row in acting], spans)
    neurons: dict[int, NeuronTap] = {layer: ffn.tap for layer, ffn in ffns.items()}
    inputs = {n: ffn.see for n, ffn in ffns.items() if any(_at(loaded, r, n) for r in routes)}
    with ExitStack() as stack:
        blocks = exits.taps() if exits else {}
        if neurons or blocks:
            stack.enter_context(tapped(model, neurons=neurons, inputs=inputs, blocks=blocks))
        hooked = [path for path in masks if not _is_ffn(loaded.base.sites[path])]
        for path in hooked:
            hook = model.get_submodule(path).register_forward_pre_hook(_keeping(masks[path]))
            stack.callback(hook.remove)
        sparse = _sparse_ffns(loaded, ffns, records or {}, [*busy, *hooked])
        stack.enter_context(_quick_ffns(model, sparse, exits))
        yield exits


def allow_bypass(loaded: LoadedModel, work: Mapping[str, RowWork]) -> None:
    """Mark the blocks that no row needs, so that they are not computed.

    A block that is not computed fills no cache. The sizes of masks are taken from the first cache
    of each kind of attention, so one block of each kind before it must be computed.
    """
    kinds = getattr(loaded.model.config.get_text_config(), "layer_types", None)
    computed: set[object] = set()
    for site in loaded.base.of_kind("block"):
        assert site.layer is not None
        kind = kinds[site.layer] if kinds else None
        terms = work.get(site.path)
        if terms is not None and kind in computed and _needless(terms):
            terms.bypass = True
        else:
            computed.add(kind)


def _needless(terms: RowWork) -> bool:
    """Whether all rows skip the block as a whole, and no row reads what it says."""
    reads = terms.patch is not None or bool(terms.codebooks)
    return terms.skip is not None and bool((terms.skip == 1).all()) and not reads


def _masks(rows: Sequence[Sequence[Mask]]) -> dict[str, Bool[Tensor, "rows in"]]:
    """What each row keeps of the inputs of every site that a mask names."""
    found: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for row, own in enumerate(rows):
        for mask in own:
            kept = found[mask.site].get(row)
            keep = mask.keep != 0
            found[mask.site][row] = keep if kept is None else kept | keep
    stacked = {}
    for site, by_row in found.items():
        whole = torch.ones_like(next(iter(by_row.values())))
        stacked[site] = torch.stack([by_row.get(row, whole) for row in range(len(rows))])
    return stacked


def _ffn_selections(
    loaded: LoadedModel,
    masks: Mapping[str, Tensor],
    routes: Sequence[Sequence[Route]],
    spans: Spans,
) -> dict[int, FfnSelection]:
    by_layer: dict[int, Tensor] = {}
    for path, keep in masks.items():
        site = loaded.base.sites[path]
        if site.layer is not None and _is_ffn(site):
            by_layer[site.layer] = keep
    routed = {loaded.base.sites[route.site].layer for own in routes for route in own}
    layers = sorted({*by_layer, *(layer for layer in routed if layer is not None)})
    return {
        layer: FfnSelection(
            by_layer.get(layer),
            [_at(loaded, own, layer) for own in routes],
            spans,
            ffn_of(loaded.model, layer),
        )
        for layer in layers
    }


def _is_ffn(site: Site) -> bool:
    """Whether what a site reads are the neurons of a layer whose FFN is known."""
    return site.layer is not None and site.address.endswith((_DOWN, _EXPERTS))


def _at(loaded: LoadedModel, routes: Sequence[Route], layer: int) -> list[Route]:
    return [route for route in routes if loaded.base.sites[route.site].layer == layer]


def _exits(loaded: LoadedModel, rows: Sequence[Sequence[Exit]], spans: Spans) -> Exits | None:
    found: dict[int, list[tuple[int, Exit]]] = defaultdict(list)
    for row, own in enumerate(rows):
        for exit in own:
            layer = loaded.base.sites[exit.site].layer
            assert layer is not None, "an exit sits at a block"
            found[layer].append((row, exit))
    return Exits(loaded.model, found, spans) if found else None


def _keeping(keep: Bool[Tensor, "rows in"]) -> Callable[..., Any]:
    """A hook that silences inputs of a linear map, other ones for each row."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        return ((x.reshape(len(keep), -1, x.shape[-1]) * keep.unsqueeze(1)).view_as(x), *args[1:])

    return hook


def _sparse_ffns(
    loaded: LoadedModel,
    ffns: Mapping[int, FfnSelection],
    records: Mapping[int, Records],
    busy: Collection[str],
) -> dict[int, "_Sparse"]:
    """The FFNs that can be computed from records: no other brick acts inside them."""
    sites = (loaded.base.sites[path] for path in busy)
    taken = {site.layer for site in sites if ".mlp." in site.address}
    found = {}
    for layer in sorted((ffns.keys() & records.keys()) - taken):
        ffn = ffn_of(loaded.model, layer)
        assert isinstance(ffn, FFN), "there are no records of experts"
        found[layer] = _Sparse(ffns[layer], records[layer], ffn)
    return found


@contextmanager
def _quick_ffns(
    model: CausalModel, sparse: Mapping[int, "_Sparse"], exits: Exits | None
) -> Iterator[None]:
    """Shadow the ``forward`` of the FFNs that can do with less; leaving takes the shadow away.

    An FFN that is no module of its own (OPT) is computed whole.
    """
    left = range(exits.first + 1, layers_of(model)) if exits else ()
    shadowed = []
    try:
        for layer in sorted({*sparse, *left}):
            module = find_module(model, role_path(model, "mlp", layer))
            if module is not None:
                watched = exits if layer in left else None
                module.forward = _quick(module.forward, watched, sparse.get(layer))
                shadowed.append(module)
        yield
    finally:
        for module in shadowed:
            del module.forward


def _quick(
    base: Callable[..., Any], exits: Exits | None, sparse: "_Sparse | None"
) -> Callable[..., Any]:
    def forward(x: Tensor) -> Any:
        if exits is not None and exits.all_left:
            return torch.zeros_like(x)  # nobody reads it
        y = None if sparse is None else sparse(x)
        return base(x) if y is None else y

    return forward


class _Sparse:
    """One FFN in a decoding step, computed from the kept neurons' records where that pays."""

    def __init__(self, selection: FfnSelection, records: Records, ffn: FFN) -> None:
        self._selection, self._records, self._ffn = selection, records, ffn
        self._policy: SparsePolicy | None = None  # measured when the first step asks for it
        self._settled: tuple[Tensor, Tensor | None] | None = None

    def __call__(self, x: Float[Tensor, "rows tokens hidden"]) -> Tensor | None:
        """What the FFN says, or None where it had better be computed whole."""
        if x.dim() != 3 or x.shape[1] != 1 or self._selection.needs_activations:
            return None
        neurons, keep = self._chosen(x)
        density = len(neurons) / self._ffn.neurons + self._selection.share_read
        self._policy = self._policy or crossover(self._records)
        if self._policy.choose(density, len(x)) == "dense":
            return None
        return sparse_ffn(self._records, x.flatten(0, 1), neurons, keep=keep).view_as(x)

    def _chosen(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The neurons that any row keeps, and which row keeps which if they differ."""
        if self._settled is not None:
            return self._settled
        kept = self._selection.keep(x, lambda: self._ffn.activations(x)).squeeze(1)
        neurons = kept.any(0).nonzero().squeeze(1)
        own = kept[:, neurons]
        found = (neurons, None if bool(own.all()) else own)
        if self._selection.settled:
            self._settled = found
        return found
