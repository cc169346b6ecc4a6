"""Parameters of every tensor, as mergekit 0.1.5 resolves them for the same recipes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from brickwork.combine.methods import find_method
from brickwork.combine.plan import MergePlan, TensorPlan
from tests.mergers import plan_letters, save_tiny

GOLDEN = Path(__file__).parent / "goldens" / "mergekit_parameters.json"
CASES = json.loads(GOLDEN.read_text())["cases"]
# Mixtures as they are in memory, tied heads, and buffers: mergekit plans more than files hold.
NOT_STORED = re.compile(r"\.experts\.|mlp\.gate\.|^lm_head|attention\.(masked_)?bias$|rotary_emb")
LAYERS = {"llama": 5, "llama1": 1, "gpt2": 4}


def planned(case: dict[str, Any], folder: Path) -> MergePlan:
    family = case["family"]
    for letter in ("A", "B", "BASE"):
        save_tiny(folder / letter, family.rstrip("1"), LAYERS.get(family))
    return plan_letters(folder, case["recipe"])


def of(tensor: TensorPlan, method: str) -> tuple[dict[str, Any], list[Any]]:
    """The shared values, and for each operand its model, its tensor and its own values."""
    row = find_method(method)
    values = dict(tensor.parameters)
    if tensor.method == "copy":  # a factor of 1, which mergekit calls None
        values = {p.name: (None,) for p in row.parameters}
    shared = {p.name: values[p.name] for p in row.parameters if p.scope == "shared"}
    names = [p.name for p in row.parameters if p.scope == "operand"]
    own = [
        [operand.ref.model, operand.tensor, {name: values[name][n] for name in names}]
        for n, operand in enumerate(tensor.operands)
    ]
    if tensor.base is not None:
        own.append([tensor.base.ref.model, tensor.base.tensor, {}])
    return shared, own


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['family']}: {case['about']}")
def test_every_tensor_gets_the_values_that_mergekit_gives_it(
    case: dict[str, Any], tmp_path: Path
) -> None:
    tensors = {tensor.name: tensor for tensor in planned(case, tmp_path).tensors}
    compared = 0
    for group in case["expected"]:
        for name, inputs in group["tensors"].items():
            if name not in tensors:
                assert NOT_STORED.search(name)
                continue
            shared, own = of(tensors[name], case["recipe"]["merge_method"])
            sources = inputs or [name] * len(group["own"])
            expected = [[m, t, v] for (m, v), t in zip(group["own"], sources, strict=True)]
            assert shared == group["shared"]
            if tensors[name].base is not None:  # it comes last in ours
                expected.sort(key=lambda one: one[0] == "BASE")
            assert own == expected
            compared += 1
    assert compared > 10
