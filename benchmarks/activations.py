"""What collecting activations costs above a bare forward pass, in CPU time.

    python -m benchmarks.activations [--nnsight] [--json FILE]

A random Llama (hidden 512, FFN 2048, 8 layers, float32) over 140 prompts of 96 to 160 tokens. One
thread, process CPU time, the variants interleaved, the median over the rounds of each variant's
ratio to the bare forward pass of the same round. The bare forward is what the collection runs, too:
batches by length, no output layer. ``store all`` keeps every activation of every token in memory
and reduces it afterwards, the usual way with hooks; nnsight (installed by yourself) reduces inside
its trace. All give the same means, which is checked.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from brickwork.measure.activations import TOKENS_PER_BATCH, Wanted, block_name, collect, layout_of
from brickwork.measure.rows import open_rows
from brickwork.model.load import wrap_model
from brickwork.model.train import Encoded, groups_by_length, pack

LAYERS, SAMPLES = 8, 140
NEURONS = Wanted(heads=False, blocks=False)


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=8192, max_position_embeddings=512,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def prompts() -> list[Encoded]:
    chance = torch.Generator().manual_seed(1)
    lengths = torch.randint(96, 161, (SAMPLES,), generator=chance).tolist()
    return [Encoded(torch.randint(3, 8192, (n,), generator=chance).tolist(), n) for n in lengths]


class Work:
    """The same instances, collected in several ways; each returns the means or None."""

    def __init__(self) -> None:
        self.model, self.sequences = new_model(), prompts()
        self.loaded = wrap_model(self.model)
        self.groups = groups_by_length([len(s.ids) for s in self.sequences], TOKENS_PER_BATCH)
        self.batches = [[self.sequences[i] for i in group] for group in self.groups]

    @torch.inference_mode()
    def forward(self) -> None:
        for batch in self.batches:
            self.model.base_model(input_ids=pack(batch, 0, 0.0).ids, use_cache=False)

    def ours(self, wanted: Wanted) -> Tensor:
        with tempfile.TemporaryDirectory() as place:
            rows = open_rows(Path(place), layout_of(self.model, SAMPLES, wanted))
            collect(self.loaded, self.sequences, rows, wanted)
            names = [block_name("neurons", layer, "mean_abs") for layer in range(LAYERS)]
            return torch.cat([rows.read(name) for name in names], 1).clone()

    @torch.inference_mode()
    def store_all(self) -> Tensor:
        kept: list[list[Tensor]] = [[] for _ in range(LAYERS)]
        hooks = [
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda _m, args, to=kept[n]: to.append(args[0].clone())
            )
            for n, layer in enumerate(self.model.model.layers)
        ]
        self.forward()
        for hook in hooks:
            hook.remove()
        means = torch.zeros(SAMPLES, LAYERS, 2048)
        for n in range(LAYERS):
            for group, h in zip(self.groups, kept[n], strict=True):
                means[group, n] = self._means(group, h)
        return means.flatten(1)

    def nnsight(self) -> Tensor:
        from nnsight import NNsight  # noqa: PLC0415

        traced, means = NNsight(self.model), torch.zeros(SAMPLES, LAYERS, 2048)
        for group, batch in zip(self.groups, self.batches, strict=True):
            ids = pack(batch, 0, 0.0).ids
            with torch.no_grad(), traced.trace(input_ids=ids, use_cache=False):
                found = list().save()  # noqa: C408
                for n in range(LAYERS):
                    h = traced.model.layers[n].mlp.down_proj.input
                    found.append(self._means(group, h))
            for n in range(LAYERS):
                means[group, n] = found[n]
        return means.flatten(1)

    def _means(self, group: list[int], h: Tensor) -> Tensor:
        lengths = torch.tensor([len(self.sequences[i].ids) for i in group]).view(-1, 1, 1)
        tokens = torch.arange(h.shape[1]).view(1, -1, 1) < lengths
        return (h.abs() * tokens).sum(1) / lengths.squeeze(2)


def measure(rounds: int, with_nnsight: bool) -> dict[str, Any]:
    work = Work()
    variants: dict[str, Callable[[], Any]] = {
        "forward": work.forward,
        "neurons": lambda: work.ours(NEURONS),
        "neurons, heads, blocks": lambda: work.ours(Wanted()),
        "store all": work.store_all,
    }
    if with_nnsight:
        variants["nnsight"] = work.nnsight
    means = {name: run() for name, run in variants.items()}  # a warm-up, too
    reference = means["store all"]
    error = {n: (m - reference).abs().max().item() for n, m in means.items() if m is not None}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    pairs = {n: [a / b for a, b in zip(s, seconds["forward"], strict=True)]
             for n, s in seconds.items()}  # fmt: skip
    return {
        "samples": SAMPLES, "rounds": rounds,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "times_forward": {name: statistics.median(ratios) for name, ratios in pairs.items()},
        "largest_difference": error,
    }  # fmt: skip


def main() -> None:
    """Measure, print the ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--nnsight", action="store_true", help="measure nnsight, too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.rounds, options.nnsight)
    for name, ratio in result["times_forward"].items():
        print(f"{name:24s} {result['seconds'][name]:7.2f} s  {ratio:6.3f} x the bare forward")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
