"""Effects in deed: what each row of a batch adds to the modules of a model.

Inside ``attached(model, rows, work)`` the named modules compute, for row b of the batch,

    y_b = scale_out_b * base(scale_in_b * x_b) + (x_b A_b^T) B_b + shift_b

with the row's own factors, low-rank terms and shifts. The terms refer to the base's own input and
output, so the order of bricks does not matter. A block that a row skips by a share adds that much
less of what it does; neurons added after it read its own output, and a codebook, which reads its
input, has the last word. Nothing is wrapped, renamed or copied: a module's ``forward`` is shadowed
on the instance, and leaving the block takes the shadow away.

Without a number of rows, all rows of any batch have the same terms: those of row 0.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brickwork.errors import ConfigurationError
from brickwork.model.memory_work import CodebookWork, PatchWork, answered


@dataclass
class SharedShrink:
    """The first half of the low-rank terms of modules that read the same input, done once.

    ``q``, ``k`` and ``v`` read one tensor, and so do ``gate`` and ``up``. The first of them
    multiplies by all their ``A`` at once; the others find their part. Each module takes its part
    once, so the same tensor object in a later pass, changed or not, is multiplied anew; only
    between the modules of one pass must nobody change it in place.

    Attributes:
        A: the ``A`` of all modules side by side.
        modules: how many modules share; when the last one has its part, the product is let go.
    """

    A: Float[Tensor, "rows in all_ranks"]
    modules: int = 1
    _source: Tensor | None = field(default=None, init=False, repr=False)
    _product: Tensor | None = field(default=None, init=False, repr=False)
    _taken: set[int] = field(default_factory=set, init=False, repr=False)

    def __call__(
        self, source: Tensor, x: Float[Tensor, "rows tokens in"], columns: tuple[int, int]
    ) -> Float[Tensor, "rows tokens rank"]:
        """These columns, first to last, of ``x A`` for all modules of the group.

        ``source`` is the tensor that they all read, and ``x`` the same with its rows apart.
        """
        first, last = columns
        product = self._product
        if product is None or self._source is not source or first in self._taken:
            product = torch.bmm(x, self.A)
            self._source, self._product, self._taken = source, product, set()
        self._taken.add(first)
        if len(self._taken) >= self.modules:
            self._source = self._product = None
        return product[:, :, first:last]


@dataclass
class RowWork:
    """What the rows of one batch add at one module; None where no row adds such a term."""

    shrink: SharedShrink | None = None
    columns: tuple[int, int] = (0, 0)
    B: Float[Tensor, "rows rank out"] | None = None
    scale_in: Float[Tensor, "rows 1 in"] | None = None
    scale_out: Float[Tensor, "rows 1 out"] | None = None
    shift: Float[Tensor, "rows 1 out"] | None = None
    skip: Float[Tensor, "rows 1 1"] | None = None
    patch: PatchWork | None = None
    codebooks: tuple[CodebookWork, ...] = ()
    bypass: bool = False  # no row needs the block, and its cache may stay empty


@contextmanager
def attached(model: nn.Module, rows: int | None, work: Mapping[str, RowWork]) -> Iterator[None]:
    """Let the modules named in ``work`` serve ``rows`` rows, each with its own terms.

    The model as a whole is taken, too, even where ``work`` is empty: it serves one batch at a
    time, and inside the block it refuses a batch of another number of rows. Where ``rows`` is
    None, it takes any batch, whose rows all have the terms of the one row of ``work``.

    Raises:
        ConfigurationError: if the model or a module is already serving another batch.
    """
    shadowed: list[nn.Module] = []

    def shadow(module: nn.Module, path: str, forward: Callable[..., Any]) -> None:
        if "forward" in vars(module):
            raise ConfigurationError(
                f"{path} is already changed (by another batch or another library); leave the "
                "other block, or finish or close the other stream, first."
            )
        module.forward = forward
        shadowed.append(module)

    try:
        whole = _whole(model)
        shadow(
            whole, "the model", whole.forward if rows is None else _counting(whole.forward, rows)
        )
        for path, terms in work.items():
            module = model.get_submodule(path)
            shadow(module, path, _serve(module.forward, rows, terms, path))
        yield
    finally:
        for module in shadowed:
            del module.forward


def _whole(model: nn.Module) -> nn.Module:
    """The part of a model that every pass goes through, with or without an output layer."""
    find = getattr(model, "get_decoder", None)
    return find() if callable(find) else model


def _counting(base: Callable[..., Any], rows: int) -> Callable[..., Any]:
    """The model's ``forward`` for batches of so many rows only.

    A module that gets rows and tokens flattened into one axis could not tell.
    """

    @wraps(base)
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        batch = next((value for value in given if isinstance(value, Tensor)), None)
        if batch is not None and batch.shape[0] != rows:
            raise _other_rows("the model", batch, rows)
        return base(*args, **kwargs)

    return forward


def _serve(
    base: Callable[..., Any], rows: int | None, work: RowWork, path: str
) -> Callable[..., Any]:
    """The module's ``forward`` for one batch: its own, and the rows' terms."""
    if work.scale_in is None and work.scale_out is None:
        if work.shrink is None:
            return _shifting(base, rows, work, path)
        if work.shift is None:
            return _adding(base, rows, work, path)

    def forward(x: Tensor) -> Tensor:
        x_rows = _by_row(x, rows, path)
        y = base(x if work.scale_in is None else (x_rows * work.scale_in).view_as(x))
        y_rows = _by_row(y, rows, path)
        if work.scale_out is not None:
            y_rows = y_rows * work.scale_out
        if work.shrink is not None and work.B is not None:
            y_rows = y_rows.baddbmm(work.shrink(x, x_rows, work.columns), work.B)
        if work.shift is not None:
            y_rows = y_rows + work.shift
        return y_rows.view_as(y)

    return forward


def _adding(
    base: Callable[..., Any], rows: int | None, work: RowWork, path: str
) -> Callable[..., Any]:
    """Low-rank terms alone: the common case, kept to three kernels."""
    shrink, B = work.shrink, work.B
    assert shrink is not None
    assert B is not None

    def forward(x: Tensor) -> Tensor:
        y: Tensor = base(x)
        h = shrink(x, _by_row(x, rows, path), work.columns)
        y_rows = _by_row(y, rows, path)
        # In place only where no one needs the old value: autograd may.
        added = y_rows.baddbmm(h, B) if torch.is_grad_enabled() else y_rows.baddbmm_(h, B)
        return added.view_as(y)

    return forward


def _shifting(
    base: Callable[..., Any], rows: int | None, work: RowWork, path: str
) -> Callable[..., Any]:
    """All that a block or a norm can have: what is not a linear map's alone."""

    def changed(own: Tensor, before: Tensor) -> Tensor:
        y = own
        if work.skip is not None:
            y = (1 - work.skip) * y + work.skip * before  # to the bit where the share is 0 or 1
        if work.shift is None and work.patch is None and not work.codebooks:
            return y
        y_rows = _by_row(y, rows, path)
        if work.shift is not None:
            y_rows = y_rows + work.shift
        if work.patch is not None:
            y_rows = y_rows + work.patch(_by_row(own, rows, path))
        if work.codebooks:
            y_rows = answered(work.codebooks, y_rows, _by_row(before, rows, path))
        return y_rows.view_as(y)

    def forward(*args: Any, **kwargs: Any) -> Any:
        before: Tensor = args[0] if args else kwargs["hidden_states"]
        if work.bypass:
            return before if work.shift is None else before + work.shift
        output = base(*args, **kwargs)
        if isinstance(output, tuple):  # some families' blocks return more than the hidden states
            return (changed(output[0], before), *output[1:])
        return changed(output, before)

    return forward


def _by_row(x: Tensor, rows: int | None, path: str) -> Float[Tensor, "rows tokens axis"]:
    """``x`` with its rows apart, or in one if all have the same terms."""
    if rows is None:
        return x.reshape(1, -1, x.shape[-1])
    if x.dim() == 3 and x.shape[0] == rows:
        return x
    # OPT flattens rows and tokens into one axis; norms of queries see one more, the heads.
    if (x.dim() == 2 and x.shape[0] % rows == 0) or (x.dim() > 3 and x.shape[0] == rows):
        return x.reshape(rows, -1, x.shape[-1])
    raise _other_rows(path, x, rows)


def _other_rows(path: str, x: Tensor, rows: int) -> ConfigurationError:
    return ConfigurationError(
        f"{path} was called with a batch of shape {list(x.shape)} while {rows} rows are "
        "configured; give as many configurations as rows."
    )
