"""Train the reference model from data given by path: ``brickwork reference train``.

Hidden weight matrices are trained with Muon (Jordan et al. 2024; Liu et al. 2025,
arXiv:2502.16982), the embedding and the norms with AdamW. The learning rate warms up, stays, and
falls linearly to zero over the last part of the token budget (Hu et al. 2024, arXiv:2404.06395),
so a run that must end early can be resumed with a smaller budget and still cool down. A run that
was stopped goes on from its last checkpoint.
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear_cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from brickwork.measure.instances import read_instances
from brickwork.measure.perplexity import response_losses
from brickwork.model.train import Batch, Encoded, batches_by_length, pack
from brickwork.reference.corpus import training_instances, training_texts
from brickwork.reference.tokenizer import encode_instances, encode_texts, train_tokenizer

Report = Callable[[str], None]
CHECKPOINT_SECONDS = 300
CHUNKED = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=512)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, written beside the weights."""

    vocabulary: int = 8192
    hidden: int = 256
    intermediate: int = 1024
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    longest: int = 512
    text_piece: int = 256
    text_share: float = 0.12
    tokens: int = 15_000_000
    tokens_per_step: int = 8192
    tokens_per_pass: int = 4096
    prompt_weight: float = 0.3
    muon_rate: float = 0.02
    adam_rate: float = 0.003
    weight_decay: float = 0.02
    warm_up: int = 40
    cool_down: float = 0.35
    seed: int = 0


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model, with random weights that depend on the seed alone."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest."""
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(inner, lr=recipe.muon_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(step: int, steps: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at this step: warm-up, constant, linear cool-down."""
    cooling = max(1, round(steps * recipe.cool_down))
    return min(1.0, (step + 1) / recipe.warm_up, (steps - step) / cooling)


def training_batches(
    sequences: list[Encoded], texts: list[Encoded], recipe: Recipe, pad: int
) -> Iterator[list[Batch]]:
    """Endless steps of a few passes each; text takes its share of the passes of every epoch."""
    shuffle = random.Random(recipe.seed)
    passes = recipe.tokens_per_step // recipe.tokens_per_pass
    queue: list[list[Encoded]] = []
    while True:
        wanted = recipe.text_share / (1 - recipe.text_share) * sum(len(s.ids) for s in sequences)
        some_texts = shuffle.sample(texts, min(len(texts), round(wanted / recipe.text_piece)))
        queue += batches_by_length([*sequences, *some_texts], recipe.tokens_per_pass, shuffle)
        while len(queue) >= passes:
            step, queue = queue[:passes], queue[passes:]
            yield [pack(group, pad, recipe.prompt_weight) for group in step]


def train_step(model: LlamaForCausalLM, batches: list[Batch], device: torch.device) -> float:
    """Gradients of the weighted loss over the batches of one step; returns its mean per weight."""
    total = sum(float(b.weight[:, 1:].sum()) for b in batches)
    loss_sum = 0.0
    for batch in batches:
        ids, weight = batch.ids.to(device), batch.weight[:, 1:].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = _weighted_loss(model, ids, weight)
        (loss / total).backward()
        loss_sum += loss.item()
    return loss_sum / total


def _weighted_loss(
    model: LlamaForCausalLM, ids: Int[Tensor, "rows tokens"], weight: Float[Tensor, "rows next"]
) -> Float[Tensor, ""]:
    """The sum of weight times loss; the logits of a batch are never held all at once."""
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    loss: Tensor = states.new_zeros((), dtype=torch.float32)
    for level in weight.unique().tolist():
        chosen = weight == level
        if level > 0:
            loss = loss + level * linear_cross_entropy(
                states[chosen],
                model.lm_head.weight,
                ids[:, 1:][chosen],
                reduction="sum",
                options=CHUNKED,
            )
    return loss


@dataclass
class Run:
    """A training run in progress: what a checkpoint has to hold."""

    model: LlamaForCausalLM
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write the checkpoint, all of it or nothing."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "progress": {"step": self.step, "tokens": self.tokens, "seconds": self.seconds},
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def restore(self, path: Path) -> None:
        """Go on where the checkpoint was written; only tensors and numbers are unpickled."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens = state["progress"]["step"], state["progress"]["tokens"]
        self.seconds = state["progress"]["seconds"]


def train(
    run: Run, steps: Iterator[list[Batch]], recipe: Recipe, folder: Path, report: Report
) -> None:
    """Train to the end of the token budget, with a checkpoint every few minutes."""
    device = next(run.model.parameters()).device
    total = math.ceil(recipe.tokens / recipe.tokens_per_step)
    peaks = [group["lr"] for o in optimizers(run.model, recipe) for group in o.param_groups]
    for _ in range(run.step):
        next(steps)
    last_save = started = time.monotonic()
    before, average = run.seconds, math.nan
    while run.step < total:
        batches = next(steps)
        groups = [group for o in run.optimizers for group in o.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * rate_factor(run.step, total, recipe)
        loss = train_step(run.model, batches, device)
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        run.step += 1
        run.tokens += sum(int((b.weight > 0).sum()) for b in batches)
        run.seconds = before + time.monotonic() - started
        average = loss if math.isnan(average) else 0.95 * average + 0.05 * loss
        if run.step % 10 == 0:
            rate = run.tokens / run.seconds
            report(f"step {run.step}/{total} loss {average:.3f} {run.tokens:,} tokens {rate:.0f}/s")
        if time.monotonic() - last_save > CHECKPOINT_SECONDS:
            run.save(folder / "checkpoint.pt")
            last_save = time.monotonic()
    run.save(folder / "checkpoint.pt")


def prepare(
    data: Path, folder: Path, recipe: Recipe
) -> tuple[PreTrainedTokenizerFast, list[Encoded], list[Encoded]]:
    """The tokenizer (trained once per folder), the encoded instructions and pieces of text."""
    instances, texts = training_instances(data), list(training_texts(data))
    if not (folder / "tokenizer.json").exists():
        whole = (f"{i.prompt}\n{i.response}" for i in instances)
        every = (text for source in (whole, texts) for text in source)
        train_tokenizer(every, recipe.vocabulary).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    sequences = encode_instances(tokenizer, instances, recipe.longest)
    return tokenizer, sequences, encode_texts(tokenizer, texts, recipe.text_piece)


def train_reference(
    data: Path, folder: Path, recipe: Recipe, device: str, report: Report
) -> dict[str, Any]:
    """Train, or go on training, and write weights, tokenizer and ``training.json``.

    Args:
        data: folder with ``instructions/`` and ``text/``.
        folder: where weights and checkpoints go; a checkpoint that is there is resumed.
        recipe: everything that decides the result.
        device: where to compute.
        report: called with a line for people, now and then.

    Returns:
        What ``training.json`` holds: recipe, tokens, seconds, held-out loss by functionality.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, sequences, pieces = prepare(data, folder, recipe)
    tokens = sum(len(s.ids) for s in sequences)
    report(f"{len(sequences):,} instructions, {tokens:,} tokens; {len(pieces):,} pieces of text")
    model = new_model(recipe, tokenizer)
    torch.nn.Module.to(model, torch.device(device))
    run = Run(model, optimizers(model, recipe))
    if (folder / "checkpoint.pt").exists():
        run.restore(folder / "checkpoint.pt")
        report(f"resumed after {run.step} steps")
    steps = training_batches(sequences, pieces, recipe, tokenizer.pad_token_id)
    train(run, steps, recipe, folder, report)
    probe = read_instances(data / "instructions" / "probe.jsonl.gz")
    model.bfloat16().save_pretrained(folder)
    encoded = encode_instances(tokenizer, probe, model.config.max_position_embeddings)
    losses = response_losses(model.float(), encoded, [i.functionality for i in probe])
    result = {
        "recipe": asdict(recipe),
        "tokens": run.tokens,
        "seconds": run.seconds,
        "response_loss": losses,
    }
    (folder / "training.json").write_text(json.dumps(result, indent=2) + "\n")
    return result
