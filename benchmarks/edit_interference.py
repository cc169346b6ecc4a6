"""How much damage one edit may do at the key of another before the other is lost.

    python -m benchmarks.edit_interference [--json FILE] [--layer 3] [--edits 40]

ROME edits about different subjects of the tests' small world, each planned by itself. For pairs of
every size of damage (``update.key_damage``), both act, and the second is asked by its prompt and
its paraphrases: how much less probable is its answer than without the first, and how many of its
wordings no longer get it. Then all act together. Also timed: the check of 200 random edits against
200, by process CPU seconds on one thread.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brickwork.errors import EditError
from brickwork.update.edit import Edit
from brickwork.update.facts import Fact
from brickwork.update.key_damage import damages
from brickwork.update.method import EditContext, EditSite
from brickwork.update.plan import Asked, plan_edit
from brickwork.update.words import answer_ids
from tests.edits import covariance_of, edited, next_logits
from tests.sham_edits import linear_edit
from tests.world import corpus, world

BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 9.9)
MOST = 40  # pairs of each size that are tried


def planned(layer: int, count: int) -> tuple[list[Fact], list[Edit]]:
    """Facts that can be taught there, and an edit for each."""
    covariance = covariance_of(world().loaded, corpus(1500), [layer])
    site = EditSite((layer,), "last")
    context = EditContext(world().loaded, site, covariance=covariance, raw=True)
    facts, edits = [], []
    for fact in world().edits(count, seed=1):
        try:
            edits.append(plan_edit(context, [fact], Asked("rome")))
        except EditError:
            continue  # one that the layer cannot be taught says nothing about pairs
        facts.append(fact)
    return facts, edits


def asked(fact: Fact, edits: Sequence[Edit]) -> tuple[float, float]:
    """The probability of the new answer after the prompt, and the share of wordings that get it."""
    loaded = world().loaded
    (target, *_) = answer_ids(loaded, fact.prompt, fact.target, raw=True)
    with edited(loaded, *(edit.brick for edit in edits)):
        logits = next_logits(loaded, [fact.prompt, *fact.paraphrases], raw=True)
    right = (logits.argmax(1) == target).double().mean()
    return float(logits[0].softmax(0)[target]), float(right)


def losses(facts: Sequence[Fact], edits: Sequence[Edit], sizes: Tensor) -> list[dict[str, Any]]:
    """For pairs of every size of damage, what it costs the second edit."""
    alone = [asked(fact, [edit]) for fact, edit in zip(facts, edits, strict=True)]
    pairs = [(i, j) for i in range(len(edits)) for j in range(len(edits)) if i != j]
    random.Random(0).shuffle(pairs)
    found = []
    for low, high in pairwise(BINS):
        chosen = [(i, j) for i, j in pairs if low <= sizes[i, j] < high][:MOST]
        if not chosen:
            continue
        both = torch.tensor([asked(facts[j], [edits[i], edits[j]]) for i, j in chosen])
        lost = torch.tensor([alone[j] for _, j in chosen]) - both
        means, worst = lost.mean(0).tolist(), lost.max(0).values.tolist()
        row = {"from": low, "to": high, "pairs": len(chosen)}
        row |= {"probability": means[0], "at_worst": worst[0], "wordings": means[1]}
        row |= {"wordings_at_worst": worst[1]}
        print({name: round(value, 3) for name, value in row.items()})
        found.append(row)
    return found


def quantiles(facts: Sequence[Fact], sizes: Tensor) -> dict[str, dict[str, float]]:
    """How large the damage is between edits of one relation, and of different ones."""
    same = torch.tensor([[a.relation == b.relation for b in facts] for a in facts])
    apart = ~torch.eye(len(facts), dtype=torch.bool)
    shares = (0.5, 0.9, 0.99, 1.0)
    found = {
        name: dict(zip(map(str, shares), sizes[chosen].quantile(torch.tensor(shares)).tolist(),
                       strict=True))
        for name, chosen in (("other relation", apart & ~same), ("one relation", apart & same))
    }  # fmt: skip
    print(found)
    return found


def all_at_once(facts: Sequence[Fact], edits: Sequence[Edit], sizes: Tensor) -> dict[str, float]:
    """What becomes of the answers when all edits act, though each was planned alone."""
    others = sizes.clone().fill_diagonal_(0).square().sum(0).sqrt()
    held = sum(asked(fact, edits)[0] > 0.5 for fact in facts)
    found = {"damage at the median": float(others.median()), "answers above 0.5": held}
    print(found)
    return found


def seconds_of_a_check() -> float:
    """CPU time to find what 200 edits do at the keys of 200 others."""
    first, second = (
        [linear_edit((f"{start + n}",), start + n) for n in range(200)] for start in (0, 200)
    )
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        damages(first, second)
        best = min(best, time.process_time() - start)
    print(f"200 edits of two sites against 200: {best:.3f} s")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--edits", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts, edits = planned(arguments.layer, arguments.edits)
    print(f"{len(edits)} of {arguments.edits} facts can be taught at layer {arguments.layer}")
    sizes = torch.stack([damage.size for damage in damages(edits, edits)])
    result = {
        "layer": arguments.layer,
        "edits": len(edits),
        "damage": quantiles(facts, sizes),
        "losses": losses(facts, edits, sizes),
        "together": all_at_once(facts, edits, sizes),
        "seconds": seconds_of_a_check(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
