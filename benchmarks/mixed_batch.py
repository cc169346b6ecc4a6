"""A batch of 16 rows with 16 different LoRA bricks, against the bare base, PEFT and one pass each.

    python -m benchmarks.mixed_batch [--peft] [--json FILE]

A random Llama (hidden 512, 8 layers, 31.5M parameters, float32), rank 8 on all seven linear maps,
prompts of 64 tokens, 32 new ones, greedy. One thread, process CPU time, modes interleaved, the
minimum over the rounds; only the ratios of one run mean anything. Loading reads 64 brick folders
from disk, checks them against the base and puts them into the bank; for PEFT it reads the same
folders by ``load_adapter``.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.engine import Adapter, Engine, brick_of
from brickwork.brick.check import require_fit
from brickwork.brick.folder import read_brick, write_brick
from brickwork.model.load import wrap_model
from brickwork.runtime.configured import ConfiguredModel

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROWS, PROMPT, NEW, RANK = 16, 64, 32, 8


def new_base() -> LlamaForCausalLM:
    """The random base; equal seeds, equal weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=8192, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def random_adapters(base: LlamaForCausalLM, count: int) -> list[Adapter]:
    """Random LoRAs of one rank on all targets."""
    chance = torch.Generator().manual_seed(1)
    linear = {n: m for n, m in base.named_modules() if n.split(".")[-1] in TARGETS}
    return [
        {
            name: (
                torch.randn(RANK, m.in_features, generator=chance) / m.in_features**0.5,
                torch.randn(m.out_features, RANK, generator=chance) * 0.02,
                2.0,
            )
            for name, m in linear.items()
        }
        for _ in range(count)
    ]


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Process CPU time of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def loading(base: LlamaForCausalLM, adapters: Sequence[Adapter], root: Path) -> float:
    """CPU seconds to read, check and load all adapters from brick folders under ``root``."""
    loaded = wrap_model(base)
    for i, adapter in enumerate(adapters):
        write_brick(brick_of(adapter, loaded, f"adapter-{i}"), root / f"adapter-{i}")
    bank = ConfiguredModel(loaded).bank

    def load_all() -> None:
        for i in range(len(adapters)):
            brick = read_brick(root / f"adapter-{i}")
            require_fit(brick, loaded.base)
            bank.load(brick)

    return cpu_seconds(load_all)


def peft_modes(
    root: Path, count: int, batch: dict[str, Any], idx: Sequence[int]
) -> tuple[Callable[[], Any], float]:
    """PEFT's mixed batch on the same folders, and the CPU seconds that loading them took."""
    base = new_base()
    started = time.process_time()
    model = PeftModel.from_pretrained(base, str(root / "adapter-0"), adapter_name="adapter-0")
    for i in range(1, count):
        model.load_adapter(str(root / f"adapter-{i}"), adapter_name=f"adapter-{i}")
    seconds = time.process_time() - started
    model.eval()
    names = [f"adapter-{i}" for i in idx]
    return lambda: model.generate(**batch, adapter_names=names), seconds


def measure(count: int, rounds: int, with_peft: bool) -> dict[str, Any]:
    """All modes on one machine in one run."""
    base, plain = new_base(), new_base()
    adapters = random_adapters(base, count)
    ids = torch.randint(3, 8192, (ROWS, PROMPT), generator=torch.Generator().manual_seed(3))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": NEW,
             "min_new_tokens": NEW, "do_sample": False}  # fmt: skip
    idx = [i * count // ROWS for i in range(ROWS)]

    def mixed() -> Any:
        with engine.mixed(ids, idx):
            return engine.generate(**batch)

    def one_by_one() -> None:
        for row, i in enumerate(idx):
            alone = {**batch, "input_ids": ids[row : row + 1],
                     "attention_mask": batch["attention_mask"][row : row + 1]}  # fmt: skip
            with engine.single(i):
                engine.generate(**alone)

    modes: dict[str, Callable[[], Any]] = {
        "base": lambda: plain.generate(**batch), "mixed": mixed, "one by one": one_by_one
    }  # fmt: skip
    result: dict[str, Any] = {"bricks": count, "rows": ROWS, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        result["load_seconds"] = loading(new_base(), adapters, Path(folder))
        engine = Engine(base, count, RANK, TARGETS, adapters)
        if with_peft:
            modes["peft"], result["peft_load_seconds"] = peft_modes(Path(folder), count, batch, idx)
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(rounds):
        for name, work in modes.items():
            seconds[name].append(cpu_seconds(work))
    result["seconds"] = {name: min(times) for name, times in seconds.items()}
    result["times_base"] = {n: s / result["seconds"]["base"] for n, s in result["seconds"].items()}
    return result


def main() -> None:
    """Measure, print the ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bricks", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peft", action="store_true", help="measure PEFT, too (slow to load)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.bricks, options.rounds, options.peft)
    for name, ratio in result["times_base"].items():
        print(f"{name:12s} {result['seconds'][name]:7.2f} s  {ratio:5.2f} x the bare base")
    print(f"loading {options.bricks} bricks: {result['load_seconds']:.2f} s of CPU time", end="")
    print(f"; PEFT: {result['peft_load_seconds']:.2f} s" if options.peft else "")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
