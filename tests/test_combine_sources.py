"""Statistics as operands of a merge, for weights in both orientations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from brickwork.brick.base import Fingerprint
from brickwork.brick.files import json_bytes
from brickwork.combine.engine import write_merge
from brickwork.combine.methods import merge_tensors
from brickwork.combine.plan import MergePlan, ModelRef, Operand, TensorPlan
from brickwork.errors import MergeError
from brickwork.measure.merge_statistics import ABOUT, TENSORS, StatisticsSpec
from brickwork.measure.merge_sums import file_hash
from tests.combine import write_model

WEIGHTS = {"regmean": {"weight": (0.4, 0.6), "alpha": 0.9}, "fisher": {"weight": (0.4, 0.6)}}


def write_statistics(folder: Path, kind: Any, tensors: dict[str, Tensor], turned: bool) -> None:
    folder.mkdir()
    save_file(tensors, folder / TENSORS)
    base = Fingerprint(architecture="llama", shapes="", weights="")
    spec = StatisticsSpec(
        kind=kind, base=base, prefix="", transposed=("map",) * turned, labels="", data="",
        data_sha256="",
        instances=1, tokens=1, seed=0, same={}, sha256=file_hash(folder / TENSORS),
        brickwork="0",
    )  # fmt: skip
    (folder / ABOUT).write_bytes(json_bytes(ABOUT, spec.model_dump(mode="json")))


def weighed_plan(place: Path, method: str, *, turned: bool, kind: str) -> MergePlan:
    """Two models of one linear map and one vector, with statistics of the map."""
    chance = torch.Generator().manual_seed(0)
    refs, operands = [], []
    for number in range(2):
        tensors = {"map": torch.randn(6, 4, generator=chance), "v": torch.ones(3) * number}
        ref = write_model(place / f"m{number}", tensors)
        inputs = torch.randn(50, 6 if turned else 4, generator=chance)
        found = inputs.T @ inputs if kind == "gram" else torch.rand(6, 4, generator=chance)
        write_statistics(place / f"s{number}", kind, {"map": found}, turned)
        refs.append(ref)
        operands.append((ref, f"m{number}", place / f"s{number}"))
    tensors = [
        TensorPlan(
            name, shape, torch.float32, method,
            tuple(Operand(ref, name, key, folder) for ref, key, folder in operands),
            parameters=WEIGHTS[method],
        )
        for name, shape in (("map", (6, 4)), ("v", (3,)))
    ]  # fmt: skip
    folders: dict[ModelRef, Path] = {ref: Path(ref.model) for ref in refs}
    return MergePlan(tensors, folders, {"model_type": "llama"}, refs[0])


@pytest.mark.parametrize(
    ("method", "kind", "turned"),
    [("fisher", "fisher", False), ("regmean", "gram", False), ("regmean", "gram", True)],
)
def test_statistics_reach_the_method_that_weighs_by_them(
    tmp_path: Path, method: str, kind: str, turned: bool
) -> None:
    write_merge(weighed_plan(tmp_path, method, turned=turned, kind=kind), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    models = [load_file(tmp_path / f"m{n}/model.safetensors")["map"] for n in range(2)]
    weights = [load_file(tmp_path / f"s{n}" / TENSORS)["map"] for n in range(2)]
    turn = (lambda t: t.T) if turned else (lambda t: t)
    exact = merge_tensors(
        method, [turn(m) for m in models], statistics=weights, **WEIGHTS[method]
    )  # fmt: skip
    assert torch.equal(found["map"], turn(exact))
    # The vector has no statistics: it is the plain average.
    assert torch.allclose(found["v"], torch.full((3,), 0.6), atol=1e-6)  # float32


def test_statistics_of_another_kind_are_refused(tmp_path: Path) -> None:
    plan = weighed_plan(tmp_path, "regmean", turned=False, kind="fisher")
    with pytest.raises(MergeError, match="by statistics of the kind 'gram'"):
        write_merge(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
