"""The bank: what is gathered after any history, who leaves and who stays, and what is copied."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from brickwork.brick.brick import Brick
from brickwork.brick.effects import Add
from brickwork.brick.forms import effects_of
from brickwork.errors import ConfigurationError, UnknownNameError
from brickwork.model.attach import RowWork
from brickwork.runtime.bank import Bank
from brickwork.runtime.gather import Weighted, gather
from tests.bricks import paper_base, random_brick
from tests.served import bricks_of, configured, using

BASE = paper_base()
Q = "model.layers.0.self_attn.q_proj"
GROUPS = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "ffn", "up_proj": "ffn"}


def input_of(path: str) -> str:
    above, _, leaf = path.rpartition(".")
    return f"{above}.{GROUPS.get(leaf, leaf)}"


def new_bank(**arguments: Any) -> Bank:
    return Bank(torch.zeros(0), input_of, **{"pages": 2, **arguments})


def lora(seed: int, **arguments: Any) -> Brick:
    draw = torch.Generator().manual_seed(seed)
    return random_brick("lora", BASE, draw, name=f"lora-{seed}", **arguments)


LORAS = [lora(seed) for seed in range(6)]


def dense(work: dict[str, RowWork], row: int) -> dict[str, Tensor]:
    """What a row adds at each module, as one matrix from inputs to outputs."""
    found = {}
    for site, terms in work.items():
        assert terms.shrink is not None
        assert terms.B is not None
        found[site] = terms.shrink.A[row][:, slice(*terms.columns)] @ terms.B[row]
    return found


def by_hand(uses: list[tuple[int, float]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for number, weight in uses:
        for effect in effects_of(LORAS[number]):
            assert isinstance(effect, Add)
            term = weight * effect.scaling * (effect.B @ effect.A).T
            total[effect.site] = total.get(effect.site, torch.zeros(())) + term
    return total


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    # float32: the ranks of several bricks are summed in another order.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


uses = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1.0, 0.5, -2.0, 0.0])), max_size=3)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 5), max_size=12), st.lists(uses, min_size=1, max_size=4))
def test_after_any_history_each_row_gathers_its_own_bricks(
    history: list[int], rows: list[list[tuple[int, float]]]
) -> None:
    bank = new_bank()
    for number in history:  # in and out, so that pages change hands
        if LORAS[number].hash in bank:
            bank.unload(LORAS[number].hash)
        else:
            bank.load(LORAS[number])
    weighted = [[Weighted(bank.load(LORAS[n]), weight) for n, weight in row] for row in rows]
    with gather(bank, weighted) as work:
        for number, row in enumerate(rows):
            expected, found = by_hand(row), dense(work, number)
            zeros = {site: torch.zeros_like(term) for site, term in found.items()}
            still = expected.keys() - found.keys()
            assert not any(expected[site].any() for site in still)
            close(found, zeros | {s: t for s, t in expected.items() if s not in still})


def test_pages_that_are_freed_are_zero_and_come_first() -> None:
    bank = new_bank(pages=64)
    first = bank.load(lora(1, sites=[Q]))
    bank.load(lora(2, sites=[Q]))
    numbers, pages = first.B_pages[Q], bank.B[Q]
    assert pages.vectors[numbers].any(dim=1).all()
    bank.unload(first.hash)
    assert not pages.vectors[[0, *numbers]].any()
    assert bank.load(lora(1, sites=[Q])).B_pages[Q] == numbers
    assert not pages.vectors[0].any()


class Copies(TorchDispatchMode):
    """Counts the matrices of pages that are made; a larger one takes a copy of the smaller."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = {torch.ops.aten.new_empty.default, torch.ops.aten.cat.default}
        self.count += func in {*made, torch.ops.aten.clone.default}
        return func(*args, **kwargs or {})


def test_loading_copies_the_others_only_when_pages_double() -> None:
    bank, doublings, copies = new_bank(pages=64), 0, Copies()
    with copies:
        for seed in range(64):
            before = {id(p): len(p.vectors) for p in (*bank.A.values(), *bank.B.values())}
            places = {id(p): p.vectors.data_ptr() for p in (*bank.A.values(), *bank.B.values())}
            bank.load(lora(seed, sites=[Q]))
            for pages in (*bank.A.values(), *bank.B.values()):
                grown = len(pages.vectors) > before.get(id(pages), 65)
                doublings += grown
                assert grown or places.get(id(pages), 0) in {0, pages.vectors.data_ptr()}
    ranks = sum(lora(seed, sites=[Q]).tensors[f"{Q}/A"].shape[0] for seed in range(64))
    assert len(bank) == 64
    assert len(bank.B[Q].vectors) == 257, f"{ranks} ranks need 256 pages, and page 0"
    assert doublings == 4  # 64, 128, 256 for A and for B
    assert copies.count == doublings + 2  # and the first of A and of B


def test_loading_twice_or_under_two_names_is_loading_once() -> None:
    bank, brick = new_bank(), LORAS[0]
    same = Brick(brick.spec, {name: tensor.clone() for name, tensor in brick.tensors.items()})
    assert bank.load(brick) is bank.load(brick) is bank.load(same)
    assert len(bank) == 1
    assert bank.bytes == brick.bytes


@pytest.fixture
def bricks() -> list[Brick]:
    """Bricks of one size."""
    spec = lora(0, sites=[Q]).spec
    tensors = {f"{Q}/A": torch.ones(1, 8), f"{Q}/B": torch.ones(8, 1)}
    return [Brick(spec.model_copy(update={"name": f"brick-{n}"}), tensors) for n in range(4)]


def test_the_least_recently_used_brick_leaves_first(bricks: list[Brick]) -> None:
    bank, (a, b, c, d) = new_bank(budget=2 * bricks[0].bytes), bricks
    bank.load(a)
    bank.load(b)
    bank.load(a)
    bank.load(c)
    assert [brick.hash in bank for brick in bricks] == [True, False, True, False]
    bank.resident(a.hash)
    bank.load(d)
    assert [brick.hash in bank for brick in bricks] == [True, False, False, True]
    assert bank.bytes == 2 * a.bytes


def test_what_is_pinned_or_kept_stays(bricks: list[Brick]) -> None:
    bank, (a, b, c, _) = new_bank(budget=2 * bricks[0].bytes), bricks
    bank.load(a)
    bank.pin(a.hash)
    bank.load(b)
    with pytest.raises(
        ConfigurationError,
        match=rf"loading brick 'brick-2' takes {a.bytes} bytes; the bank holds {2 * a.bytes} that "
        rf"this batch or a pin needs, of {2 * a.bytes} allowed. Raise the budget",
    ):
        bank.load(c, keep=[b.hash])
    assert [brick.hash in bank for brick in bricks] == [True, True, False, False]
    bank.load(c)
    assert [brick.hash in bank for brick in bricks] == [True, False, True, False]


def test_a_brick_larger_than_the_budget_is_refused_and_nobody_leaves(bricks: list[Brick]) -> None:
    bank = new_bank(budget=bricks[0].bytes)
    bank.load(bricks[0])
    with pytest.raises(ConfigurationError, match="the bank holds 0 that this batch or a pin"):
        bank.load(LORAS[0])
    assert bricks[0].hash in bank


def test_a_router_counts_as_what_it_takes() -> None:
    router = bricks_of("llama")["router-1"]
    resident = Bank(torch.zeros(0, dtype=torch.bfloat16), lambda path: path).load(router)
    held = [tensor for route in resident.routes for tensor in route.tensors.values()]
    assert {tensor.dtype for tensor in held} == {torch.float32}  # a group's number must exist
    assert resident.bytes == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize("form", ["patch", "codebook", "memory"])
def test_what_chooses_by_states_is_kept_exact_and_counts_so(form: str) -> None:
    brick = bricks_of("llama")[f"{form}-1"]
    resident = Bank(torch.zeros(0, dtype=torch.bfloat16), lambda path: path).load(brick)
    held = [
        value
        for effect in (*resident.patches, *resident.codebooks)
        for value in vars(effect).values()
        if isinstance(value, Tensor)
    ]
    assert sorted(t.sum().item() for t in held) == sorted(
        t.sum().item() for t in brick.tensors.values()
    )
    assert resident.bytes == sum(tensor.nbytes for tensor in held)


def test_a_hash_that_is_not_loaded_is_refused() -> None:
    for ask in (new_bank().pin, new_bank().unload, new_bank().resident):
        with pytest.raises(UnknownNameError, match="no loaded brick is called 'abc'"):
            ask("abc")


def test_a_batch_never_evicts_what_it_needs_itself() -> None:
    one, two, three = (bricks_of("llama")[name] for name in ("lora-1", "lora-2", "ia3-1"))
    model = configured("llama", budget=one.bytes + two.bytes)
    prompts = [[5, 6], [7]]
    model.logits(prompts, [using("lora-1"), using("ia3-1")])
    model.logits(prompts, [using("lora-2"), using("lora-1")])
    assert [b.hash in model.bank for b in (one, two, three)] == [True, True, False]
    with pytest.raises(ConfigurationError, match="Raise the budget or run fewer bricks at once"):
        model.logits(prompts, [using("lora-2,ia3-1"), using("lora-1")])
    # What was refused has left no trace: the next batch is as ever.
    found = model.logits(prompts, [using("ia3-1"), using("lora-2")])
    expected = configured("llama").logits(prompts, [using("ia3-1"), using("lora-2")])
    assert all(map(torch.equal, found, expected))


MODES = (torch.inference_mode, torch.no_grad, torch.enable_grad)


@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("first", MODES)
def test_what_was_loaded_in_one_mode_serves_in_every_other(first: Any, second: Any) -> None:
    bank = new_bank()
    learning = {name: t.clone().requires_grad_() for name, t in LORAS[2].tensors.items()}
    for mode in (first, second, first):
        with mode():
            for brick in (*LORAS[:2], Brick(LORAS[2].spec, learning)):
                bank.load(brick)
            rows = [[Weighted(bank.load(brick), 0.5)] for brick in LORAS[:3]]
            expected = [by_hand([(row, 0.5)]) for row in range(3)]
            require_terms(bank, rows, expected)
            bank.unload(LORAS[1].hash)


def require_terms(
    bank: Bank, rows: list[list[Weighted]], expected: list[dict[str, Tensor]]
) -> None:
    with gather(bank, rows) as work:
        for row, terms in enumerate(expected):
            found = dense(work, row)
            assert not any(term.requires_grad for term in found.values())
            close({site: found[site] for site in terms}, terms)


def test_only_one_batch_at_a_time_has_the_gathered_memory() -> None:
    bank = new_bank()
    rows = [[Weighted(bank.load(LORAS[0]), 1.0)], [Weighted(bank.load(LORAS[1]), 1.0)]]
    with gather(bank, rows) as work:
        before = {site: terms.B.clone() for site, terms in work.items() if terms.B is not None}
        refusal = pytest.raises(ConfigurationError, match="serving another batch already; leave")
        with refusal, gather(bank, rows[::-1]):
            pass
        assert all(torch.equal(B, work[site].B) for site, B in before.items())
    with gather(bank, rows[::-1]) as work:
        assert dense(work, 1).keys() == before.keys()
