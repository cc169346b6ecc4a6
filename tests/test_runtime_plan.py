"""A plan: what the bricks of each row are, why, what they cost, and what is refused."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brickwork.brick.brick import Brick
from brickwork.brick.configuration import Configuration
from brickwork.errors import BrickFormatError, ConfigurationError, MisfitError, UnknownNameError
from brickwork.model.load import wrap_model
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.plan import base_costs, flops_per_token
from tests.served import bricks_of, configured, loaded, using
from tests.tiny import FAMILIES, tiny_model

EXPERTS = {"mixtral": 2 * 2 * 3 * 32 * 48 * 2, "qwen3_moe": 2 * 1 * 3 * 32 * 24 * 2}


def test_a_plan_says_which_bricks_why_and_at_what_cost() -> None:
    model, lora, ia3 = configured("llama"), *(bricks_of("llama")[n] for n in ("lora-1", "ia3-1"))
    rows = [using("lora-1:0.5,ia3-1"), using(""), using("lora-1")]
    plan = model.plan(rows, [{"lora-1": "retrieved: score 0.9"}, {}, {}])
    assert [[use.reason for use in row.bricks] for row in plan.rows] == [
        ["retrieved: score 0.9", "named in the configuration"],
        [],
        ["named in the configuration"],
    ]
    assert plan.bricks == {lora.hash: lora, ia3.hash: ia3}
    document = json.loads(json.dumps(plan.as_document()))
    assert document["base_bytes"] == sum(p.numel() * 4 for p in model.loaded.model.parameters())
    assert document["brick_bytes"] == lora.bytes + ia3.bytes, "a brick of two rows counts once"
    first, bare, _ = document["rows"]
    assert first["configuration_hash"] == rows[0].hash
    assert Configuration.model_validate(first["configuration"]) == rows[0]
    assert [brick["weight"] for brick in first["bricks"]] == [0.5, 1.0]
    added = sum(brick["flops_per_token"] for brick in first["bricks"])
    assert first["flops_per_token"] == document["base_flops_per_token"] + added
    assert first["flops_added"] == added / document["base_flops_per_token"]
    assert bare["flops_per_token"] == document["base_flops_per_token"]


def measured(model: ConfiguredModel, row: Configuration) -> int:
    """What torch counts for one token, the products of attention left out."""
    # With gradients, since the counter does not know products that are added in place.
    counter = FlopCounterMode(display=False)
    with model.serving([[5]], model.plan([row])) as layout, counter, torch.enable_grad():
        model.loaded.model(**layout.inputs)
    counts = counter.get_flop_counts()["Global"]
    linear = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.baddbmm)
    shrink = 0 if row.bricks == () else counts.get(torch.ops.aten.bmm, 0)
    return sum(counts.get(operation, 0) for operation in linear) + shrink


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bases_operations_are_those_that_torch_counts(family: str) -> None:
    # torch does not count experts, and counts routers.
    experts = EXPERTS.get(family, 0)
    routers = {"mixtral": 2, "qwen3_moe": 1}.get(family, 0) * 2 * 32 * 4
    found = measured(configured(family), using("")) + experts - routers
    assert base_costs(loaded(family))[1] == found


def test_a_loras_operations_are_those_counted_by_hand_and_by_torch() -> None:
    brick, model = bricks_of("llama")["lora-1"], configured("llama")
    by_hand = 0
    for slots in brick.by_site.values():
        (rank, inputs), outputs = slots["A"].shape, len(slots["B"])
        by_hand += 2 * rank * inputs + 2 * rank * outputs  # a product and a sum count as two
    assert flops_per_token(brick, loaded("llama")) == by_hand
    with_brick, bare = (measured(model, using(b)) for b in ("lora-1", ""))
    assert with_brick - bare == by_hand


def test_operations_of_the_other_forms() -> None:
    for name in ("ia3-1", "bias-1", "steering-1"):
        brick = bricks_of("llama")[name]
        assert flops_per_token(brick, loaded("llama")) == sum(
            t.numel() for t in brick.tensors.values()
        )
    memories = {name: bricks_of("llama")[name] for name in ("patch-1", "codebook-1", "memory-1")}
    by_hand = dict.fromkeys(memories, 0)
    for name, slots in ((n, s) for n, b in memories.items() for s in b.by_site.values()):
        if name == "patch-1":  # a product and a sum count as two
            by_hand[name] += 2 * len(slots["bias"]) * (32 + 32)
        else:  # a difference, a square and a sum for each number of a key, and the value's sum
            entries, width = slots["key"].shape
            by_hand[name] += 3 * entries * width + 32 + 2 * width * 32 * (name == "memory-1")
    assert {n: flops_per_token(b, loaded("llama")) for n, b in memories.items()} == by_hand
    assert flops_per_token(bricks_of("llama")["prompt-1"], loaded("llama")) == 0
    prefix = bricks_of("llama")["prefix-1"]
    tokens = next(iter(prefix.tensors.values())).shape[1]
    (row,) = configured("llama").plan([using("lora-1:0")]).rows
    assert row.bricks[0].flops == 0, "of weight 0 nothing is computed"
    # 4 heads of 8 multiply with each key and each value, in 2 layers; 2 of them share a key.
    assert flops_per_token(prefix, loaded("llama")) == 2 * (2 * 2 * tokens * 4 * 8)


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no brick is called 'lora-3'; did you mean 'lora-"):
        configured("llama").plan([using("lora-3")])


def test_a_brick_of_another_base_is_refused_when_added_and_when_planned() -> None:
    other = wrap_model(tiny_model("llama", seed=1))
    brick = bricks_of("llama")["lora-1"]
    with pytest.raises(MisfitError, match="the base's weights differ"):
        ConfiguredModel(other).add(brick)
    model = configured("llama")
    model._named["foreign"] = Brick(
        brick.spec.model_copy(update={"base": other.base.fingerprint}), brick.tensors
    )
    with pytest.raises(MisfitError, match="brick 'lora-1' does not fit this base"):
        model.plan([using(""), using("foreign")])


@pytest.mark.parametrize("form", ["prefix", "prompt"])
def test_a_weight_on_what_acts_as_a_whole_is_refused(form: str) -> None:
    with pytest.raises(BrickFormatError, match=rf"got weight 0.5, but a {form} acts only as a who"):
        configured("llama").plan([using(f"{form}-1:0.5")])
    configured("llama").plan([using(f"{form}-1:0"), using(f"{form}-1")])


def test_reasons_are_for_all_rows_or_none() -> None:
    with pytest.raises(ConfigurationError, match="2 configurations, but reasons for 1"):
        configured("llama").plan([using(""), using("")], [{}])
