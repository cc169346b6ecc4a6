"""The demo: instructions of every functionality through the embedded model and its bricks.

For each: the bricks that were retrieved, the plan, the answer of the configured model beside that
of the bare base, the loss of a reference answer under both, and what each brick did.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from brickwork.brick.configuration import Options
from brickwork.model.load import LoadedModel
from brickwork.reference.builtin import background_instructions
from brickwork.reference.corpus import END
from brickwork.reference.paths import NAME
from brickwork.runtime.auto import Selection, Selector
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.score import answer_losses
from brickwork.runtime.trace import trace
from brickwork.store.store import Store


@dataclass(frozen=True)
class Example:
    """An instruction of the demo and a good answer to it; written for the demo."""

    functionality: str
    instruction: str
    answer: str


EXAMPLES = (
    Example("Translation", "Translate to English: Je suis très fatigué.", "I'm very tired."),
    Example("Math", "What is 12 + 17?", "29"),
    Example(
        "Coding", "Robot command: jump left twice and walk",
        "TURN-LEFT JUMP TURN-LEFT JUMP WALK",
    ),
    Example(
        "Coding", "Give a shell command for the following.\nList all files. Use `ls`.",
        "ls --all",
    ),
    Example("Linguistic", 'What does the verb "sprint" mean?', "run very fast"),
    Example("Knowledge", "Complete the fact.\nThe capital of France is", "Paris"),
    Example("Ethics", "Is this right or wrong?\nI kept the wallet that I had found.", "wrong"),
    Example("Writing", "Write a question about the sea.", "Why is the sea salty?"),
)  # fmt: skip


def run_demo(
    loaded: LoadedModel, store: Store, advance: Callable[[float], None] = lambda steps: None
) -> dict[str, Any]:
    """All examples, as the document that ``brickwork demo --json`` prints."""
    model = ConfiguredModel(loaded, store)
    selector = Selector(loaded, store, background=background_instructions())
    runs = []
    for example in EXAMPLES:
        runs.append(_run(model, selector, example))
        advance(1)
    return {
        "model": {
            "name": NAME,
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
            "fingerprint": loaded.base.fingerprint.weights,
        },
        "store": {
            "path": str(store.folder),
            "bricks": [entry.reference for entry in store.list()],
            "embedder": selector.choice.name,
            "embedder_reason": selector.choice.reason,
        },
        "runs": runs,
    }


def _run(model: ConfiguredModel, selector: Selector, example: Example) -> dict[str, Any]:
    started = time.perf_counter()
    selection = selector.select(example.instruction, Options(max_new_tokens=32), NAME)
    chosen = selection.configuration
    bare = chosen.model_copy(update={"bricks": ()})
    plan = model.plan([chosen, bare], [selection.reasons, {}])
    configured, base = model.generate([example.instruction] * 2, plan)
    seconds = time.perf_counter() - started
    prompt = model.encode([example.instruction])[0]
    assert model.loaded.tokenizer is not None
    answer = model.loaded.tokenizer(example.answer + END)["input_ids"]
    losses = answer_losses(model, [(prompt, answer)] * 2, [chosen, bare])
    return {
        "instruction": example.instruction,
        "functionality": example.functionality,
        "bricks": _considered(selection),
        "plan": plan.as_document()["rows"][0],
        "answer": configured.text,
        "base_answer": base.text,
        "reference_answer": example.answer,
        "loss": losses[0].mean().item(),
        "base_loss": losses[1].mean().item(),
        "seconds": seconds,
        "trace": trace(model, prompt, answer, chosen).as_document(),
    }


def _considered(selection: Selection) -> list[dict[str, Any]]:
    """Every brick that was considered, with its score; weight 0 where it was not chosen."""
    weights = {use.name: use.weight for use in selection.configuration.bricks}
    return [
        {
            "name": hit.reference,
            "score": hit.score,
            "threshold": hit.threshold,
            "weight": weights.get(hit.reference, 0.0),
        }
        for hit in selection.retrieval.hits
    ]
