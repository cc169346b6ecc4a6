"""Families of stitched models: tuned, measured, kept in a folder, and drawn."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from brickwork.brick.files import read_tensors, tensor_bytes
from brickwork.combine.stitch_family import (
    describe,
    measure_family,
    open_stitched,
    read_stitching,
    write_stitched,
)
from brickwork.combine.stitch_results import STITCH_FILE, TENSORS_FILE, Stitching
from brickwork.combine.stitch_tune import TuneRecipe, tune_stitches
from brickwork.combine.stitching import Point, StitchedFamily, fit_stitches
from brickwork.errors import (
    BrickFormatError,
    ConfigurationError,
    DataError,
    MergeError,
    ModelError,
)
from brickwork.measure.perplexity import response_losses
from brickwork.report.stitching import read_stitching_report, write_stitching_report
from tests.stitching import narrow, random_sequences, wide

POINTS = [Point(1, 1), Point(1, 2)]
EVALUATION = {"a": random_sequences(4, 5), "b": random_sequences(4, 6)}


@pytest.fixture(scope="module")
def family() -> StitchedFamily:
    front, back = narrow("llama"), wide("gpt2")
    return StitchedFamily(front, back, fit_stitches(front, back, random_sequences(40), POINTS))


def described(family: StitchedFamily) -> Stitching:
    about = {
        "data": "random", "fitted_on": 40, "fitted_tokens": 500, "ridge": 1e-6, "tune_steps": 0,
        "measured_on": {name: len(own) for name, own in EVALUATION.items()}, "seed": 0,
    }  # fmt: skip
    return describe(family, measure_family(family, EVALUATION), about)


@pytest.fixture(scope="module")
def kept(family: StitchedFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stitched") / "family"
    write_stitched(family, described(family), folder)
    return folder


def test_members_are_measured_as_any_model_is(family: StitchedFamily) -> None:
    members = measure_family(family, EVALUATION)
    assert [m.name for m in members] == ["front", "1:1", "1:2", "back"]
    models = [family.front.model, *(family.model(p) for p in POINTS), family.back.model]
    for member, model in zip(members, models, strict=True):
        sequences = [s for own in EVALUATION.values() for s in own]
        labels = [name for name, own in EVALUATION.items() for _ in own]
        # Other batches, so other orders of the same sums.
        assert member.losses == pytest.approx(response_losses(model, sequences, labels), abs=1e-4)
    flops = [m.flops for m in members]
    assert flops[1] > flops[2]  # of the wider model one block more


def test_tuning_lowers_the_loss_it_is_for_and_touches_no_model(family: StitchedFamily) -> None:
    data = random_sequences(6, seed=9)
    models = (family.front.model, family.back.model)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    maps = [stitch.weight.clone() for stitch in family.stitches]
    told: list[int] = []
    recipe = TuneRecipe(steps=40, rate=2e-2, seed=3)
    tuned = tune_stitches(family, data, recipe, report=lambda step, *_: told.append(step))
    assert told == list(range(1, 41))
    old, new = (measure_family(f, {"a": data}) for f in (family, tuned))
    assert all(b.loss < a.loss for a, b in zip(old[1:-1], new[1:-1], strict=True))
    assert [m.losses for m in (old[0], old[-1])] == [m.losses for m in (new[0], new[-1])]
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
        assert all(p.grad is None for p in model.parameters())
    for stitch, weight in zip(family.stitches, maps, strict=True):
        assert torch.equal(stitch.weight, weight)


def test_equal_seeds_tune_to_equal_bits(family: StitchedFamily) -> None:
    data = random_sequences(6, seed=9)
    first, again, other = (
        tune_stitches(family, data, TuneRecipe(steps=3, seed=seed)) for seed in (1, 1, 2)
    )
    for one, two in zip(first.stitches, again.stitches, strict=True):
        assert torch.equal(one.weight, two.weight)
        assert torch.equal(one.bias, two.bias)
    assert not all(
        torch.equal(one.weight, two.weight)
        for one, two in zip(first.stitches, other.stitches, strict=True)
    )


def test_what_was_measured_before_tuning_is_kept_beside(family: StitchedFamily) -> None:
    before = measure_family(family, EVALUATION)
    tuned = tune_stitches(family, random_sequences(6), TuneRecipe(steps=2))
    after = measure_family(tuned, EVALUATION, untuned=before)
    assert [m.untuned for m in after[1:-1]] == [m.losses for m in before[1:-1]]
    assert [after[0], after[-1]] == [before[0], before[-1]]


def test_a_folder_holds_the_family_and_none_of_the_models(
    kept: Path, family: StitchedFamily
) -> None:
    assert sorted(file.name for file in kept.iterdir()) == [STITCH_FILE, TENSORS_FILE]
    again = open_stitched(kept, family.front, family.back)
    for one, two in zip(family.stitches, again.stitches, strict=True):
        assert one.point == two.point
        assert torch.equal(one.weight, two.weight)
        assert torch.equal(one.bias, two.bias)
    assert read_stitching(kept) == described(family)
    with pytest.raises(ModelError, match="there already"):
        write_stitched(family, described(family), kept)


def test_refuses_other_models_than_it_was_made_with(kept: Path, family: StitchedFamily) -> None:
    with pytest.raises(MergeError, match=r"as the front, it was made for the architecture 'llama'"):
        open_stitched(kept, family.back, family.front)
    with pytest.raises(MergeError, match=r"as the front, the base's weights differ"):
        open_stitched(kept, narrow("llama", seed=4), family.back)


def _without(name: str) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda _, tensors: tensors.pop(name)


DAMAGE: list[tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = [
    (lambda d, _: d.update(format=2), "format is 2"),
    (lambda d, _: d.update(colour="red"), "colour"),
    (lambda d, _: d.pop("ridge"), "ridge"),
    (lambda d, _: d["members"].pop(0), "0 are the front"),
    (lambda d, _: d["members"][1].update(front=7), "7:1 cannot be"),
    (lambda d, _: d["members"][1]["losses"].pop("a"), "members.1.losses"),
    (_without("1:1.bias"), "1:1.bias is not there"),
    (lambda _, t: t.update({"2:2.bias": torch.zeros(48)}), "2:2.bias is not of a stitch"),
    (lambda _, t: t.update({"1:1.bias": torch.zeros(47)}), r"\[47\], not float32 \[48\]"),
    (lambda _, t: t["1:2.weight"].fill_(torch.nan), "1:2.weight holds NaN"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_refuses_a_folder_that_is_not_sound(
    kept: Path,
    family: StitchedFamily,
    tmp_path: Path,
    damage: Callable[[dict[str, Any], dict[str, Any]], object],
    words: str,
) -> None:
    document = json.loads((kept / STITCH_FILE).read_text())
    tensors = read_tensors(kept, TENSORS_FILE)
    damage(document, tensors)
    (tmp_path / STITCH_FILE).write_text(json.dumps(document))
    (tmp_path / TENSORS_FILE).write_bytes(tensor_bytes(tensors))
    with pytest.raises(MergeError, match=words):
        open_stitched(tmp_path, family.front, family.back)


def test_refuses_a_folder_without_its_files(
    kept: Path, family: StitchedFamily, tmp_path: Path
) -> None:
    with pytest.raises(BrickFormatError, match=r"has no file 'stitch\.json'"):
        open_stitched(tmp_path, family.front, family.back)
    shutil.copy(kept / STITCH_FILE, tmp_path)
    with pytest.raises(BrickFormatError, match=r"has no file 'stitches\.safetensors'"):
        open_stitched(tmp_path, family.front, family.back)


def test_refuses_to_tune_on_nothing_or_not_at_all(family: StitchedFamily) -> None:
    with pytest.raises(DataError, match="tuned on no instance"):
        tune_stitches(family, [], TuneRecipe())
    with pytest.raises(ConfigurationError, match="in 0 steps"):
        tune_stitches(family, random_sequences(3), TuneRecipe(steps=0))


def test_the_page_says_who_is_under_the_line_between_the_two(kept: Path, tmp_path: Path) -> None:
    plain = read_stitching_report(kept)
    front, one, two, back = plain.members
    ends = [m.model_copy(update={"losses": {"a": loss, "b": loss}, "flops": flops})
            for m, loss, flops in ((front, 4.0, 100), (back, 2.0, 300))]  # fmt: skip
    middle = [
        m.model_copy(update={"losses": {"a": loss, "b": loss + 1}, "flops": 200, "explained": 0.5})
        for m, loss in ((one, 2.0), (two, 3.0))
    ]
    members = (ends[0], *middle, ends[1])
    stitching = plain.model_copy(update={"members": members})
    assert stitching.mixed_loss(200) == pytest.approx(3.0)
    files = write_stitching_report(stitching, tmp_path)
    page = next(file for file in files if file.suffix == ".html").read_text()
    assert "1 member of 2 lose less" in page
    assert "1:1 -0.50; 1:2 +0.50" in page
    assert {file.name for file in files if file.suffix == ".svg"} == {"curve.svg", "explained.svg"}
    with pytest.raises(DataError, match="0 are the back"):
        write_stitching_report(plain.model_copy(update={"members": members[:-1]}), tmp_path)
