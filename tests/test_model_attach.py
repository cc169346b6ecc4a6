"""attached: every row's own terms against a loop over rows, gradients, restoring, refusals."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from brickwork.errors import ConfigurationError
from brickwork.model.attach import RowWork, SharedShrink, attached
from tests.served import loaded
from tests.tiny import FAMILIES

ROWS, TOKENS, IN, OUT, RANK = 3, 4, 5, 6, 2
TERMS = ("low_rank", "scale_in", "scale_out", "shift")
SOME_TERMS = [chosen for n in range(1, 5) for chosen in combinations(TERMS, n)]


class Toy(nn.Module):
    """Two maps that read one tensor, and a norm over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.norm = nn.Linear(IN, OUT), nn.Linear(IN, OUT), nn.LayerNorm(OUT // 2)

    def forward(self, x: Tensor) -> Tensor:
        heads = (self.q(x) * self.k(x)).unflatten(-1, (2, OUT // 2)).transpose(1, 2)
        normed: Tensor = self.norm(heads)
        return normed


class Terms:
    """Random terms of every row, by name; those not chosen are neutral."""

    def __init__(self, chosen: tuple[str, ...]) -> None:
        draw = torch.Generator().manual_seed(1)
        self.A = torch.randn(ROWS, IN, RANK, generator=draw)
        self.B = torch.randn(ROWS, RANK, OUT, generator=draw)
        self.scale_in = torch.randn(ROWS, 1, IN, generator=draw)
        self.scale_out = torch.randn(ROWS, 1, OUT, generator=draw)
        self.shift = torch.randn(ROWS, 1, OUT, generator=draw)
        self.chosen = chosen

    def all(self) -> list[Tensor]:
        return [self.A, self.B, self.scale_in, self.scale_out, self.shift]

    def work(self) -> RowWork:
        work = RowWork()
        if "low_rank" in self.chosen:
            work.shrink, work.columns, work.B = SharedShrink(self.A), (0, RANK), self.B
        for name in self.chosen:
            if name != "low_rank":
                setattr(work, name, getattr(self, name))
        return work

    def by_hand(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The formula of the module's docstring, row by row."""
        rows = []
        for row in range(ROWS):
            given = x[row] * self.scale_in[row] if "scale_in" in self.chosen else x[row]
            y = base(given) * (self.scale_out[row] if "scale_out" in self.chosen else 1)
            y = y + (x[row] @ self.A[row] @ self.B[row] if "low_rank" in self.chosen else 0)
            rows.append(y + (self.shift[row] if "shift" in self.chosen else 0))
        return torch.stack(rows)


def random_input() -> Tensor:
    return torch.randn(ROWS, TOKENS, IN, generator=torch.Generator().manual_seed(2))


@contextmanager
def one_module(module: nn.Module, work: RowWork) -> Iterator[nn.Module]:
    """The module serving inside a model that is never called as a whole."""
    with attached(nn.ModuleDict({"it": module}), ROWS, {"it": work}):
        yield module


def close(found: Tensor, expected: Tensor) -> None:
    # float32: the order of a sum differs between a batch and single rows.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("linear", [nn.Linear(IN, OUT), Conv1D(OUT, IN)], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("chosen", SOME_TERMS, ids="+".join)
def test_each_row_gets_its_own_terms(linear: nn.Module, chosen: tuple[str, ...]) -> None:
    terms, x = Terms(chosen), random_input()
    expected = terms.by_hand(linear, x)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode(), one_module(linear, terms.work()):
            close(linear(x), expected)
            # OPT gives its FFN rows and tokens in one axis.
            close(linear(x.flatten(0, 1)), expected.flatten(0, 1))
    assert "forward" not in vars(linear)


@pytest.mark.parametrize("chosen", SOME_TERMS, ids="+".join)
def test_gradients_reach_the_terms_and_the_base(chosen: tuple[str, ...]) -> None:
    terms, x, linear = Terms(chosen), random_input().requires_grad_(), nn.Linear(IN, OUT)
    wanted = [*(t.requires_grad_() for t in terms.all()), x, linear.weight]
    weights = torch.randn(ROWS, TOKENS, OUT, generator=torch.Generator().manual_seed(3))
    expected = torch.autograd.grad(
        (terms.by_hand(linear, x) * weights).sum(), wanted, allow_unused=True
    )
    with one_module(linear, terms.work()):
        found = torch.autograd.grad((linear(x) * weights).sum(), wanted, allow_unused=True)
    for mine, reference in zip(found, expected, strict=True):
        assert (mine is None) == (reference is None)
        if mine is not None and reference is not None:
            close(mine, reference)


def test_a_norm_over_heads_shifts_every_head_alike() -> None:
    toy, x = Toy(), random_input()
    shift = torch.randn(ROWS, 1, OUT // 2, generator=torch.Generator().manual_seed(4))
    expected = toy(x) + shift.unsqueeze(1)
    with attached(toy, ROWS, {"norm": RowWork(shift=shift)}):
        close(toy(x), expected)


def test_a_block_that_returns_a_tuple_keeps_what_follows_the_hidden_states() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor, *, cache: str) -> tuple[Tensor, str]:
            return x, cache

    block, x = Block(), random_input()
    with one_module(block, RowWork(shift=torch.ones(ROWS, 1, IN))):
        shifted, rest = block(x, cache="kept")
    assert torch.equal(shifted, x + 1)
    assert rest == "kept"


def test_a_share_of_none_or_all_of_a_block_is_exact() -> None:
    block = nn.Linear(IN, IN).to(torch.bfloat16)
    x = random_input().to(torch.bfloat16)
    skip = torch.zeros(ROWS, 1, 1, dtype=torch.bfloat16)
    skip[0] = 1
    expected = block(x)
    with one_module(block, RowWork(skip=skip)):
        found = block(x)
    assert torch.equal(found[0], x[0])
    assert torch.equal(found[1:], expected[1:])


class Products(TorchDispatchMode):
    """Counts batched matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.bmm.default
        return func(*args, **kwargs or {})


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 4, IN), (7, IN), (1, 1, IN), (IN,)])
def test_without_a_number_of_rows_every_batch_gets_the_terms_of_the_one_row(
    shape: tuple[int, ...],
) -> None:
    linear, terms = nn.Linear(IN, OUT), Terms(TERMS)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    y = linear(x * terms.scale_in[0, 0]) * terms.scale_out[0, 0]
    expected = y + x @ terms.A[0] @ terms.B[0] + terms.shift[0, 0]
    work = RowWork(SharedShrink(terms.A[:1]), (0, RANK), terms.B[:1])
    work.scale_in, work.scale_out = terms.scale_in[:1], terms.scale_out[:1]
    work.shift = terms.shift[:1]
    with attached(nn.ModuleDict({"it": linear}), None, {"it": work}):
        close(linear(x), expected)


@torch.no_grad()
def test_maps_that_read_one_flattened_tensor_multiply_once() -> None:
    toy, x = Toy(), random_input().flatten(0, 1)
    work, _ = shared(toy)
    for rows in (ROWS, None):
        if rows is None:
            A = work["q"].shrink.A[:1]
            common = SharedShrink(A, modules=2)
            for terms in work.values():
                terms.shrink, terms.B = common, terms.B[:1]
        with attached(toy, rows, work), Products() as products:
            toy.q(x)
            toy.k(x)
        assert products.count == 1


def shared(toy: Toy) -> tuple[dict[str, RowWork], Callable[[Tensor], Tensor]]:
    """Work of ``q`` and ``k`` that share their first half, and the same by hand."""
    draw = torch.Generator().manual_seed(5)
    A = torch.randn(ROWS, IN, 2 * RANK, generator=draw)
    B = {name: torch.randn(ROWS, RANK, OUT, generator=draw) for name in ("q", "k")}
    shrink = SharedShrink(A, modules=2)
    columns = {"q": (0, RANK), "k": (RANK, 2 * RANK)}
    work = {n: RowWork(shrink=shrink, columns=columns[n], B=B[n]) for n in ("q", "k")}

    def by_hand(x: Tensor) -> Tensor:
        q = toy.q(x) + x @ A[..., :RANK] @ B["q"]
        k = toy.k(x) + x @ A[..., RANK:] @ B["k"]
        return toy.norm((q * k).unflatten(-1, (2, OUT // 2)).transpose(1, 2))

    return work, by_hand


@torch.no_grad()
def test_modules_that_read_one_tensor_multiply_once_and_keep_nothing() -> None:
    toy, x = Toy(), random_input()
    work, by_hand = shared(toy)
    expected = by_hand(x)
    with attached(toy, ROWS, work), Products() as products:
        close(toy(x), expected)
    assert products.count == 1
    last_use = weakref.ref(x)
    del x
    assert last_use() is None, "the input of a layer must not outlive its use"


@torch.no_grad()
def test_the_same_tensor_object_with_new_values_is_multiplied_anew() -> None:
    toy, x = Toy(), random_input()
    work, by_hand = shared(toy)
    with attached(toy, ROWS, work):
        toy(x)
        x.add_(1.0)
        changed = toy(x)
        toy.q(x)  # a pass that ends half-way
        x.add_(1.0)
        changed_again = toy(x)
    close(changed, by_hand(x - 1.0))
    close(changed_again, by_hand(x))


@torch.no_grad()
def test_leaving_restores_the_model_to_the_bit_also_after_an_exception() -> None:
    toy, x = Toy(), random_input()
    work, _ = shared(toy)
    before = toy(x)
    with attached(toy, ROWS, work):
        assert not torch.equal(toy(x), before)
    assert torch.equal(toy(x), before)
    with pytest.raises(ZeroDivisionError), attached(toy, ROWS, work):
        raise ZeroDivisionError
    assert torch.equal(toy(x), before)
    assert not any("forward" in vars(module) for module in toy.modules())


def test_a_second_batch_is_refused_and_leaves_the_first_alone() -> None:
    toy, x = Toy(), random_input()
    work, _ = shared(toy)
    with attached(toy, ROWS, work):
        inside = toy(x)
        # Also one that would touch no module: it would get this batch's terms.
        for other in (work, {"norm": RowWork(shift=torch.ones(ROWS, 1, OUT // 2))}, {}):
            refusal = pytest.raises(ConfigurationError, match="the model is already changed")
            with refusal, attached(toy, ROWS, other):
                pass
        assert torch.equal(toy(x), inside)
    with attached(toy, ROWS, work):
        assert torch.equal(toy(x), inside)


def test_a_module_that_another_library_changed_is_refused_and_kept() -> None:
    toy = Toy()
    work, _ = shared(toy)
    toy.k.forward = foreign = toy.k.forward  # as accelerate's hooks do
    with pytest.raises(ConfigurationError, match="k is already changed"), attached(toy, 1, work):
        pass
    assert vars(toy.k)["forward"] is foreign
    assert "forward" not in vars(toy.q)
    assert "forward" not in vars(toy)


@pytest.mark.parametrize("shape", [(2, 4, IN), (4, IN), (6, 2, IN), (IN,)])
def test_a_module_refuses_a_batch_of_other_rows(shape: tuple[int, ...]) -> None:
    linear = nn.Linear(IN, OUT)
    for chosen in (("low_rank",), ("scale_in", "shift"), ("shift",)):
        refusal = pytest.raises(ConfigurationError, match=r"it was called .* while 3 rows are conf")
        with one_module(linear, Terms(chosen).work()), refusal:
            linear(torch.zeros(shape))


@pytest.mark.parametrize("whole", [True, False], ids=["model", "without its output layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_refuses_a_batch_of_other_rows(family: str, whole: bool) -> None:
    model = loaded(family).model
    called = model if whole else model.base_model
    ids = torch.full((6, 2), 5)  # 12 tokens in one axis could be those of 3 rows
    vectors = model.get_input_embeddings()(ids).detach()
    with attached(model, 3, {}), torch.no_grad():
        with pytest.raises(ConfigurationError, match=r"of shape \[6, 2\] while 3 rows"):
            called(input_ids=ids)
        with pytest.raises(ConfigurationError, match=r"of shape \[6, 2, 32\] while 3 rows"):
            called(inputs_embeds=vectors)
        assert called(ids[:3])[0].shape[0] == 3
