"""Added neurons and codebooks after a block: against a slow loop, ties, hits to the bit."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

import pytest
import torch
from torch import Tensor, nn

from brickwork.brick.brick import Brick
from brickwork.brick.effects import Codebook
from brickwork.brick.forms import effects_of
from brickwork.model.attach import attached
from brickwork.runtime.bank import Bank
from brickwork.runtime.gather import Weighted, gather
from tests.bricks import paper_base, random_brick

BASE, BLOCK, HIDDEN, TOKENS = paper_base(), "model.layers.0", 8, 5
BRICKS = [
    random_brick(form, BASE, torch.Generator().manual_seed(seed), sites=[BLOCK], name=form)
    for seed, form in enumerate(["codebook", "memory", "patch", "steering", "skip"] * 2)
]


class Model(nn.Module):
    """One block, at the path of the paper base's first."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN)])
        with torch.no_grad():  # what it reads is an identity away from what it says
            self.model.layers[0].weight.copy_(torch.eye(HIDDEN) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model.layers[0](x)
        return y


Use = tuple[Brick, float]


@dataclass
class Seen:
    """How often an entry answered, and how often none did."""

    hits: int = 0
    misses: int = 0


@torch.no_grad()
def by_hand(model: Model, x: Tensor, uses: list[Use], seen: Seen) -> Tensor:
    """What the docstrings of the effects say, for one state at a time, in float64."""
    books = [
        (e, weight) for brick, weight in uses for e in effects_of(brick) if isinstance(e, Codebook)
    ]
    said = []
    for state in x.double():
        own: Tensor = model(state.float()).double()
        total = own.clone()
        for brick, weight in uses:
            total += _term(brick, weight, own)
        left = 1.0
        for brick, weight in uses:
            if brick.spec.form == "skip":
                left *= 1 - weight * float(brick.tensors[f"{BLOCK}/share"])
        total += (1 - left) * (state - own)
        said.append(_answer(state, total, books, seen))
    return torch.stack(said)


def _term(brick: Brick, weight: float, own: Tensor) -> Tensor:
    """What a brick adds to a block that says ``own``."""
    if brick.spec.form == "steering":
        return weight * brick.tensors[f"{BLOCK}/vector"].double()
    total = torch.zeros_like(own)
    if brick.spec.form == "patch":
        key, bias, value = (brick.tensors[f"{BLOCK}/{n}"] for n in ("key", "bias", "value"))
        for neuron in range(len(bias)):
            active = max(0.0, float(key[neuron].double() @ own + bias[neuron]))
            total += weight * active * value[neuron].double()
    return total


def _answer(state: Tensor, y: Tensor, books: list[tuple[Codebook, float]], seen: Seen) -> Tensor:
    plain = [use for use in books if use[0].projection is None]
    spaces = [plain, *([use] for use in books if use[0].projection is not None)]
    share, answer = float("inf"), None
    for space in filter(None, spaces):
        entries = [entry for book, weight in space for entry in _entries(state, y, book, weight)]
        distance, radius, said = min(entries, key=itemgetter(0))  # the first of equal ones
        if distance <= radius and distance / radius < share:
            share, answer = distance / radius, said
    seen.hits += answer is not None
    seen.misses += bool(books) and answer is None
    return y if answer is None else answer


def _entries(
    state: Tensor, y: Tensor, book: Codebook, weight: float
) -> Iterator[tuple[float, float, Tensor]]:
    """How far each key is, its radius, and what it would say."""
    query = state if book.projection is None else book.projection.double() @ state
    kept = (1 - weight) * y if book.replaces else y
    for key, value, radius in zip(book.key, book.value, book.radius, strict=True):
        distance = float((query - key.double()).square().sum().sqrt())
        yield distance, float(radius), kept + weight * value.double()


def served(model: Model, x: Tensor, rows: list[list[Use]]) -> Tensor:
    bank = Bank(x[:0].detach(), lambda path: path)
    weighted = [[Weighted(bank.load(brick), weight) for brick, weight in row] for row in rows]
    with gather(bank, weighted) as work, attached(model, len(rows), work):
        found: Tensor = model(x)
    return found


def states(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(seed))


def test_every_state_gets_what_a_slow_loop_gives_it() -> None:
    model, seen, draw = Model(), Seen(), random.Random(0)
    for seed in range(60):
        rows = [
            [
                (draw.choice(BRICKS), draw.choice([1.0, 0.5, -2.0]))
                for _ in range(draw.randint(0, 4))
            ]
            for _ in range(draw.randint(1, 4))
        ]
        x = states(len(rows), seed)
        found = served(model, x, rows)
        for row, own, given in zip(rows, found, x, strict=True):
            # float32 against float64, with values up to some hundred.
            expected = by_hand(model, given, row, seen)
            torch.testing.assert_close(own.double(), expected, rtol=1e-4, atol=1e-4)
    assert min(seen.hits, seen.misses) > (seen.hits + seen.misses) / 5


def book(name: str, key: Tensor, value: Tensor, radius: float) -> Brick:
    spec = random_brick("codebook", BASE, torch.Generator(), sites=[BLOCK], name=name).spec
    slots = {"key": key, "value": value, "radius": torch.full((len(key),), radius)}
    return Brick(spec, {f"{BLOCK}/{slot}": tensor for slot, tensor in slots.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_key_that_is_the_state_answers_at_radius_0_and_all_else_stays_to_the_bit(
    dtype: torch.dtype,
) -> None:
    model, x = Model().to(dtype), (30 * states(3)).to(dtype)
    bare, value = model(x), torch.arange(8.0)
    exact = book("exact", x[1, 2:3].float(), value.unsqueeze(0), 0.0)
    found = served(model, x, [[], [(exact, 1.0)], [(exact, 1.0)]])
    assert torch.equal(found[1, 2], value.to(dtype))
    hit = torch.zeros(3, TOKENS, dtype=torch.bool)
    hit[1, 2] = True
    assert torch.equal(found[~hit], bare[~hit])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_states_far_from_the_origin_find_their_own_keys(dtype: torch.dtype) -> None:
    model, x = Model().to(dtype), (1e3 + 30 * states(40)).to(dtype)
    keys = x.float().flatten(0, 1).unique(dim=0)
    found = served(model, x, [[(book("own", keys, keys, 0.0), 1.0)]] * len(x))
    assert len(keys) > 100
    assert torch.equal(found, x)


def test_of_equally_near_keys_the_first_answers_in_the_order_of_the_row() -> None:
    model, x = Model(), states(2)
    key = x[0, :1].expand(2, -1)
    one = book("one", key, torch.stack([torch.full((8,), v) for v in (1.0, 2.0)]), 1.0)
    two = book("two", key, torch.stack([torch.full((8,), v) for v in (3.0, 4.0)]), 1.0)
    x[1] = x[0]
    found = served(model, x, [[(one, 1.0), (two, 1.0)], [(two, 1.0), (one, 1.0)]])
    assert found[:, 0, 0].tolist() == [1.0, 3.0]


def test_a_nearer_key_with_too_small_a_radius_keeps_a_farther_one_from_answering() -> None:
    model, x = Model(), states(1)
    key, values = x[0, :1], torch.ones(1, 8)
    far, near = book("far", key + 0.2, values, 99.0), book("near", key + 0.1, values, 0.01)
    for row in ([(far, 1.0), (near, 1.0)], [(near, 1.0), (far, 1.0)]):
        assert torch.equal(served(model, x, [row])[0, 0], model(x)[0, 0])
    assert torch.equal(served(model, x, [[(far, 1.0)]])[0, 0], values[0])


def test_a_memory_neither_silences_a_codebook_nor_is_silenced_by_one() -> None:
    model, x = Model(), states(1)
    spec = next(b for b in BRICKS if b.spec.form == "memory").spec
    projection = 1e-3 * torch.eye(HIDDEN)[:3]  # everything is near in it
    slots = {"projection": projection, "value": torch.ones(1, 8), "radius": torch.tensor([1e-6])}
    memory = Brick(
        spec, {f"{BLOCK}/{s}": t for s, t in (slots | {"key": x[0, 1:2] @ projection.T}).items()}
    )
    near = book("near", x[0, :1] + 0.5, torch.full((1, 8), 2.0), 2.0)
    for row in ([(memory, 1.0), (near, 1.0)], [(near, 1.0), (memory, 1.0)]):
        found = served(model, x, [row])
        assert torch.equal(found[0, 0], torch.full((8,), 2.0))
        # its own state, which is at the key of the memory and elsewhere in the codebook
        assert torch.equal(found[0, 1], model(x)[0, 1] + 1)


def test_rows_with_fewer_neurons_or_entries_are_as_they_are_alone() -> None:
    model, x = Model(), states(3)
    small, large = ([b for b in BRICKS if b.spec.form == form] for form in ("patch", "memory"))
    rows = [[(small[0], 1.0), (large[1], 1.0)], [(b, 0.5) for b in (*small, *large)], []]
    mixed = served(model, x, rows)
    for number, row in enumerate(rows):
        alone = served(model, x[number : number + 1], [row])[0]
        torch.testing.assert_close(mixed[number], alone, rtol=1e-5, atol=1e-5)  # float32
    assert torch.equal(mixed[2], model(x)[2])


def test_gradients_are_those_of_the_terms_where_the_choice_stays() -> None:
    model, x = Model().double(), states(2).double().requires_grad_()
    row = [(brick, 1.0) for brick in BRICKS[:5]]

    def by_bricks(given_states: Tensor) -> Tensor:
        return served(model, given_states, [row, row[:3]])

    assert torch.autograd.gradcheck(by_bricks, (x,))
