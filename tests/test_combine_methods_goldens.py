"""Merge methods against what mergekit 0.1.5 made of the same tensors.

The goldens come from ``benchmarks/mergekit_goldens.py``.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from brickwork.combine.methods import merge_tensors, methods

GOLDENS = Path(__file__).parent / "goldens"
CASES = json.loads((GOLDENS / "mergekit.json").read_text("utf-8"))["cases"]
TENSORS = load_file(GOLDENS / "mergekit.safetensors")
EQUAL = {
    "linear", "passthrough", "task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties",
    "nearswap", "arcee_fusion",
}  # fmt: skip
# The goldens were made with fused multiply-adds; a processor without them rounds once more, and so
# would mergekit on it. Then a value at a threshold may go the other way, too.
FUSED = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
# Values are about 0.05, so that one float32 rounding of them is 2e-9 to 4e-9. mergekit sums
# lengths and angles in float32, we in float64; at single values of 0.2 a rounding is 1.5e-8.
BOUNDS = {
    "slerp": 2e-8, "nuslerp": 2e-8, "karcher": 2e-8, "sce": 1e-8, "ram": 1e-8, "ramplus_tl": 1e-8,
    "multislerp": 4e-8,  # mergekit adds the rounding of its tangent step
    "model_stock": 2e-7,  # near the formula's pole, where a rounding of the cosine grows
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({case[2] for case in CASES}))
def test_a_method_gives_what_mergekit_gives(name: str) -> None:
    for case in CASES:
        if case[2] == name:
            merged, golden = merged_and_golden(case)
            if name in EQUAL and FUSED:
                assert torch.equal(merged, golden), case
            elif name in EQUAL and merged.dtype == torch.float32:
                assert ((merged - golden).abs() > 5e-8).float().mean() < 0.02, case
            elif merged.dtype == torch.bfloat16:  # at most one unit in the last place
                steps = merged.view(torch.int16).int() - golden.view(torch.int16).int()
                assert steps.abs().max() <= 1, case
            else:
                assert (merged - golden).abs().max() <= BOUNDS[name], case


def test_every_method_of_mergekit_that_is_not_random_has_a_golden() -> None:
    ours = {row.name for row in methods().values() if not row.random and not row.statistics}
    assert {case[2] for case in CASES} == ours == EQUAL | set(BOUNDS)


def merged_and_golden(case: list[Any]) -> tuple[Tensor, Tensor]:
    golden, which, method, count, has_base, parameters = case
    operands = [TENSORS[f"{which}.{number}"] for number in range(count)]
    base = TENSORS[f"{which}.base"] if has_base else None
    return merge_tensors(method, operands, base=base, **parameters), TENSORS[golden]
