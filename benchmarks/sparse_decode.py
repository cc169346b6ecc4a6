"""Tokens a second of a whole model whose FFNs read a quarter of their neurons.

    python -m benchmarks.sparse_decode [--json FILE]

A Llama of 1.2 billion random weights in bfloat16 (hidden 2048, FFN 8192, 16 layers, vocabulary
32000) decodes greedily with a cache, one sequence. The FFN modules' forward is shadowed; which
neurons are chosen is drawn beforehand, so that no router's cost is in it. A token's choice is whole
groups of 128 neighbours or single neurons, new for each token and layer; a prompt's choice stays
for the sequence, and is also gathered once into small dense matrices. The ways are interleaved and
the best round counts. The bound is the bytes of all weights that a token needs over the rate at
which C's ``memchr`` looks through long memory in vain, in the same run.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.sparse_ffn import GROUP, READ_BYTES, Stream
from brickwork.runtime.kernels import Records
from brickwork.runtime.sparse_ffn import available, packed, sparse_ffn

PROMPT_TOKENS = 32
# neighbours chosen together, whether for the whole prompt, whether gathered
WAYS: dict[str, tuple[int, bool, bool]] = {
    "token, groups": (GROUP, False, False),
    "token, neurons": (1, False, False),
    "prompt, neurons": (1, True, False),
    "prompt, gathered": (1, True, True),
}
Forward = Callable[[Tensor], Tensor]


def new_model(options: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=options.hidden, intermediate_size=options.neurons,
        num_hidden_layers=options.layers, num_attention_heads=options.hidden // 128,
        num_key_value_heads=options.hidden // 256, vocab_size=32000, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.device("meta"):
        empty = LlamaForCausalLM(config).to(torch.bfloat16)
    model = empty.to_empty(device="cpu").eval()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02, generator=chance)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are no parameters
    return model


def drawn(neurons: int, density: float, group: int, chance: torch.Generator) -> Tensor:
    groups = neurons // group
    first = torch.randperm(groups, generator=chance)[: round(density * groups)].sort().values
    return (first.unsqueeze(1) * group + torch.arange(group)).flatten()


def forwards(records: dict[int, Records], way: str, options: argparse.Namespace) -> list[Forward]:
    """What stands in for each layer's FFN."""
    group, whole_prompt, gathered = WAYS[way]
    chance, made = torch.Generator().manual_seed(1), []
    for one in records.values():
        count = 1 if whole_prompt else options.tokens
        choices = [drawn(one.neurons, options.density, group, chance) for _ in range(count)]
        made.append(_dense(one, choices[0]) if gathered else _sparse(one, choices))
    return made


def _dense(records: Records, neurons: Tensor) -> Forward:
    gate, up, down = records.parts()
    assert gate is not None
    gate, up, down = gate[neurons], up[neurons], down[neurons].T.contiguous()

    def forward(x: Tensor) -> Tensor:
        h = nn.functional.silu(nn.functional.linear(x, gate)) * nn.functional.linear(x, up)
        return nn.functional.linear(h, down)

    return forward


def _sparse(records: Records, choices: list[Tensor]) -> Forward:
    calls = iter(range(1 << 60))

    def forward(x: Tensor) -> Tensor:
        chosen = choices[next(calls) % len(choices)]
        return sparse_ffn(records, x.flatten(0, -2), chosen).view(x.shape)

    return forward


@contextmanager
def shadowed(model: LlamaForCausalLM, forward: list[Forward] | None) -> Iterator[None]:
    """Inside the block the FFN modules compute these; None leaves them as they are."""
    modules = [layer.mlp for layer in model.model.layers]
    for module, other in zip(modules, forward or [], strict=bool(forward)):
        module.forward = other
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


@torch.inference_mode()
def seconds(model: LlamaForCausalLM, forward: list[Forward] | None, tokens: int) -> float:
    """How long so many tokens take after a prompt, which is read densely and not timed."""
    prompt = torch.arange(PROMPT_TOKENS).unsqueeze(0)
    cache = DynamicCache(config=model.config)
    token = model(prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
    with shadowed(model, forward):
        started = time.perf_counter()
        for _ in range(tokens):
            token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
        return time.perf_counter() - started


def bytes_per_second() -> float:
    stream, spent = Stream(), []
    for _ in range(40):
        started = time.perf_counter()
        stream.read(torch.get_num_threads())
        spent.append(time.perf_counter() - started)
    return READ_BYTES / min(spent)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    model, best = new_model(options), dict[str, float]()
    total = sum(p.nbytes for p in model.parameters()) - model.get_input_embeddings().weight.nbytes
    rate = bytes_per_second()

    def once(name: str, forward: list[Forward] | None) -> None:
        spent = seconds(model, forward, options.tokens)
        best[name] = min(spent, best.get(name, spent))

    for _ in range(options.rounds):
        once("dense", None)
    # The records need the memory of the model's own layout; "dense" is measured again after them.
    with packed(model, release=True) as records:
        paths = available(records[0])
        ffn = sum(one.weights.nbytes for one in records.values())
        made = {way: forwards(records, way, options) for way in WAYS}
        for _ in range(options.rounds):
            once("dense, records", None)
            for way, forward in made.items():
                once(way, forward)
        made.clear()
    for _ in range(options.rounds):
        once("dense", None)
    read = {name: total if "dense" in name else total - (1 - options.density) * ffn
            for name in best}  # fmt: skip
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "density": options.density,
        "threads": torch.get_num_threads(), "tokens": options.tokens, "rounds": options.rounds,
        "paths": paths, "ffn_share": ffn / total, "gigabytes_per_second": rate / 1e9,
        "ways": {
            name: {
                "tokens_per_second": options.tokens / spent,
                "bound": rate / read[name],
                "times_dense": best["dense"] / spent,
            }
            for name, spent in best.items()
        },
    }  # fmt: skip


def main() -> None:
    """Measure, print the ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--neurons", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        result = measure(options)
        results.append(result)
        print(f"{result['parameters'] / 1e9:.2f} billion parameters, FFNs {result['ffn_share']:.0%}"
              f" of what a token reads, density {options.density:.0%}, {threads} threads, "
              f"{result['gigabytes_per_second']:.1f} GB/s")  # fmt: skip
        for name, way in result["ways"].items():
            speed = way["tokens_per_second"]
            print(f"  {name:18s} {speed:6.2f} tokens/s "
                  f"{way['times_dense']:5.2f} x dense; bound {way['bound']:6.2f}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
