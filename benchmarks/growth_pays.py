"""Does growth pay: a small model grown to twice its size, against the large one from scratch.

    python -m benchmarks.growth_pays --data FOLDER --out FOLDER
        [--pair 400k] [--tokens 1200000] [--seed 0] [--rate 1e-3]
        [--pieces small,scratch,grown,learned,stack,smaller,shorter]

The folder of data has ``instructions``, ``text`` and ``tokenizers/bpe4096``. All models are
trained as the reference model is (Muon and AdamW, a rate that warms up, stays, and falls over
35 % of the budget), on the same stream of data, and measured on instances that nothing is trained
on. FLOPs are 6 for each parameter and token. The small model and what is grown from it have
together 3/4 of the FLOPs that the large one has from scratch; so if a grown model's loss is no
higher, growth pays.

``grown`` keeps all logits; ``learned`` starts as that and trains maps first (LiGO), which is
counted; ``stack`` keeps none. Two controls have 3/4 of the FLOPs, too: ``smaller`` is the small
model trained on, and ``shorter`` the large one from scratch. Where ``smaller`` is the best of all,
the budget was too short for the large model, and growth has saved what nobody had to spend.

Every piece is a folder of its own, and is not done twice; a piece that was stopped goes on from its
last checkpoint.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from brickwork.grow.learned import learn_growth
from brickwork.grow.recipe import GrowthRecipe, RecipeStep, grow_by_recipe, load_grown
from brickwork.measure.instances import read_instances
from brickwork.measure.perplexity import instance_losses
from brickwork.model.fit import FitRecipe
from brickwork.model.load import load_model, wrap_model
from brickwork.model.train import Batch, Encoded
from brickwork.model.weights import ModelWeights
from brickwork.reference.corpus import training_instances, training_texts
from brickwork.reference.tokenizer import encode_instances, encode_texts
from brickwork.reference.train import Recipe, Run, new_model, optimizers, train, training_batches

BASE = Recipe(
    vocabulary=4096, hidden=64, intermediate=176, layers=3, heads=4, kv_heads=2, longest=256,
    tokens_per_step=2048, tokens_per_pass=2048, prompt_weight=1.0, warm_up=20,
)  # fmt: skip
# Small and large models; the large has twice the parameters, embeddings included.
PAIRS = {
    "400k": (BASE, replace(BASE, intermediate=408, layers=6)),
    "250k": (
        replace(BASE, hidden=48, intermediate=128, layers=2),
        replace(BASE, hidden=48, intermediate=468, layers=4),
    ),
}
# Shares of the FLOPs of the large model from scratch.
SMALL_SHARE, WHOLE_SHARE, COOL_DOWN = 0.40, 0.75, 0.35
TUNE_STEPS, TUNE_TOKENS = 100, 512
EVERY = 40


@dataclass(frozen=True)
class Data:
    """What is trained on, and what is measured on."""

    tokenizer: PreTrainedTokenizerFast
    sequences: list[Encoded]
    texts: list[Encoded]
    held_out: list[Encoded]


def read_data(folder: Path, tokens: int) -> Data:
    """Enough instructions and pieces of text for one pass, in an order that is always the same."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizers" / "bpe4096")
    shuffle = random.Random(0)
    instances = training_instances(folder)
    shuffle.shuffle(instances)
    texts = list(training_texts(folder))
    shuffle.shuffle(texts)
    probe = read_instances(folder / "instructions" / "probe.jsonl.gz")
    shuffle.shuffle(probe)
    every = encode_texts(tokenizer, texts[: max(20, tokens // 12_000)], BASE.text_piece)
    shuffle.shuffle(every)
    return Data(
        tokenizer,
        encode_instances(tokenizer, instances[: min(tokens // 50, 60_000)], BASE.longest),
        every[30:],
        encode_instances(tokenizer, probe[:250], BASE.longest) + every[:30],
    )


@dataclass(frozen=True)
class Bench:
    """Everything that the pieces of one seed share."""

    data: Data
    out: Path
    tokens: int
    seed: int
    rate: float
    pair: tuple[Recipe, Recipe]

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Parameters of the small and the large model."""
        both = (new_model(recipe, self.data.tokenizer) for recipe in self.pair)
        small, large = (sum(p.numel() for p in model.parameters()) for model in both)
        return small, large

    def steps(self, share: float, parameters: int) -> int:
        """Steps of a model for a share of the FLOPs of the large one from scratch."""
        tokens = share * self.tokens * self.sizes[1] / parameters
        return round(tokens / BASE.tokens_per_step)

    def stream(self, skipped: int) -> Iterator[list[Batch]]:
        """Batches, always the same ones; the first so many steps left out."""
        recipe = replace(BASE, seed=self.seed)
        pad = self.data.tokenizer.pad_token_id
        steps = training_batches(self.data.sequences, self.data.texts, recipe, pad)
        return islice(steps, skipped, None)

    def piece(
        self, name: str, model: LlamaForCausalLM, steps: int, *, skipped: int, cool_down: float,
        spent: float = 0.0,
    ) -> LlamaForCausalLM:  # fmt: skip
        """Train one model, with its losses over the FLOPs that were spent in ``curve.json``."""
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        recipe = replace(BASE, tokens=steps * BASE.tokens_per_step, cool_down=cool_down)
        run = Run(model, optimizers(model, recipe))
        if (folder / "checkpoint.pt").exists():
            run.restore(folder / "checkpoint.pt")
        size = sum(p.numel() for p in model.parameters())
        log = folder / "curve.json"
        done = json.loads(log.read_text())["curve"] if log.exists() else []
        curve = [point for point in done if point["step"] < run.step]

        def measure(line: str) -> None:
            if run.step % EVERY == 0 or run.step in (0, steps):
                flops = 6.0 * size * run.tokens
                point = {"step": run.step, "flops": flops, "total": flops + spent}
                curve.append(point | losses(model, self.data.held_out))
                log.write_text(json.dumps({"parameters": size, "steps": steps, "curve": curve}))
                print(name, line, curve[-1], flush=True)

        measure("start")
        train(run, self.stream(skipped), recipe, folder, measure)
        if curve[-1]["step"] != steps:
            measure("end")
        model.save_pretrained(folder)
        return model


def losses(model: LlamaForCausalLM, sequences: list[Encoded]) -> dict[str, float]:
    """Nats per token on whole sequences, and on responses."""
    found = instance_losses(model.eval(), sequences, whole=True)
    assert found.whole is not None, "it was asked for"
    return {
        "whole": float(found.whole.sum() / found.whole_tokens.sum()),
        "response": float(found.response.sum() / found.response_tokens.sum()),
    }


def small(bench: Bench) -> LlamaForCausalLM:
    """The small model, whose rate has not fallen yet."""
    folder = bench.out / "small"
    if (folder / "config.json").exists():
        return load_model(str(folder), dtype="float32").model
    model = new_model(replace(bench.pair[0], seed=bench.seed), bench.data.tokenizer)
    steps = bench.steps(SMALL_SHARE, bench.sizes[0])
    return bench.piece("small", model, steps, skipped=0, cool_down=0.0)


def scratch(bench: Bench, name: str) -> None:
    """The large model from scratch."""
    model = new_model(replace(bench.pair[1], seed=bench.seed), bench.data.tokenizer)
    steps = bench.steps(WHOLE_SHARE if name == "shorter" else 1.0, bench.sizes[1])
    bench.piece(name, model, steps, skipped=0, cool_down=COOL_DOWN)


def trained_on(bench: Bench, name: str) -> None:
    """What comes of the small model, trained for the rest of its FLOPs."""
    model, before = small(bench), bench.out / "small" / "curve.json"
    spent = json.loads(before.read_text())["curve"][-1]["total"]
    rest = WHOLE_SHARE - SMALL_SHARE
    if name != "smaller":
        made, tuning = larger(bench, name, model)
        model, spent = made, spent + tuning
        rest -= tuning / (6.0 * bench.sizes[1] * bench.tokens)
    size = sum(p.numel() for p in model.parameters())
    skipped = bench.steps(SMALL_SHARE, bench.sizes[0])
    cool = COOL_DOWN * WHOLE_SHARE / rest  # the same share of the whole budget
    steps = bench.steps(rest, size)
    bench.piece(name, model, steps, skipped=skipped, cool_down=cool, spent=spent)


def larger(bench: Bench, name: str, model: LlamaForCausalLM) -> tuple[Any, float]:
    """A grown model, and the FLOPs that growing it took."""
    recipe = GrowthRecipe(steps=growths(bench, name), seed=bench.seed)
    loaded = wrap_model(model, bench.data.tokenizer, "small")
    if not name.startswith("learned"):
        grown = grow_by_recipe(ModelWeights(model), recipe, tokenizer=bench.data.tokenizer)
        return load_grown(grown, loaded).model, 0.0
    fit = FitRecipe(
        bench.rate, TUNE_STEPS, TUNE_TOKENS, warm_up=10, prompt_weight=1.0, seed=bench.seed
    )
    sequences = bench.data.sequences + bench.data.texts[: texts_beside(bench.data.sequences)]
    learned = learn_growth(loaded, recipe, sequences, fit)
    found = losses(learned.loaded.model, bench.data.held_out)
    first, last = learned.record.losses[:10], learned.record.losses[-10:]
    print("maps", learned.record.trained, sum(first) / 10, sum(last) / 10, found, flush=True)
    # The maps make every parameter anew at each step: forwards and, twice as long, backwards.
    made = 6.0 * TUNE_STEPS * map_products(learned.record.trained, bench)
    return learned.loaded.model, 6.0 * bench.sizes[1] * TUNE_STEPS * TUNE_TOKENS + made


def growths(bench: Bench, name: str) -> tuple[RecipeStep, ...]:
    """Wider, and twice as deep."""
    small, large = bench.pair
    width = {"neurons": large.intermediate}
    by, options = (
        ("stack", {"overlap": 0}) if name == "stack" else ("blocks", {"blocks": small.layers})
    )
    return (
        RecipeStep(part="width", by="split", options=width),
        RecipeStep(part="depth", by=by, options=options),
    )


def texts_beside(sequences: list[Encoded]) -> int:
    """Pieces of text that have the share of all tokens which they have in training."""
    share = BASE.text_share / (1 - BASE.text_share)
    return round(share * sum(len(s.ids) for s in sequences) / BASE.text_piece)


def map_products(trained: int, bench: Bench) -> float:
    """Multiplications that making all parameters takes: only the neurons' maps are large here."""
    return float(trained * bench.pair[0].hidden)


def table(out: Path, pieces: list[str]) -> dict[str, Any]:
    """What every piece came to, against the large model from scratch."""
    curves = {}
    for name in pieces:
        log = out / name / "curve.json"
        if log.exists():
            curves[name] = json.loads(log.read_text())
    rows: dict[str, Any] = {}
    target = curves["scratch"]["curve"][-1] if "scratch" in curves else None
    for name, found in curves.items():
        last = found["curve"][-1]
        rows[name] = {"parameters": found["parameters"], "steps": found["steps"], **last}
        if target is not None:
            there = [p for p in found["curve"] if p["whole"] <= target["whole"]]
            first = there[0] if there else None
            rows[name]["saved"] = 1 - first["total"] / target["total"] if first else None
            rows[name]["saved_without_small"] = (
                1 - first["flops"] / target["total"] if first else None
            )
    print(f"{'':14}{'parameters':>12}{'TFLOP':>9}{'whole':>9}{'response':>10}{'saved':>8}", end="")
    print(f"{'without small':>15}")
    for name, row in rows.items():
        saved = [row.get(key) for key in ("saved", "saved_without_small")]
        words = ["-" if s is None else f"{s:.0%}" for s in saved]
        print(f"{name:14}{row['parameters']:12,}{row['total'] / 1e12:9.2f}", end="")
        print(f"{row['whole']:9.4f}{row['response']:10.4f}{words[0]:>8}{words[1]:>15}")
    return {"rows": rows, "curves": curves}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pair", choices=PAIRS, default="400k", help="parameters of the small one")
    parser.add_argument("--tokens", type=int, default=1_200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3, help="of learned maps")
    parser.add_argument(
        "--pieces", type=lambda t: t.split(","),
        default="small,scratch,grown,learned,stack,smaller,shorter",
    )  # fmt: skip
    asked = parser.parse_args()
    out = asked.out / f"seed {asked.seed}"
    bench = Bench(
        read_data(asked.data, asked.tokens),
        out,
        asked.tokens,
        asked.seed,
        asked.rate,
        PAIRS[asked.pair],
    )
    for name in asked.pieces:
        if (out / name / "config.json").exists():
            continue
        if name == "small":
            small(bench)
        elif name in ("scratch", "shorter"):
            scratch(bench, name)
        else:
            trained_on(bench, name)
    found = table(out, asked.pieces)
    (out / "growth_pays.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
