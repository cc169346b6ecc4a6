"""The weighted sum of two LoRAs: PEFT's ways and ours, against the sum itself.

    python -m benchmarks.lora_sum [--json FILE] [--size 4096] [--ranks 8 16] [--rounds 5]

Two random LoRAs on one linear map, weights 0.5 and 0.5. The error is the length of the difference
to the true weighted sum over the length of that sum, in float64. The best that any update of a rank
can do comes from the singular values of the whole matrix. Times are process CPU seconds of one map
on one thread, the methods interleaved, the minimum over the rounds; only ratios of one run mean
anything. PEFT's `linear` needs equal ranks, so both have 8 there.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from brickwork.combine.products import Recipe, merge_products
from brickwork.measure.lowrank import Product

WEIGHTS = [0.5, 0.5]


class OneMap(nn.Module):
    """A model of one linear map, for PEFT."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.map = nn.Linear(size, size, bias=False)


def random_products(size: int, ranks: Sequence[int]) -> list[Product]:
    chance = torch.Generator().manual_seed(0)
    return [
        Product(
            torch.randn(rank, size, generator=chance) / size**0.5,
            torch.randn(size, rank, generator=chance) * 0.02,
            2.0,
        )
        for rank in ranks
    ]


def peft_model(products: Sequence[Product], size: int) -> Any:
    """The products as PEFT adapters ``0`` and ``1``."""
    configs = [
        LoraConfig(r=p.rank, lora_alpha=2 * p.rank, target_modules=["map"]) for p in products
    ]
    model = get_peft_model(OneMap(size), configs[0], adapter_name="0")  # type: ignore[arg-type]
    model.add_adapter("1", configs[1])
    layer: Any = model.get_submodule("base_model.model.map")
    with torch.no_grad():
        for name, product in enumerate(products):
            layer.lora_A[str(name)].weight.copy_(product.A)
            layer.lora_B[str(name)].weight.copy_(product.B)
    return model


def peft_sum(model: PeftModel, method: str, rank: int | None) -> Tensor:
    """The update of PEFT's combined adapter."""
    more = {"svd_rank": rank} if method == "svd" else {}
    layer: Any = model.get_submodule("base_model.model.map")
    if "sum" in layer.lora_A:
        model.delete_adapter("sum")
    model.add_weighted_adapter(["0", "1"], WEIGHTS, "sum", combination_type=method, **more)
    scaling = layer.scaling["sum"]
    A, B = layer.lora_A["sum"].weight, layer.lora_B["sum"].weight
    return scaling * (B.detach().double() @ A.detach().double())


def our_sum(products: Sequence[Product], rank: int | None) -> Product:
    parameters = {"weight": WEIGHTS, "normalize": False}
    recipe = Recipe("linear", lambda site: parameters, ["0", "1"], rank)
    found = merge_products(products, recipe, "map").product
    return Product(found.A.float(), found.B.float())


def true_sum(products: Sequence[Product]) -> Tensor:
    parts = [
        w * p.scaling * (p.B.double() @ p.A.double())
        for w, p in zip(WEIGHTS, products, strict=True)
    ]
    return parts[0] + parts[1]


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def whole(product: Product) -> Tensor:
    return product.B.double() @ product.A.double()


def fastest(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, act in work.items():
            started = time.process_time()
            act()
            seconds[name].append(time.process_time() - started)
    return {name: min(times) for name, times in seconds.items()}


def measure(
    size: int, ranks: Sequence[int], rank: int, rounds: int, peft_rounds: int
) -> dict[str, Any]:
    """Errors and times on one shape."""
    equal, products = random_products(size, [8, 8]), random_products(size, ranks)
    model = peft_model(equal, size)
    errors = {
        f"peft {method}, ranks 8 and 8": error(peft_sum(model, method, None), true_sum(equal))
        for method in ("linear", "cat")
    }
    wanted, unequal = true_sum(products), peft_model(products, size)
    errors["ours, exact"] = error(whole(our_sum(products, None)), wanted)
    errors[f"ours, rank {rank}"] = error(whole(our_sum(products, rank)), wanted)
    errors[f"peft svd, rank {rank}"] = error(peft_sum(unequal, "svd", rank), wanted)
    sizes = torch.linalg.svdvals(wanted)
    errors[f"best of rank {rank}, full SVD"] = (sizes[rank:].norm() / sizes.norm()).item()
    seconds = fastest(
        {"ours, exact": lambda: our_sum(products, None), "ours": lambda: our_sum(products, rank)},
        rounds,
    )
    seconds |= fastest({"peft svd": lambda: peft_sum(unequal, "svd", rank)}, peft_rounds)
    return {
        "size": size, "ranks": list(ranks), "rank": rank, "errors": errors, "seconds": seconds,
        "peft_svd_over_ours": seconds["peft svd"] / seconds["ours"],
    }  # fmt: skip


def main() -> None:
    """Measure, print errors and ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--ranks", type=int, nargs=2, default=[8, 16])
    parser.add_argument("--rank", type=int, default=8, help="of the shortened sum")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peft-rounds", type=int, default=1, help="PEFT's SVD is slow")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result = measure(options.size, options.ranks, options.rank, options.rounds, options.peft_rounds)
    for name, value in result["errors"].items():
        print(f"{name:34s} relative error {value:.3g}")
    for name, value in result["seconds"].items():
        print(f"{name:34s} {value:.4f} s of CPU time")
    print(f"PEFT's svd takes {result['peft_svd_over_ours']:.0f} x our time")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
