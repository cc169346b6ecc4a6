"""Consolidation: who is alike, what one brick for several costs, and what is refused."""

from collections.abc import Sequence

import pytest
import torch

from brickwork.brick.brick import Brick
from brickwork.combine.bricks import combine_bricks
from brickwork.errors import GrowthError
from brickwork.grow.consolidate import consolidate, similar_groups, similarity
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.runtime.brick_rows import row_logits
from tests.bricks import random_brick
from tests.stream import task
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return wrap_model(tiny_model("llama"))


def lora(base: LoadedModel, name: str, seed: int) -> Brick:
    chance = torch.Generator().manual_seed(seed)
    sites = [site.path for site in base.base.of_kind("linear") if site.layer == 0]
    return random_brick("lora", base.base, chance, name=name, sites=sites)


def nudged(brick: Brick, name: str, scale: float) -> Brick:
    """Nearly the same brick."""
    chance = torch.Generator().manual_seed(9)
    tensors = {
        key: t + scale * torch.randn(t.shape, generator=chance) for key, t in brick.tensors.items()
    }
    return Brick(brick.spec.model_copy(update={"name": name}), tensors)


def mean(bricks: Sequence[Brick], name: str) -> Brick:
    return combine_bricks(bricks, "linear", parameters={"weight": 1.0}, name=name).brick


def three(base: LoadedModel) -> dict[str, Brick]:
    first = lora(base, "a", 1)
    return {"a": first, "b": lora(base, "b", 2), "c": nudged(first, "c", 0.05)}


def test_bricks_that_do_alike_are_one_group(base: LoadedModel) -> None:
    assert similar_groups(three(base), 0.9) == {"group-1": ["a", "c"]}
    assert similar_groups(three(base), -1.0) == {"group-1": ["a", "b", "c"]}
    assert similar_groups({"a": lora(base, "a", 1), "b": lora(base, "b", 2)}, 0.9) == {}


def test_similarity_is_the_cosine_of_the_whole_updates(base: LoadedModel) -> None:
    bricks = list(three(base).values())
    scaled = [
        torch.cat([
            (s["B"].double() @ s["A"].double()).flatten() / len(s["A"])  # alpha over rank
            for s in brick.by_site.values()
        ])
        for brick in bricks
    ]  # fmt: skip
    rows = torch.nn.functional.normalize(torch.stack(scaled), dim=1)
    assert torch.allclose(similarity(bricks), rows @ rows.T, atol=1e-5)  # ours from float32


def test_a_chain_of_alike_bricks_is_one_group(base: LoadedModel) -> None:
    first = lora(base, "a", 1)
    chain = {"a": first, "c": nudged(first, "c", 0.8), "b": nudged(first, "b", 0.4)}
    cosines = similarity(list(chain.values()))
    least = min(cosines[0, 2].item(), cosines[1, 2].item())
    assert cosines[0, 1] < least  # a and c are alike to b, but not to each other
    assert similar_groups(chain, least) == {"group-1": ["a", "c", "b"]}


def test_equal_bricks_become_one_at_no_cost(base: LoadedModel) -> None:
    own = lora(base, "a", 1)
    bricks = {"a": own, "b": own, "c": lora(base, "c", 3)}
    found = consolidate(
        bricks, {"both": ["a", "b"]}, lambda some, name: some[0],
        tasks=[task(name, seed) for seed, name in enumerate("cab")], logits=row_logits(base),
    )  # fmt: skip
    rows = {row.name: row for row in found.document.tasks}
    assert {row.group for row in rows.values()} == {"both", ""}
    assert all(row.before == row.after != row.base for row in rows.values())
    assert found.bricks["a"] is found.bricks["b"]
    assert found.document.parameters_before == found.document.parameters_after


def test_merging_is_measured_task_by_task(base: LoadedModel) -> None:
    bricks = three(base)
    found = consolidate(
        bricks, {"twins": ["a", "c"]}, mean, tasks=[task(name, n) for n, name in enumerate("abc")],
        logits=row_logits(base),
    )  # fmt: skip
    rows = {row.name: row for row in found.document.tasks}
    assert rows["b"].before == rows["b"].after
    assert rows["a"].before != rows["a"].after
    # Twins that differ by a twentieth of their entries differ little in what they say.
    assert abs(rows["a"].after - rows["a"].before) < abs(rows["a"].base - rows["a"].before)
    assert found.bricks["a"].spec.name == "twins"
    assert set(found.bricks["a"].spec.lineage.parents) == {bricks["a"].hash, bricks["c"].hash}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "0 groups"),
        ({"g": ["a"]}, "g has fewer than two tasks"),
        ({"g": ["a", "x"]}, "x has no brick"),
        ({"g": ["a", "b"], "h": ["b", "c"]}, "b is in two groups"),
    ],
)
def test_groups_that_cannot_be_are_refused(
    groups: dict[str, list[str]], message: str, base: LoadedModel
) -> None:
    with pytest.raises(GrowthError, match=message):
        consolidate(three(base), groups, mean, tasks=[], logits=row_logits(base))


def test_a_brick_without_a_task_and_bricks_of_two_forms_are_refused(base: LoadedModel) -> None:
    with pytest.raises(GrowthError, match="bricks of b, c were to be consolidated"):
        consolidate(
            three(base), {"g": ["a", "b"]}, mean, tasks=[task("a", 1)], logits=row_logits(base)
        )
    bias = random_brick("bias", base.base, torch.Generator().manual_seed(0))
    with pytest.raises(GrowthError, match="of the forms bias, lora"):
        similar_groups({"a": lora(base, "a", 1), "b": bias}, 0.5)
