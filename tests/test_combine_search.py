"""Search over recipes: the front is right, a killed search goes on, candidates do as told."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brickwork.combine.candidates import (
    BrickTrials,
    ModelTrials,
    require_apart,
    require_objectives,
    split_pairs,
)
from brickwork.combine.methods import merge_tensors
from brickwork.combine.search import JOURNAL, Searching, pareto_front, run_search
from brickwork.combine.search_recipe import SearchSpec, parse_search_recipe, read_search_recipe
from brickwork.combine.search_space import Candidate, single_methods, space_of
from brickwork.combine.weighted import WeightedBricks
from brickwork.errors import ConfigurationError, DataError, MergeError, UnknownNameError
from brickwork.measure.instances import Instance
from brickwork.measure.perplexity import response_losses
from brickwork.model.load import wrap_model
from tests.bricks import random_brick
from tests.test_measure_activations import instances
from tests.tiny import tiny_model

points = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12)


def spec(**changes: Any) -> SearchSpec:
    fields: dict[str, Any] = {
        "methods": ["linear", "task_arithmetic"],
        "parameters": {"weight": [-1, 2], "normalize": False},
        "trials": 20,
        "population": 5,
    }
    return SearchSpec.model_validate(fields | changes)


def searching(own: SearchSpec, **fields: Any) -> Searching:
    return Searching(space_of(own, 2, has_base=True), "key", **fields)


def distance(candidate: Candidate, _seed: int) -> dict[str, float]:
    """How far the weights are from (1.2, -0.5); the second objective is how large they are."""
    first, second = candidate.parameters[0]["weight"]
    wrong = 0.1 * (candidate.method != "task_arithmetic")
    away = (first - 1.2) ** 2 + (second + 0.5) ** 2
    return {"loss": away + wrong, "loss:A": abs(first) + abs(second)}


@given(points)
def test_the_front_is_what_no_point_beats(values: list[tuple[int, int]]) -> None:
    slow = [not any(a <= x and b <= y and (a < x or b < y) for a, b in values) for x, y in values]
    assert pareto_front(values) == slow


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "random"])
def test_every_sampler_nears_a_planted_optimum(sampler: str, tmp_path: Path) -> None:
    own = spec(methods=["task_arithmetic"], trials=30, sampler=sampler)
    rows = run_search(searching(own, seed=1), distance, tmp_path)
    best = min(row.values["loss"] for row in rows if row.values)
    # Of 30 even draws over an area of 9 one is within a distance of 1 but for 1 case in 10,000.
    assert best < 1.0
    assert [row.number for row in rows] == list(range(30))


def test_equal_seeds_search_alike(tmp_path: Path) -> None:
    rows = [
        run_search(searching(spec(trials=12), seed=seed), distance, tmp_path / name)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert rows[0] == rows[1] != rows[2]


def test_two_objectives_give_a_front(tmp_path: Path) -> None:
    rows = run_search(searching(spec(objectives=["loss", "loss:A"])), distance, tmp_path)
    good = [tuple(row.values.values()) for row in rows if row.values]
    assert [row.front for row in rows] == pareto_front(good)
    assert sum(row.front for row in rows) > 1


def test_a_killed_search_goes_on_and_draws_nothing_twice(tmp_path: Path) -> None:
    calls: list[int] = []

    def dying(candidate: Candidate, seed: int) -> Mapping[str, float]:
        calls.append(seed)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return distance(candidate, seed)

    with pytest.raises(KeyboardInterrupt):
        run_search(searching(spec(sampler="random")), dying, tmp_path)
    told: list[float] = []
    rows = run_search(searching(spec(sampler="random")), dying, tmp_path, advance=told.append)
    assert len(rows) == 20
    assert len(told) == 13
    weights = {json.dumps(row.parameters) for row in rows}
    assert len(weights) == 20


def test_a_line_that_was_cut_short_is_left_out_and_the_search_goes_on(tmp_path: Path) -> None:
    run_search(searching(spec(trials=4)), distance, tmp_path)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-10])  # as a full disk or a lost machine leaves it
    rows = run_search(searching(spec(trials=8)), distance, tmp_path)
    assert len([row for row in rows if row.values]) == 8
    assert len(run_search(searching(spec(trials=8)), distance, tmp_path)) == 8


@pytest.mark.parametrize("content", ["{op_code: 0\n", '{"a": 1}\n', "[]\n", "\n", "1\n", "\xff\n"])
def test_a_journal_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text(content, encoding="latin-1")
    with pytest.raises(ConfigurationError, match="should hold the trials of a search"):
        run_search(searching(spec(trials=2)), distance, tmp_path)


def test_several_workers_share_one_journal(tmp_path: Path) -> None:
    first = searching(spec(trials=5, sampler="random"), worker=0)
    run_search(first, distance, tmp_path)
    second = Searching(space_of(spec(trials=10, sampler="random"), 2, has_base=True), "key", 0, 1)
    rows = run_search(second, distance, tmp_path)
    assert len({json.dumps(row.parameters) for row in rows}) == 10


def test_a_trial_that_fails_is_kept_with_its_reason(tmp_path: Path) -> None:
    def failing(candidate: Candidate, seed: int) -> Mapping[str, float]:
        if candidate.method == "linear":
            raise MergeError("the weights sum to 0")
        values = distance(candidate, seed)
        return values if values["loss"] < 3 else {"loss": math.nan}

    rows = run_search(searching(spec(sampler="random")), failing, tmp_path)
    failed = [row for row in rows if row.values is None]
    assert {row.reason for row in failed if row.method == "linear"} == {"the weights sum to 0"}
    assert all("finite" in row.reason for row in failed if row.method != "linear")
    assert not any(row.front for row in failed)
    with pytest.raises(ZeroDivisionError):  # a defect is no failed trial
        run_search(searching(spec()), lambda _c, _s: {"loss": 1 / 0}, tmp_path / "other")


def test_another_search_does_not_go_on_in_the_same_folder(tmp_path: Path) -> None:
    run_search(searching(spec(trials=2)), distance, tmp_path)
    other = Searching(space_of(spec(trials=2), 2, has_base=True), "another key")
    with pytest.raises(ConfigurationError, match="holds a search with another recipe"):
        run_search(other, distance, tmp_path)
    assert (tmp_path / JOURNAL).is_file()


def test_a_candidate_has_what_its_method_has() -> None:
    own = spec(
        methods=["linear", "ties"], blocks=2, ranks=[2, 4],
        parameters={"weight": [0, 1], "density": [0.1, 0.2, 0.9], "normalize": [True, False]},
    )  # fmt: skip
    space = space_of(own, 2, has_base=True)
    chosen: dict[str, Any] = {a.name: a.choices[0] if a.choices else 0.25 for a in space.axes}
    assert len(chosen) == 1 + 4 + 4 + 1 + 1
    linear = space.candidate(chosen)
    assert linear.parameters == ({"weight": (0.25, 0.25), "normalize": True},) * 2
    assert linear.rank == 2
    ties = space.candidate(chosen | {"method": "ties", "weight/1/0": 0.5})
    assert ties.parameters[1]["weight"] == (0.5, 0.25)
    assert ties.parameters[1]["density"] == (0.1, 0.1)
    assert [label for label, _ in single_methods(space)][:2] == [
        "linear, weights 1", "linear, weights 0.5",
    ]  # fmt: skip


def test_refuses_spaces_that_cannot_be_searched() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        space_of(spec(methods=["linera"]), 2, has_base=True)
    with pytest.raises(UnknownNameError, match="did you mean 'normalize'"):
        space_of(spec(parameters={"weight": 1, "normalise": True}), 2, has_base=True)
    with pytest.raises(ConfigurationError, match="'linear', which needs weight"):
        space_of(spec(parameters={}), 2, has_base=True)
    with pytest.raises(ConfigurationError, match="fisher statistics"):
        space_of(spec(methods=["fisher"]), 2, has_base=True)
    with pytest.raises(ConfigurationError, match="lower end first"):
        space_of(spec(parameters={"weight": [2, 1]}), 2, has_base=True)
    with pytest.raises(MergeError, match="slerp needs 1"):
        space_of(spec(methods=["slerp"], parameters={"t": [0, 1]}), 2, has_base=True)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"bricks": ["a"], "lern": {}}, "lern"),
        ({"bricks": ["a"], "models": ["b"], "learn": {}}, "either `bricks` or `models`"),
        ({"bricks": ["a"]}, "either `learn` or `search`"),
        ({"models": ["a"], "learn": {}}, "learned for `bricks`"),
        ({"bricks": ["a", "a"], "learn": {}}, "named twice"),
        ({"bricks": ["a"], "learn": {"layerwise": True}}, "without gradients"),
        ({"bricks": ["a"], "search": {"methods": []}}, "methods"),
        ({"bricks": ["a"], "search": {"methods": ["linear"], "ranks": [0]}}, "ranks"),
        ({"models": ["a"], "search": {"methods": ["linear"], "ranks": [2]}}, "have a rank"),
    ],
)
def test_refuses_recipes_that_are_not_valid(document: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_search_recipe(document)
    path = tmp_path / "recipe.yaml"
    path.write_text("{")
    with pytest.raises(ConfigurationError, match="no YAML that can be read"):
        read_search_recipe(path)


def pairs(count: int = 6) -> list[tuple[Instance, Any]]:
    return [
        (Instance("AB"[n % 2], f"prompt {n}", "r"), sequence)
        for n, sequence in enumerate(instances(count))
    ]


def test_a_brick_candidate_is_the_weighted_sum_that_it_describes() -> None:
    loaded = wrap_model(tiny_model("llama"))
    generator = torch.Generator().manual_seed(0)
    bricks = [random_brick("lora", loaded.base, generator, name=f"b{n}") for n in range(2)]
    weights = [[0.4, -0.2], [0.1, 0.3]]  # bricks by blocks
    blocks = tuple({"weight": (weights[0][n], weights[1][n]), "normalize": False} for n in range(2))
    found = BrickTrials(loaded, bricks, 2).evaluate(Candidate("linear", blocks), 0, pairs())
    together = WeightedBricks(loaded, bricks, 2)
    for name in "AB":
        own = [sequence for instance, sequence in pairs() if instance.functionality == name]
        expected = together.mean(weights, own, "loss")
        assert found[f"loss:{name}"] == pytest.approx(expected, rel=1e-4)  # float32, other order
    assert found["loss"] == pytest.approx((found["loss:A"] + found["loss:B"]) / 2)
    assert found["size"] > 0


def test_a_model_candidate_is_merged_block_by_block_and_the_base_comes_back() -> None:
    loaded = wrap_model(tiny_model("qwen2"))
    models = {"x": tiny_model("qwen2", 1), "y": tiny_model("qwen2", 2)}
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    trials = ModelTrials(loaded, models, 2)
    blocks = tuple({"weight": w, "lambda": 0.5} for w in ((0.2, 0.4), (0.6, 0.1)))
    found = trials.evaluate(Candidate("task_arithmetic", blocks), 0, pairs())
    assert all(torch.equal(p, before[n]) for n, p in loaded.model.named_parameters())
    merged = tiny_model("qwen2")
    for name, parameter in merged.named_parameters():
        block = blocks[0] if ".layers.0." in name else blocks[1]
        sides = [model.get_parameter(name).detach() for model in models.values()]
        own = merge_tensors("task_arithmetic", sides, base=before[name], **block)
        parameter.data = own
    labels, sequences = zip(*((i.functionality, s) for i, s in pairs()), strict=True)
    expected = response_losses(merged, sequences, labels)
    assert found["loss:A"] == pytest.approx(expected["A"], rel=1e-6)
    other = {"z": tiny_model("llama")}
    with pytest.raises(MergeError, match="models of one shape"):
        ModelTrials(loaded, other, 1)


def test_the_random_choices_of_a_model_candidate_differ_between_its_tensors() -> None:
    loaded = wrap_model(tiny_model("qwen2"))
    trials = ModelTrials(loaded, {"x": tiny_model("qwen2", 1)}, 1)
    chosen = Candidate("dare_linear", ({"weight": 1.0, "density": 0.5, "rescale": False},))
    masks = []
    for layer in (0, 1):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        merged = trials._merged(name, chosen, seed=3)  # no loss shows a mask
        masks.append(merged != loaded.model.get_parameter(name))
    # of 50 % each, two masks that know nothing of each other agree in half of the places
    assert (masks[0] == masks[1]).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_the_split_keeps_equal_prompts_together_and_any_order() -> None:
    every = [(Instance("AB"[n % 2], f"p{n // 2 % 40}", str(n)), None) for n in range(160)]
    split = split_pairs(every, 0.3, 1)  # type: ignore[arg-type]
    require_apart(split.search, split.held_out)
    assert len(split.search) + len(split.held_out) == 160
    turned = split_pairs(every[::-1], 0.3, 1)  # type: ignore[arg-type]
    assert {i.response for i, _ in turned.search} == {i.response for i, _ in split.search}
    with pytest.raises(DataError, match="1 prompts are among those"):
        require_apart(split.search, split.search[:1])
    with pytest.raises(DataError, match="one side of the split"):
        split_pairs(every[:1], 0.3, 1)  # type: ignore[arg-type]


def test_refuses_objectives_that_cannot_be_measured() -> None:
    require_objectives(["loss", "loss:A"], pairs(), sized=False)
    with pytest.raises(UnknownNameError, match="loss:A"):
        require_objectives(["loss:C"], pairs(), sized=False)
    with pytest.raises(ConfigurationError, match="several `ranks`"):
        require_objectives(["size"], pairs(), sized=False)
