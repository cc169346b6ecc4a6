"""The brick bank: what loaded bricks hold, laid out so that a mixed batch can be gathered at once.

Low-rank terms live in pages of rank 1: the rows of ``A`` in one matrix for all modules that read
the same tensor, the columns of ``B`` in one matrix per module. A brick of rank r owns r pages of
each, page 0 is zero. A row that uses several bricks of any ranks reads the pages of all of them.
Loading a brick costs the same however many are loaded.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.effects import (
    Add,
    Codebook,
    Effect,
    Embed,
    Exit,
    Mask,
    Patch,
    Prefix,
    Route,
    Scale,
    Shift,
    Skip,
)
from brickwork.brick.forms import effects_of, find_form
from brickwork.errors import ConfigurationError, UnknownNameError
from brickwork.runtime.pages import Pages


@dataclass
class Resident:
    """A loaded brick: its pages by site, and the effects that are kept as they are."""

    hash: str
    name: str
    bytes: int
    A_pages: dict[str, list[int]] = field(default_factory=dict)
    B_pages: dict[str, list[int]] = field(default_factory=dict)
    scales: list[Scale] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)
    prefixes: dict[str, Prefix] = field(default_factory=dict)
    vectors: list[Tensor] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    codebooks: list[Codebook] = field(default_factory=list)

    @property
    def prefix_tokens(self) -> int:
        """How many positions its keys and values take."""
        return next((p.key.shape[1] for p in self.prefixes.values()), 0)

    @property
    def embed_tokens(self) -> int:
        """How many input vectors it puts before the prompt."""
        return sum(len(v) for v in self.vectors)


class Bank:
    """Loaded bricks by content hash, the least recently used one leaving first.

    Args:
        like: a tensor of the base's dtype and device; bricks are kept so.
        input_of: names the tensor that the module at a path reads; modules with one name for it
            share the matrix of their ``A`` pages.
        budget: bytes that loaded bricks may take; None is unlimited. A batch that needs more
            than that at once is refused. Pages that are free again are kept for the next brick.
        pages: rank pages set aside per site at first.
    """

    def __init__(
        self,
        like: Tensor,
        input_of: Callable[[str], str],
        *,
        budget: int | None = None,
        pages: int = 64,
    ) -> None:
        self._like, self._budget, self._first_pages = like, budget, pages
        self._exact = torch.promote_types(like.dtype, torch.float32)  # of what chooses by states
        self.input_of = input_of
        self.A: dict[str, Pages] = {}
        self.B: dict[str, Pages] = {}
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        self._pinned: set[str] = set()
        self._lent = False

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, hash: str) -> bool:
        return hash in self._residents

    @property
    def dtype(self) -> torch.dtype:
        """The base's."""
        return self._like.dtype

    @property
    def bytes(self) -> int:
        """What the loaded bricks take."""
        return sum(resident.bytes for resident in self._residents.values())

    def resident(self, hash: str) -> Resident:
        """The loaded brick of that hash, now the most recently used one.

        Raises:
            UnknownNameError: if no brick of that hash is loaded.
        """
        if hash not in self._residents:
            raise UnknownNameError("loaded brick", hash, self._residents)
        self._residents.move_to_end(hash)
        return self._residents[hash]

    @torch.inference_mode(False)
    @torch.no_grad()
    def load(self, brick: Brick, *, keep: Iterable[str] = ()) -> Resident:
        """Load a brick, once; others leave if the budget asks for it, those in ``keep`` never.

        Raises:
            ConfigurationError: if the budget is too small even so; then nothing has left.
        """
        if brick.hash in self._residents:
            return self.resident(brick.hash)
        effects = effects_of(brick)
        size = sum(t.numel() * self._width(brick, t) for t in brick.tensors.values())
        self._make_room(size, {*keep, *self._pinned}, brick.spec.name)
        resident = Resident(brick.hash, brick.spec.name, size)
        for effect in effects:
            self._put(resident, effect)
        self._residents[brick.hash] = resident
        return resident

    def pin(self, hash: str) -> None:
        """Never let this loaded brick leave to make room."""
        self._pinned.add(self.resident(hash).hash)

    @torch.inference_mode(False)
    @torch.no_grad()
    def unload(self, hash: str) -> None:
        """Free what the brick takes; its pages are zeroed before anyone else gets them."""
        resident = self.resident(hash)
        del self._residents[hash]
        for site, numbers in resident.A_pages.items():
            self.A[self.input_of(site)].drop(numbers)
        for site, numbers in resident.B_pages.items():
            self.B[site].drop(numbers)
        self._pinned.discard(hash)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, the memory of gathered pages belongs to one batch.

        Raises:
            ConfigurationError: if it belongs to a batch already.
        """
        if self._lent:
            raise ConfigurationError(
                "these bricks are serving another batch already; leave its block, or finish or "
                "close its stream, first."
            )
        self._lent = True
        try:
            yield
        finally:
            self._lent = False

    def _make_room(self, size: int, kept: set[str], name: str) -> None:
        if self._budget is None:
            return
        staying = sum(r.bytes for r in self._residents.values() if r.hash in kept)
        if staying + size > self._budget:
            raise ConfigurationError(
                f"loading brick {name!r} takes {size:,} bytes; the bank holds {staying:,} that "
                f"this batch or a pin needs, of {self._budget:,} allowed. Raise the budget or "
                "run fewer bricks at once."
            )
        leaving = [hash for hash in self._residents if hash not in kept]
        while self.bytes + size > self._budget:
            self.unload(leaving.pop(0))

    def _width(self, brick: Brick, tensor: Tensor) -> int:
        """Bytes of one number; what chooses is not rounded to the base's dtype."""
        chooses = {"mask": tensor.element_size(), "exit": tensor.element_size(), "route": 4}
        chooses |= dict.fromkeys(("patch", "codebook"), self._exact.itemsize)
        return chooses.get(find_form(brick.spec.form).effect, self._like.element_size())

    def _put(self, resident: Resident, effect: Effect) -> None:
        match effect:
            case Add(site, A, B, scaling):
                group = self.input_of(site)
                for matrices, key, width in (
                    (self.A, group, A.shape[1]),
                    (self.B, site, B.shape[0]),
                ):
                    if key not in matrices:
                        matrices[key] = Pages.new(width, self._first_pages, self._like)
                resident.A_pages[site] = self.A[group].put(A)
                # Scaled before it is rounded to the base's dtype, so nothing is rounded twice.
                resident.B_pages[site] = self.B[site].put(B.T * scaling)
            case Scale(site, factor, on):
                resident.scales.append(Scale(site, factor.to(self._like), on))
            case Shift(site, vector):
                resident.shifts.append(Shift(site, vector.to(self._like)))
            case Prefix(site, key, value):
                resident.prefixes[site] = Prefix(site, key.to(self._like), value.to(self._like))
            case Embed(_, vectors):
                resident.vectors.append(vectors.to(self._like))
            case Patch() | Codebook():
                self._put_memory(resident, effect)
            case _:
                self._put_selection(resident, effect)

    def _put_selection(self, resident: Resident, effect: Mask | Skip | Exit | Route) -> None:
        device = self._like.device
        match effect:
            case Mask(site, keep):
                resident.masks.append(Mask(site, keep.to(device)))
            case Skip(site, share):
                resident.skips.append(Skip(site, share.to(self._like)))
            case Exit(site, confidence):
                resident.exits.append(Exit(site, confidence.to(device)))
            case Route(site, tensors, density, level):
                # Not rounded to the base's dtype, in which a group's number may not exist.
                own = {name: tensor.to(device).float() for name, tensor in tensors.items()}
                resident.routes.append(Route(site, own, density, level))

    def _put_memory(self, resident: Resident, effect: Patch | Codebook) -> None:
        def exact(tensor: Tensor) -> Tensor:
            return tensor.to(self._like.device, self._exact)

        match effect:
            case Patch(site, key, bias, value):
                resident.patches.append(Patch(site, exact(key), exact(bias), exact(value)))
            case Codebook(site, key, value, radius, projection, replaces):
                own = None if projection is None else exact(projection)
                book = Codebook(site, exact(key), exact(value), exact(radius), own, replaces)
                resident.codebooks.append(book)
