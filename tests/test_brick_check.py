"""Check: every way in which a brick is ill-formed, or does not fit, has its own reason."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from brickwork.brick.base import Base
from brickwork.brick.brick import Brick
from brickwork.brick.check import (
    fingerprint_misfits,
    misfits,
    problems,
    require_fit,
    require_well_formed,
)
from brickwork.brick.forms import find_form
from brickwork.errors import BrickFormatError, MisfitError
from tests.bricks import FORMS, paper_base, random_brick, sites_for

BASE = paper_base()
SITES = {"linear": "model.layers.0.mlp.up_proj", "norm": "model.layers.0.input_layernorm"}
every_form = pytest.mark.parametrize("form", FORMS)


def brick(form: str, **kw: Any) -> Brick:
    return random_brick(form, BASE, torch.Generator().manual_seed(1), **kw)


def changed(one: Brick, tensors: Mapping[str, Tensor | None] = {}, **spec: Any) -> Brick:
    """The brick with some tensors exchanged, added or (None) gone, and some fields changed."""
    merged = {**one.tensors, **tensors}
    kept = {name: tensor for name, tensor in merged.items() if tensor is not None}
    return Brick(one.spec.model_copy(update=spec), kept)


def first(one: Brick) -> tuple[str, Tensor]:
    name = next(name for site in one.spec.sites for name in one.tensors if name.startswith(site))
    return name, one.tensors[name]


def refused(one: Brick, reason: str) -> None:
    """The reason is given, the brick can neither be written nor plugged in."""
    assert any(reason in problem for problem in problems(one)), problems(one)
    with pytest.raises(BrickFormatError, match=r"is not well formed:\n  - "):
        require_well_formed(one)
    with pytest.raises(MisfitError, match=r"does not fit this base:\n  - ") as refusal:
        require_fit(one, BASE)
    assert refusal.value.problems == problems(one)


@every_form
def test_refuses_a_missing_tensor(form: str) -> None:
    name, _ = first(brick(form))
    slot = name.rpartition("/")[2]
    one = changed(brick(form), {name: None})
    if len(find_form(form).slots[0]) == 1:
        refused(one, f"tensors of the listed site {name.rpartition('/')[0]!r} are missing")
    else:
        refused(one, f"a {form} needs {' + '.join(find_form(form).slots[0])}")
        assert slot not in "".join(problems(one)).split("holds", 1)[1].split(",", maxsplit=1)[0]


@every_form
def test_refuses_a_tensor_more(form: str) -> None:
    name, tensor = first(brick(form))
    site = name.rpartition("/")[0]
    refused(changed(brick(form), {f"{site}/more": tensor}), f"{site}: holds ")
    refused(changed(brick(form), {"elsewhere/A": tensor}), "at 'elsewhere', which is not among")
    refused(changed(brick(form), {"A": tensor}), "at '', which is not among the listed sites")


@every_form
def test_refuses_a_wrong_slot(form: str) -> None:
    name, tensor = first(brick(form))
    one = changed(brick(form), {name: None, f"{name.rpartition('/')[0]}/wrong": tensor})
    refused(one, "wrong")


@every_form
def test_refuses_a_wrong_number_of_axes(form: str) -> None:
    name, tensor = first(brick(form))
    refused(changed(brick(form), {name: tensor[None]}), f"{name}: shape {[1, *tensor.shape]}, axes")
    refused(changed(brick(form), {name: torch.tensor(1.0)}), f"{name}: shape [], axes are")


@every_form
def test_refuses_an_empty_axis(form: str) -> None:
    name, tensor = first(brick(form))
    refused(changed(brick(form), {name: tensor[:0]}), f"{name}: the axis")


@every_form
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_values_that_are_not_finite(form: str, value: float) -> None:
    name, tensor = first(brick(form))
    spoiled = tensor.clone()
    spoiled.view(-1)[-1] = value
    refused(changed(brick(form), {name: spoiled}), f"{name}: holds NaN or infinite values")


@every_form
@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_refuses_values_that_are_not_of_a_plain_floating_point_type(
    form: str, dtype: torch.dtype
) -> None:
    name, tensor = first(brick(form))
    refused(changed(brick(form), {name: tensor.to(dtype)}), f"{name}: dtype {dtype} is not a float")


@pytest.mark.parametrize("make", [lambda t: t.to("meta"), lambda t: t.to_sparse()])
def test_refuses_tensors_without_plain_values(make: Callable[[Tensor], Tensor]) -> None:
    name, tensor = first(brick("steering"))
    refused(changed(brick("steering"), {name: make(tensor)}), f"{name}: is not a plain tensor")


@every_form
def test_refuses_a_brick_without_tensors(form: str) -> None:
    refused(Brick(brick(form).spec.model_copy(update={"sites": ()}), {}), "it has no tensors")
    refused(Brick(brick(form).spec, {}), "are missing")


@every_form
def test_refuses_a_site_listed_twice(form: str) -> None:
    one = brick(form)
    refused(changed(one, sites=(*one.spec.sites, one.spec.sites[0])), "a site is listed twice")


@every_form
def test_refuses_options_that_the_form_does_not_have(form: str) -> None:
    refused(changed(brick(form), options={"colour": 1}), "options: ")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "alpha: Field required"),
        ({"alpha": "x"}, "alpha: Input should be a valid number"),
        ({"alpha": float("nan")}, "alpha: Input should be a finite number"),
        ({"alpha": 1, "alphas": {SITES["linear"]: float("inf")}}, "alphas.model.layers"),
        ({"alpha": 1, "alphas": {"elsewhere": 2}}, "'elsewhere' is not among the brick's sites"),
    ],
)
def test_refuses_options_that_do_not_scale_a_lora(options: dict[str, Any], complaint: str) -> None:
    one = changed(brick("lora", sites=[SITES["linear"]]), options=options)
    assert any(complaint in problem for problem in problems(one)), problems(one)


def test_refuses_an_unknown_form() -> None:
    refused(changed(brick("lora"), form="laro"), "the form 'laro' is unknown; known: lora, ia3")


def test_refuses_a_spec_that_was_copied_past_its_validation() -> None:
    refused(changed(brick("bias"), name="../up"), "its spec: name: String should match pattern")
    refused(changed(brick("bias"), licence=3), "its spec: licence: Input should be a valid string")
    refused(changed(brick("bias"), sites=(1,)), "its spec: sites.0")


def test_a_rank_is_the_same_in_both_factors_and_free_from_site_to_site() -> None:
    up, down = SITES["linear"], "model.layers.1.mlp.down_proj"
    tensors = {
        f"{up}/A": torch.ones(3, 8), f"{up}/B": torch.ones(24, 3),
        f"{down}/A": torch.ones(5, 24), f"{down}/B": torch.ones(8, 5),
    }  # fmt: skip
    spec = brick("lora", sites=[up, down]).spec
    require_fit(Brick(spec, tensors), BASE)
    uneven = Brick(spec, {**tensors, f"{up}/B": torch.ones(24, 4)})
    refused(uneven, f"{up}/B: rank is 4, elsewhere 3")


def test_the_tokens_of_a_prefix_are_the_same_in_every_layer() -> None:
    one = brick("prefix")
    last = {name: t for name, t in one.tensors.items() if name.startswith(one.spec.sites[-1])}
    longer = {name: torch.cat([t, t], dim=1) for name, t in last.items()}
    refused(changed(one, longer), "tokens is")


def test_the_heads_of_a_prefix_are_the_same_in_every_layer() -> None:
    one = brick("prefix")
    last = {name: t for name, t in one.tensors.items() if name.startswith(one.spec.sites[-1])}
    wider = {name: torch.cat([t, t], dim=0) for name, t in last.items()}
    refused(changed(one, wider), "kv_heads is 2, elsewhere 1")


def test_a_prompt_sits_at_one_site() -> None:
    one = brick("prompt")
    tensors = {f"{site}/vectors": torch.ones(2, 8) for site in ("model.embed_tokens", "b")}
    two = Brick(one.spec.model_copy(update={"sites": ("model.embed_tokens", "b")}), tensors)
    refused(two, "a prompt sits at one site, this has 2")


@every_form
@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (paper_base(weights="weights-2"), "the base's weights differ (made on paper/base weights-"),
        (paper_base(tokenizer="tokenizer-2"), "the tokenizer differs"),
        (paper_base(layers=3), "the base's parameters have other names or shapes"),
        (paper_base(hidden=12), "the base's parameters have other names or shapes"),
        (paper_base(layers=1), "the base has no module 'model.layers.1"),
    ],
)
def test_refuses_another_base(form: str, base: Base, reason: str) -> None:
    one = brick(form)
    if reason.startswith("the base has no module") and find_form(form).sites == ("embedding",):
        reason = "the base's parameters have other names or shapes"
    with pytest.raises(MisfitError) as refusal:
        require_fit(one, base)
    assert any(reason in problem for problem in refusal.value.problems), refusal.value.problems
    assert reason in str(refusal.value)


@every_form
def test_refuses_another_architecture(form: str) -> None:
    base = paper_base()
    other = base.fingerprint.model_copy(update={"architecture": "OtherForCausalLM"})
    with pytest.raises(MisfitError, match="the architecture 'PaperForCausalLM', this is 'OtherFor"):
        require_fit(brick(form), Base(other, base.sites))


# A skip or an exit holds one number, whatever the base's sizes, and instances are only read.
@pytest.mark.parametrize("form", [n for n in FORMS if n not in {"skip", "exit", "replay"}])
def test_refuses_shapes_that_differ_from_the_site(form: str) -> None:
    one, wide = brick(form), paper_base(hidden=12, kv_heads=2)
    same_name = Base(BASE.fingerprint, wide.sites)
    found = misfits(one, same_name)
    assert found
    assert all(re.search(r"(is \d+, the base has \d+)", reason) for reason in found)


@every_form
def test_refuses_a_site_of_a_kind_that_the_form_cannot_sit_at(form: str) -> None:
    one = brick(form)
    wrong = next(s for s in BASE.sites.values() if s.kind not in find_form(form).sites)
    site = one.spec.sites[0]
    tensors = {
        name.replace(f"{site}/", f"{wrong.path}/"): tensor for name, tensor in one.tensors.items()
    }
    sites = tuple(wrong.path if s == site else s for s in one.spec.sites)
    moved = Brick(one.spec.model_copy(update={"sites": sites}), tensors)
    reason = f"{wrong.path}: a {form} cannot sit at a site of kind {wrong.kind}"
    assert reason in misfits(moved, BASE)


@pytest.mark.parametrize("form", [name for name in FORMS if find_form(name).spread != "one"])
def test_the_order_of_sites_counts_only_for_a_form_that_sits_everywhere(form: str) -> None:
    possible = [site.path for site in sites_for(find_form(form), BASE)]
    turned = brick(form, sites=list(reversed(possible)))
    wanted = f"its sites are not in the base's order, which is {', '.join(possible)}"
    counts = find_form(form).spread == "all"
    assert [reason for reason in misfits(turned, BASE) if "order" in reason] == [wanted] * counts


def test_refuses_a_prefix_that_leaves_out_a_layer() -> None:
    (reason,) = misfits(brick("prefix", sites=["model.layers.1.self_attn"]), BASE)
    assert reason.startswith("a prefix sits at every attention of its base, but this has none at ")
    assert reason.endswith("model.layers.0.self_attn")


@pytest.mark.parametrize(
    ("slot", "values", "reason"),
    [
        ("ids", [1.5, 2], "ids: holds other than whole numbers from 0 to 16,777,216"),
        ("ids", [-1, 2], "ids: holds other than whole numbers"),
        ("task", [2.0**25], "task: holds other than whole numbers"),
        ("length", [3], "instances of 3 tokens at least and 3 in all, for 2 tokens"),
        ("start", [3], "a response starts behind the end of its instance"),
        ("task", [2], "names task 2 of 2, the first being 0"),
    ],
)
def test_refuses_instances_that_cannot_be(slot: str, values: list[float], reason: str) -> None:
    site = "model.embed_tokens"
    tensors = {"ids": [4, 5], "length": [2], "start": [2], "task": [1]}
    spec = brick("replay").spec
    one = Brick(spec, {f"{site}/{name}": torch.tensor(v).float() for name, v in tensors.items()})
    assert problems(one) == []
    refused(changed(one, {f"{site}/{slot}": torch.tensor(values).float()}), reason)


def test_refuses_an_instance_without_tokens() -> None:
    slots = {"ids": [4, 5], "length": [2, 0], "start": [2, 0], "task": [1, 1]}
    tensors = {f"model.embed_tokens/{name}": torch.tensor(v).float() for name, v in slots.items()}
    refused(Brick(brick("replay").spec, tensors), "instances of 0 tokens at least and 2 in all")


def test_a_missing_tokenizer_and_another_name_are_no_difference() -> None:
    without, named = paper_base(tokenizer=None).fingerprint, paper_base().fingerprint
    assert fingerprint_misfits(without, named) == []
    assert fingerprint_misfits(named, without) == []
    assert fingerprint_misfits(named, named.model_copy(update={"name": "other"})) == []


def test_all_reasons_are_found_at_once() -> None:
    base = paper_base(layers=1, weights="x", tokenizer="y")
    other = base.fingerprint.model_copy(update={"architecture": "Other"})
    with pytest.raises(MisfitError) as refusal:
        require_fit(brick("prefix"), Base(other, base.sites))
    assert len(refusal.value.problems) == 4


@every_form
def test_weights_that_were_not_hashed_alike_are_not_called_different_twice(form: str) -> None:
    found = misfits(brick(form), paper_base(layers=3, weights="weights-2"))
    assert "the base's parameters have other names or shapes" in found
    assert not any("weights differ" in reason for reason in found)


@pytest.mark.parametrize(
    ("form", "slot", "values", "reason"),
    [
        ("mask", "keep", [0.5], "a mask holds 0 and 1 alone"),
        ("exit", "confidence", [1.5], "a confidence is from 0 to 1, not \\[1.5"),
        ("skip", "share", [0.0, 1.0], "holds 2 numbers, a skip needs one"),
    ],
)
def test_refuses_values_that_have_no_meaning(
    form: str, slot: str, values: list[float], reason: str
) -> None:
    one = brick(form)
    name = min(one.tensors)
    assert name.endswith(f"/{slot}")
    wrong = torch.tensor(values).repeat(len(one.tensors[name]) // len(values) or 1)
    (found,) = problems(Brick(one.spec, {**one.tensors, name: wrong}))
    assert re.search(reason, found)


def test_refuses_a_router_that_sits_elsewhere() -> None:
    one = brick("router", sites=["model.layers.0.self_attn.o_proj"])
    (reason,) = misfits(one, BASE)
    assert reason.endswith("a router sits at layers.N.mlp.down, this is layers.0.attn.o")


def test_refuses_a_router_whose_owners_are_no_groups() -> None:
    site = "model.layers.0.mlp.down_proj"
    spec = brick("router", sites=[site]).spec
    weight = torch.zeros(3, 8)
    for owner, reason in (
        ([3.0], "names groups 0 to 2"),
        ([0.5], "names groups 0 to 2"),
        ([1.0], "group 0 has no neurons"),
    ):
        tensors = {f"{site}/owner": torch.tensor(owner * 24), f"{site}/weight": weight}
        assert [p for p in problems(Brick(spec, tensors)) if reason in p]
