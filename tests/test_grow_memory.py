"""The memory brick: what is kept, in which order, how tasks share it, and that it is a brick."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from brickwork.brick.brick import Brick
from brickwork.brick.check import problems, require_fit
from brickwork.brick.configuration import Configuration, parse_uses
from brickwork.brick.folder import read_brick, write_brick
from brickwork.combine.bricks import combine_bricks
from brickwork.errors import (
    BrickFormatError,
    ConfigurationError,
    DataError,
    GrowthError,
    UnknownNameError,
)
from brickwork.grow.memory import MemoryRecipe, fair_shares, recall, remember, remembered
from brickwork.grow.selectors import (
    SELECTORS,
    herding,
    mean_losses,
    middling,
    reservoir,
    unit_states,
)
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.train import Encoded
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.score import mean_loss
from brickwork.store.store import Store
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


def texts(count: int, seed: int = 0) -> list[Encoded]:
    chance = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (count,), generator=chance).tolist()
    return [
        Encoded(torch.randint(2, 112, (n,), generator=chance).tolist(), min(3, n)) for n in lengths
    ]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return wrap_model(tiny_model("llama"), tiny_tokenizer(), "tiny")


def test_a_reservoir_keeps_every_set_with_the_same_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(reservoir(iter(range(6)), 3, generator)) for _ in range(4000)]
    sets = Counter(frozenset(one) for one in drawn)
    first = Counter(one[:2] for one in drawn)
    # 20 sets of 3, and 30 ordered beginnings of 2; a fair draw fails once in a thousand seeds
    for counts, number in ((sets, 20), (first, 30)):
        assert len(counts) == number
        assert chisquare(list(counts.values())).pvalue > 1e-3


def test_a_reservoir_reads_a_stream_once_and_holds_no_more_than_it_keeps() -> None:
    alive: list[int] = []

    class Item:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    most = 0

    def stream() -> Iterator[Item]:
        nonlocal most
        for _ in range(200):
            yield Item()
            most = max(most, len(alive))

    kept = reservoir(stream(), 5, torch.Generator().manual_seed(0))
    assert len(kept) == 5
    assert most <= 7  # what it keeps, the one in hand, the one that gives way


def test_herding_is_the_greedy_loop_of_the_paper() -> None:
    states = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    values, mean = states.double().numpy(), states.double().numpy().mean(0)
    expected: list[int] = []
    for k in range(1, 8):
        distances = [
            np.linalg.norm(mean - (values[i] + values[expected].sum(0)) / k)
            if i not in expected
            else np.inf
            for i in range(12)
        ]
        expected.append(int(np.argmin(distances)))
    assert herding(states, 7) == expected
    assert herding(states, 3) == expected[:3]  # a smaller memory is the beginning of a larger one
    assert sorted(herding(states, 99)) == list(range(12))


def test_herding_comes_nearer_to_the_mean_than_chance_does() -> None:
    states = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))

    def distance(places: list[int]) -> float:
        return float((states[places].mean(0) - states.mean(0)).norm())

    generator = torch.Generator().manual_seed(1)
    luck = [distance(reservoir(range(200), 10, generator)) for _ in range(50)]
    assert distance(herding(states, 10)) < min(luck)


def test_losses_are_taken_from_the_middle() -> None:
    assert middling(torch.tensor([9.0, 1.0, 5.0, 4.0, 7.0]), 3) == [2, 3, 4]
    assert middling(torch.tensor([1.0, 1.0, 1.0]), 2) == [0, 1]


def test_the_evidence_is_what_the_model_says(loaded: LoadedModel) -> None:
    instances = texts(5)
    states, losses = unit_states(loaded, instances), mean_losses(loaded, instances)
    for row, instance in enumerate(instances):
        ids = torch.tensor([instance.ids])
        with torch.inference_mode():
            out = loaded.model(ids, labels=ids, output_hidden_states=True)
        mean = out.hidden_states[-1][0].mean(0)
        torch.testing.assert_close(states[row], mean / mean.norm(), atol=1e-5, rtol=0)
        steps = torch.nn.functional.cross_entropy(out.logits[0, :-1], ids[0, 1:], reduction="none")
        # Both are sums in float32, in batches of other shapes.
        assert losses[row].item() == pytest.approx(steps[2:].mean().item(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_memory_is_recalled_as_it_was(family: str) -> None:
    loaded = wrap_model(tiny_model(family))
    given_texts = texts(7)
    for selector in SELECTORS:
        recipe = MemoryRecipe(5, selector=selector)
        memory = remember(loaded, "a", iter(given_texts), recipe)
        assert problems(memory) == []
        require_fit(memory, loaded.base)
        recalled = recall(memory)
        assert len(recalled) == 5
        assert all(instance in given_texts for instance in recalled)
        assert remember(loaded, "a", given_texts, recipe) == memory  # equal seeds, equal bricks


@pytest.mark.parametrize("selector", SELECTORS)
def test_tasks_share_equally_and_keep_what_is_worth_most(
    selector: str, loaded: LoadedModel
) -> None:
    recipe = MemoryRecipe(10, selector=selector)
    memory: Brick | None = None
    alone: dict[str, list[Encoded]] = {}
    for number, task in enumerate("abcd"):
        given_texts = texts(8, seed=number)
        alone[task] = recall(remember(loaded, task, given_texts, recipe))
        before, memory = memory, remember(loaded, task, given_texts, recipe, memory=memory)
        kept = remembered(memory)
        counts = [len(own) for own in kept.values()]
        assert list(kept) == list("abcd")[: number + 1]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == min(10, 8 * (number + 1))
        assert all(own == alone[name][: len(own)] for name, own in kept.items())
        assert memory.spec.lineage.parents == ((before.hash,) if before else ())


def test_a_bound_in_bytes_holds(loaded: LoadedModel) -> None:
    memory: Brick | None = None
    for number, task in enumerate("abc"):
        recipe = MemoryRecipe(100, bytes=700)
        memory = remember(loaded, task, texts(20, seed=number), recipe, memory=memory)
        assert memory.bytes <= 700
        sizes = [sum(4 * (len(s.ids) + 3) for s in own) for own in remembered(memory).values()]
        assert max(sizes) - min(sizes) <= 4 * (11 + 3)  # the longest instance


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 80))
def test_shares_are_fair(wanted: list[int], total: int) -> None:
    shares = fair_shares(wanted, total)
    assert sum(shares) == min(total, sum(wanted))
    assert all(share <= want for share, want in zip(shares, wanted, strict=True))
    cut = [share for share, want in zip(shares, wanted, strict=True) if share < want]
    assert not cut or max(shares) <= min(cut) + 1  # who gets less than wanted gets no less


def test_a_memory_goes_through_folder_and_store(loaded: LoadedModel, tmp_path: Path) -> None:
    memory = remember(loaded, "a", texts(9), MemoryRecipe(6))
    write_brick(memory, tmp_path / "memory")
    assert read_brick(tmp_path / "memory") == memory
    with Store.open(tmp_path / "store") as store:
        store.add(memory)
        assert recall(store.get("memory")) == recall(memory)


def test_a_memory_is_not_run(loaded: LoadedModel) -> None:
    model = ConfiguredModel(loaded)
    model.add(remember(loaded, "a", texts(3), MemoryRecipe(3)))
    pairs, running = [([5, 6], [7])], Configuration(bricks=parse_uses("memory"))
    with pytest.raises(BrickFormatError, match="can be stored and checked but not run"):
        mean_loss(model, pairs, running)


def test_memories_are_joined_by_concatenation(loaded: LoadedModel) -> None:
    one = remember(loaded, "a", texts(4), MemoryRecipe(3), name="one")
    two = remember(loaded, "b", texts(4, seed=1), MemoryRecipe(3), memory=one, name="two")
    three = remember(loaded, "c", texts(4, seed=2), MemoryRecipe(2), name="three")
    joined = remembered(combine_bricks([two, three, one], "concatenate").brick)
    assert list(joined) == ["a", "b", "c"]
    assert joined["a"] == [*remembered(two)["a"], *remembered(one)["a"]]
    assert joined["c"] == recall(three)


def test_refuses_what_cannot_be_remembered(loaded: LoadedModel) -> None:
    memory = remember(loaded, "a", texts(3), MemoryRecipe(3))
    with pytest.raises(GrowthError, match="the memory 'memory' holds it already, beside a; give"):
        remember(loaded, "a", texts(3), MemoryRecipe(3), memory=memory)
    with pytest.raises(UnknownNameError, match="no selector is called 'herdin'; did you mean 'her"):
        remember(loaded, "a", texts(3), MemoryRecipe(3, selector="herdin"))
    with pytest.raises(ConfigurationError, match="1 instances was asked for, which leaves a task"):
        remember(loaded, "b", texts(3), MemoryRecipe(1), memory=memory)
    with pytest.raises(ConfigurationError, match="a memory of 0 instances was asked for"):
        remember(loaded, "b", texts(3), MemoryRecipe(0))
    with pytest.raises(ConfigurationError, match="3 instances and 20 bytes was asked for"):
        remember(loaded, "a", texts(3), MemoryRecipe(3, bytes=20))
    with pytest.raises(DataError, match="from 0 instances"):
        remember(loaded, "b", [], MemoryRecipe(3), memory=memory)
    with pytest.raises(DataError, match="token ids from 5 to 112, but the model knows 0 to 111"):
        remember(loaded, "b", [Encoded([5, 112], 1)], MemoryRecipe(3))
    by_loss = MemoryRecipe(3, selector="loss")
    with pytest.raises(DataError, match="among 3 instances by evidence on 2; give a row for each"):
        remember(loaded, "b", texts(3), by_loss, evidence=torch.zeros(2))


def test_refuses_token_ids_of_another_tokenizer(loaded: LoadedModel) -> None:
    memory = remember(loaded, "a", texts(3), MemoryRecipe(3))
    words = tiny_tokenizer()
    words.add_tokens(["grown"])
    other = wrap_model(loaded.model, words, "other")
    with pytest.raises(GrowthError, match="holds token ids of tiny, and other has another tokeni"):
        remember(other, "b", texts(3), MemoryRecipe(3), memory=memory)


def test_refuses_to_recall_from_a_brick_of_another_form(loaded: LoadedModel) -> None:
    memory = remember(loaded, "a", texts(3), MemoryRecipe(3))
    prompt = Brick(memory.spec.model_copy(update={"form": "prompt"}), memory.tensors)
    with pytest.raises(GrowthError, match="it is a prompt; name a brick of the form replay"):
        recall(prompt)


def test_every_selector_names_its_paper() -> None:
    for row in SELECTORS.values():
        assert row.meaning
        assert "arXiv:" in row.source or "doi:" in row.source
