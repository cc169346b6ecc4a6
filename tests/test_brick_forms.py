"""FORMS and EFFECTS: every row is complete, and every form says what it does."""

import importlib
from typing import Any

import pytest
import torch

from brickwork.brick import effects, forms, tables
from brickwork.brick.brick import Brick
from brickwork.brick.check import problems, require_fit, require_weight
from brickwork.brick.effects import (
    EFFECTS,
    Add,
    Codebook,
    Effect,
    Embed,
    Exit,
    Mask,
    Patch,
    Prefix,
    Route,
    Scale,
    Shift,
    Skip,
)
from brickwork.brick.forms import Form, effects_of, find_form, load_target
from brickwork.brick.peft import to_peft
from brickwork.errors import BrickFormatError, UnknownNameError
from tests.bricks import FORMS, FORMS_WITH_NEUTRAL, neutral_brick, paper_base, random_brick

BASE = paper_base()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", FORMS)
def test_every_row_is_complete(name: str) -> None:
    row = find_form(name)
    assert row.name == name
    assert row.meaning
    assert row.sites
    assert row.effect in EFFECTS
    assert "arXiv:" in row.source
    assert not row.target or callable(load_target(row.target))
    load_target(row.options).model_json_schema()
    assert len({frozenset(slots) for slots in row.slots}) == len(row.slots)
    assert row.shared <= {axis for slots in row.slots for axes in slots.values() for axis in axes}
    assert EFFECTS[row.effect].primitive is not None or not row.target


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_random_bricks_of_every_form_are_well_formed_and_fit(name: str, seed: int) -> None:
    brick = random_brick(name, BASE, generator(seed))
    assert problems(brick) == []
    require_fit(brick, BASE)
    assert random_brick(name, BASE, generator(seed)) == brick
    assert not find_form(name).peft or to_peft(brick)[0]["peft_type"] == find_form(name).peft


@pytest.mark.parametrize("name", [name for name in FORMS if find_form(name).target])
def test_every_tensor_becomes_part_of_an_effect_of_the_row(name: str) -> None:
    brick = random_brick(name, BASE, generator())
    found = effects_of(brick)
    primitive = EFFECTS[find_form(name).effect].primitive
    assert primitive is not None
    assert {type(effect) for effect in found} == {primitive}
    assert {effect.site for effect in found} == set(brick.spec.sites)
    used = {
        value.data_ptr()
        for effect in found
        for field in vars(effect).values()
        for value in (field.values() if isinstance(field, dict) else [field])
        if isinstance(value, torch.Tensor)
    }
    assert used == {tensor.data_ptr() for tensor in brick.tensors.values()}


def change_of(effect: Effect) -> float:
    """How far the effect is from doing nothing."""
    if isinstance(effect, Add):
        return float((effect.scaling * effect.B @ effect.A).abs().max())
    if isinstance(effect, Scale):
        return float((effect.factor - 1).abs().max())
    if isinstance(effect, Skip):
        return float(effect.share.abs())
    if isinstance(effect, Patch):
        return float(effect.value.abs().max())
    if isinstance(effect, Codebook):  # where no state is exactly a key
        return float(effect.radius.max() * effect.value.abs().max())
    assert isinstance(effect, Shift)
    return float(effect.vector.abs().max())


@pytest.mark.parametrize("name", FORMS_WITH_NEUTRAL)
def test_a_neutral_brick_is_made_of_effects_that_do_nothing(name: str) -> None:
    neutral, other = neutral_brick(name, BASE, generator()), random_brick(name, BASE, generator())
    require_fit(neutral, BASE)
    assert [change_of(effect) for effect in effects_of(neutral)] == [0] * len(neutral.by_site)
    assert all(change_of(effect) > 0 for effect in effects_of(other))


def test_a_weight_has_a_meaning_for_all_forms_but_those_that_act_as_a_whole() -> None:
    whole = {"prompt", "prefix", "mask", "exit", "router", "replay"}
    assert set(FORMS) - set(FORMS_WITH_NEUTRAL) == whole


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("weight", [0, 1, 0.0, 1.0, 0.5, -1.0])
def test_a_form_without_weight_acts_only_as_a_whole(name: str, weight: float) -> None:
    brick = random_brick(name, BASE, generator())
    if name in FORMS_WITH_NEUTRAL or weight in (0, 1):
        require_weight(brick, weight)
    else:
        with pytest.raises(BrickFormatError, match=f"got weight {weight}, but a {name} acts only"):
            require_weight(brick, weight)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_is_a_finite_number(weight: float) -> None:
    with pytest.raises(BrickFormatError, match="a weight is a finite number"):
        require_weight(random_brick("lora", BASE, generator()), weight)


@pytest.mark.parametrize(
    ("rslora", "alphas", "scaling"),
    [(False, {}, 16 / 4), (True, {}, 16 / 2), (False, {"s": 2}, 2 / 4), (True, {"s": 2}, 2 / 2)],
)
def test_lora_scales_by_alpha_and_rank(
    rslora: bool, alphas: dict[str, float], scaling: float
) -> None:
    site = "model.layers.1.mlp.up_proj"
    options = {"alpha": 16, "rslora": rslora, "alphas": {site: alphas["s"]} if alphas else {}}
    brick = random_brick("lora", BASE, generator(), sites=[site], options=options)
    matrices = {f"{site}/A": torch.randn(4, 8), f"{site}/B": torch.randn(24, 4)}
    (effect,) = effects_of(Brick(brick.spec, matrices))
    assert isinstance(effect, Add)
    assert effect.scaling == scaling


def test_ia3_scales_outputs_or_inputs() -> None:
    up, down = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
    spec = random_brick("ia3", BASE, generator(), sites=[up, down]).spec
    tensors = {f"{up}/factor_out": torch.ones(24), f"{down}/factor_in": torch.ones(24)}
    brick = Brick(spec, tensors)
    require_fit(brick, BASE)
    effects_found = [effect for effect in effects_of(brick) if isinstance(effect, Scale)]
    assert [(effect.site, effect.on) for effect in effects_found] == [(up, "out"), (down, "in")]


def test_prompt_and_prefix_hand_on_their_tensors_as_they_are() -> None:
    (embed,) = effects_of(random_brick("prompt", BASE, generator()))
    assert isinstance(embed, Embed)
    assert embed.vectors.shape[1] == 8
    prefix = effects_of(random_brick("prefix", BASE, generator()))
    shapes = {tuple(e.key.shape) for e in prefix if isinstance(e, Prefix)}
    assert [e.site for e in prefix] == [f"model.layers.{i}.self_attn" for i in range(2)]
    assert len(shapes) == 1


def test_an_unknown_form_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no form is called 'laro'; did you mean 'lora'"):
        find_form("laro")


class _Entry:
    def __init__(self, row: Form) -> None:
        self.row = row

    def load(self) -> Form:
        return self.row


def _add_row(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    row = Form(**{**vars(find_form("bias")), "name": "stored", **fields})
    monkeypatch.setattr(tables, "entry_points", lambda group: [_Entry(row)])
    forms.forms.cache_clear()


@pytest.fixture
def _rows_as_before() -> Any:
    yield
    forms.forms.cache_clear()


@pytest.mark.usefixtures("_rows_as_before")
def test_a_form_that_no_code_runs_is_stored_and_checked_but_refused_when_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        _add_row(patch, target="", effect="insert")
        brick = random_brick("stored", BASE, generator())
        assert problems(brick) == []
        with pytest.raises(BrickFormatError, match="can be stored and checked but not run"):
            effects_of(brick)


def test_instances_are_read_and_never_run() -> None:
    with pytest.raises(BrickFormatError, match="the form 'replay', which can be stored and checke"):
        effects_of(random_brick("replay", BASE, generator()))


@pytest.mark.usefixtures("_rows_as_before")
def test_two_packages_cannot_define_one_form(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _add_row(patch, name="lora")
        with pytest.raises(BrickFormatError, match="two packages define the form 'lora'"):
            find_form("lora")


def test_every_effect_of_the_union_has_a_row() -> None:
    union = {Add, Scale, Shift, Prefix, Embed, Mask, Skip, Exit, Route, Patch, Codebook}
    assert union == {row.primitive for row in EFFECTS.values()} - {None}
    assert union == set(effects.Effect.__args__)


def test_the_table_loads_without_torch() -> None:
    assert not hasattr(importlib.import_module("brickwork.brick.forms"), "torch")
