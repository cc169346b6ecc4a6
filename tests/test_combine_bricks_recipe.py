"""Brick recipes: the same as the call, gradients and filters, and what is refused."""

from typing import Any

import pytest
import torch

from brickwork.brick.brick import Brick
from brickwork.combine.brick_recipe import parse_brick_recipe, run_brick_recipe
from brickwork.combine.bricks import combine_bricks
from brickwork.errors import BrickworkError, ConfigurationError
from tests.bricks import paper_base, random_brick

BASE = paper_base(hidden=16, layers=3)
LINEAR = [site.path for site in BASE.of_kind("linear") if site.layer is not None]


def find(name: str) -> Brick:
    seed = {"a": 1, "b": 2}[name]
    chance = torch.Generator().manual_seed(seed)
    return random_brick("lora", BASE, chance, sites=LINEAR, name=name)


def recipe(**changes: Any) -> dict[str, Any]:
    bricks = [{"brick": "a", "parameters": {"weight": 1}}, {"brick": "b"}]
    return {
        "merge_method": "linear", "bricks": bricks, "parameters": {"weight": 3}, **changes
    }  # fmt: skip


def test_a_recipe_makes_what_the_call_makes() -> None:
    made = run_brick_recipe(parse_brick_recipe(recipe(name="both", rank=4)), find)
    called = combine_bricks(
        [find("a"), find("b")], "linear", parameters={"weight": [1, 3]}, rank=4, name="both"
    )
    assert made.brick.spec.name == "both"
    assert made.brick.spec.lineage.parents == called.brick.spec.lineage.parents
    for name, tensor in called.brick.tensors.items():
        assert torch.equal(made.brick.tensors[name], tensor)


def test_a_list_of_values_runs_over_the_layers_and_a_filter_picks_sites() -> None:
    weights = [{"filter": "down_proj", "value": 0}, {"value": [0, 1]}]
    document = recipe(
        bricks=[{"brick": "a", "parameters": {"weight": weights}}],
        parameters={"normalize": False},
    )
    made = run_brick_recipe(parse_brick_recipe(document), find).brick
    one = find("a")
    for site, factor in (
        ("model.layers.0.mlp.up_proj", 0.0),
        ("model.layers.1.mlp.up_proj", 0.5),
        ("model.layers.2.mlp.up_proj", 1.0),
        ("model.layers.2.mlp.down_proj", 0.0),
    ):
        A, B = made.by_site[site]["A"], made.by_site[site]["B"]
        own, options = one.by_site[site], one.spec.options
        scaling = float(str(options["alpha"])) / own["A"].shape[0]
        assert torch.allclose(B @ A, factor * scaling * own["B"] @ own["A"], atol=1e-4)  # float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modles": []}, "modles"),
        ({"rank": 0}, "rank"),
        ({"bricks": []}, "bricks"),
        ({"bricks": [{"brick": "a", "weight": 1}]}, "weight"),
        ({"parameters": {}}, "linear needs the parameter 'weight', and a brick has none"),
        ({"parameters": {"weight": "much"}}, "weight is a number, not 'much'"),
        ({"parameters": {"wieght": 1}}, "did you mean 'weight'"),
        ({"merge_method": "linaer"}, "did you mean 'linear'"),
        (
            {"bricks": [{"brick": "a", "parameters": {"normalize": True, "weight": 1}}]},
            "one value for all bricks",
        ),
        ({"merge_method": "union"}, "union has no parameters"),
        ({"name": "Not A Name"}, "name"),
    ],
)
def test_what_is_not_valid_is_refused_before_any_brick_is_read(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BrickworkError, match=message):
        parse_brick_recipe(recipe(**changes))


def test_a_filter_that_leaves_a_site_without_a_value_is_refused_with_the_site() -> None:
    weights = [{"filter": "q_proj", "value": 1}]
    document = recipe(bricks=[{"brick": "a", "parameters": {"weight": weights}}], parameters={})
    with pytest.raises(ConfigurationError, match=r"'weight' at 'model.layers.0"):
        run_brick_recipe(parse_brick_recipe(document), find)
