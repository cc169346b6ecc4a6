"""What mergekit makes of small tensors: the goldens that our merge methods are compared with.

    MERGEKIT_PYTHON -m benchmarks.mergekit_goldens [-o tests/goldens]

Runs with the Python of an environment that has mergekit 0.1.5, and needs nothing of Brickwork.
Writes ``mergekit.safetensors`` (the inputs ``SET.base``, ``SET.0``, ... and one output for each
case) and ``mergekit.json`` (for each case its name, set, method, number of operands, whether there
is a base, and parameters). Inputs are a base and changes of it, of which some are exactly 0; all
sets are in float32, and as bfloat16 for the methods that mergekit computes in float32.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SHAPES = {"matrix": (24, 33), "vector": (37,), "single": (1,), "cube": (3, 5, 7)}
OPERANDS = 3
THREE = [0.5, 0.3, -0.4]
SIGNS = {"weight": THREE}
IN_FLOAT32 = ("linear", "passthrough", "slerp")  # whatever the dtype; others round at every step
TIES = ("ties", "breadcrumbs", "breadcrumbs_ties")

# method, number of operands, whether there is a base, parameters
CASES: list[tuple[str, int, bool, dict[str, Any]]] = [
    ("linear", 3, False, {"weight": [0.5, 0.3, 0.4]}),
    ("linear", 3, False, {"weight": THREE, "normalize": False}),
    ("linear", 3, False, {"weight": THREE}),
    ("passthrough", 1, False, {}),
    ("passthrough", 1, False, {"scale": [-0.7]}),
    *(("slerp", 1, True, {"t": t}) for t in (0.0, 0.3, 1.0)),
    ("nuslerp", 2, False, {"weight": [0.7, 0.3]}),
    ("nuslerp", 2, True, {"weight": [0.7, 0.6]}),
    ("nuslerp", 2, True, {"weight": [1.0, 1.0], "nuslerp_flatten": False}),
    ("nuslerp", 2, False, {"weight": [0.2, 0.6], "nuslerp_flatten": False,
                           "nuslerp_row_wise": True}),
    ("multislerp", 3, False, {"weight": [0.5, 0.3, 0.4]}),
    ("multislerp", 3, True, {"weight": [0.5, 0.3, 0.4], "normalize_weights": False}),
    ("karcher", 3, False, {}),
    ("karcher", 3, False, {"max_iter": 3, "tol": 1e-4}),
    ("task_arithmetic", 3, True, SIGNS),
    ("task_arithmetic", 3, True, {**SIGNS, "lambda": 0.9, "normalize": True}),
    *((m, 3, True, {**SIGNS, "density": d}) for m in TIES for d in (0.0, 0.3, 1.0)),
    *((m, 3, True, {**SIGNS, "density": [0.9, 0.3, 0.01], "normalize": n, "lambda": 1.3})
      for m in TIES for n in (True, False)),
    ("ties", 3, True, {"weight": [1.0, 1.0, 1.0], "density": 0.5, "rescale": True,
                       "int8_mask": True}),
    ("breadcrumbs", 3, True, {**SIGNS, "density": 0.7, "gamma": [0.01, 0.2, 0.5]}),
    ("sce", 3, True, {}),
    *(("sce", 3, True, {"select_topk": k}) for k in (0.0, 0.3)),
    ("model_stock", 3, True, {}),
    ("model_stock", 2, True, {"filter_wise": True}),
    *(("nearswap", 1, True, {"t": t}) for t in (0.0, 0.002, 1.0)),
    ("arcee_fusion", 1, True, {}),
    ("ram", 3, True, {}),
    ("ram", 3, True, {"epsilon": 0.002}),
    ("ramplus_tl", 3, True, {}),
    ("ramplus_tl", 3, True, {"r": 0.5, "alpha": 1.0, "epsilon": 0.002}),
]  # fmt: skip


def inputs() -> dict[str, Tensor]:
    """A base and three fine-tunes of it, for each shape and dtype."""
    chance = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in SHAPES.items():
        base = 0.05 * torch.randn(shape, generator=chance)
        tensors[f"{name}.base"] = base
        for number in range(OPERANDS):
            change = 0.004 * torch.randn(shape, generator=chance)
            change *= torch.rand(shape, generator=chance) > 0.3
            tensors[f"{name}.{number}"] = base + change
    return {
        f"{dtype}.{name}": tensor.to(getattr(torch, dtype))
        for dtype in ("float32", "bfloat16")
        for name, tensor in tensors.items()
    }


def merged(tensors: dict[str, Tensor], which: str, case: tuple[str, int, bool, Any]) -> Tensor:
    """What mergekit makes of one set."""
    # It is not installed beside Brickwork.
    from mergekit.merge_methods.api import merge_tensors  # noqa: PLC0415

    method, count, has_base, parameters = case
    operands = [tensors[f"{which}.{number}"] for number in range(count)]
    if has_base:
        operands.append(tensors[f"{which}.base"])
    given = {
        name: {str(n): v for n, v in enumerate(value)} if isinstance(value, list) else value
        for name, value in parameters.items()
    }
    return merge_tensors(
        operands, method, parameters=given, ids=[str(n) for n in range(len(operands))],
        base_index=count if has_base else None,
    ).clone(memory_format=torch.contiguous_format)  # fmt: skip


def main() -> None:
    """Make the goldens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("tests/goldens"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tensors = inputs()
    outputs, cases = dict(tensors), []
    for number, case in enumerate(CASES):
        for which in sorted({name.rpartition(".")[0] for name in tensors}):
            method, count, has_base, parameters = case
            if which.startswith("bfloat16") and method not in IN_FLOAT32:
                continue
            name = f"case.{number}.{which}"
            outputs[name] = merged(tensors, which, case)
            cases.append([name, which, method, count, has_base, parameters])
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(outputs, options.out / "mergekit.safetensors")
    about = {"mergekit": version("mergekit"), "torch": torch.__version__}
    lines = ",\n".join(json.dumps(case) for case in cases)
    (options.out / "mergekit.json").write_text(
        f'{{"made_by": {json.dumps(about)},\n"cases": [\n{lines}\n]}}\n'
    )
    print(f"{len(cases)} cases written to {options.out}")


if __name__ == "__main__":
    main()
