"""What the tests of edits on single states share: contexts, facts, and the runtime's deed."""

from collections.abc import Sequence
from functools import cache

import torch

from brickwork.brick.configuration import Configuration, parse_uses
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.train import Encoded
from brickwork.model.words import encode
from brickwork.runtime.configured import ConfiguredModel
from brickwork.update.edit import Edit
from brickwork.update.facts import Fact
from brickwork.update.method import EditContext, EditSite
from brickwork.update.plan import Asked, plan_edit
from brickwork.update.words import EncodedFact, encode_fact
from tests.edits import Scores, scores
from tests.tiny import tiny_model, tiny_tokenizer
from tests.world import corpus, world

FAMILIES = ["llama", "gpt2", "opt", "gemma3_text", "mixtral"]
WORLD_LAYER = {"grace": 3, "t-patcher": 5, "serac": 3}


@cache
def world_corpus() -> tuple[Encoded, ...]:
    texts = encode(world().loaded, corpus(120), raw=True)
    return tuple(Encoded(ids, len(ids)) for ids in texts)


def world_context(method: str, training: Sequence[EncodedFact] = ()) -> EditContext:
    site = EditSite((WORLD_LAYER[method],), "last")
    return EditContext(world().loaded, site, corpus=world_corpus(), training=training)


def tiny_context(family: str, layer: int = 1) -> EditContext:
    """A random model, and random tokens as its corpus."""
    loaded = wrap_model(tiny_model(family), tiny_tokenizer(), family)
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(2, 100, (20, 12), generator=generator).tolist()
    return EditContext(loaded, EditSite((layer,), "last"), corpus=[Encoded(t, 12) for t in texts])


# They end with their subjects: a layer of Gemma 3 sees four tokens.
TINY_FACTS = [
    Fact("a", "Bob", "the home of Bob", " inn"),
    Fact("b", "Ann", "the job of Ann", " cook"),
]
# At its last token block 0 reads one and the same embedding, whatever the subject.
BLIND = Fact("d", "Bob", "Bob is at the", " inn")


def said(loaded: LoadedModel, edit: Edit, fact: Fact) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The likeliest tokens at the fact's answer in a mixed batch, and those of the answer."""
    found = encode_fact(loaded, fact)
    model = ConfiguredModel(loaded)
    model.add(edit.brick, "edit")
    ids = [*found.prompt.ids, *found.target[:-1]]
    rows = [Configuration(), Configuration(bricks=parse_uses("edit"))]
    bare, changed = model.logits([ids, ids], rows)
    # A row of the batch without the brick is as the model is.
    torch.testing.assert_close(
        bare, loaded.model(torch.tensor([ids])).logits[0], rtol=1e-4, atol=1e-4
    )
    return tuple(changed[-len(found.target) :].argmax(-1).tolist()), found.target


def world_scores(edit: Edit, facts: Sequence[Fact]) -> Scores:
    """Of the world with the edit; when it is off the model is as it was, to the bit."""
    loaded = world().loaded
    prompt = torch.tensor([encode_fact(loaded, facts[0]).prompt.ids])
    with torch.no_grad():
        before = loaded.model(prompt).logits
    with ConfiguredModel(loaded).applied([edit.brick]):
        found = scores(loaded, facts)
    with torch.no_grad():
        assert torch.equal(loaded.model(prompt).logits, before)
    return found


def plan(context: EditContext, facts: Sequence[Fact], method: str, **options: float) -> Edit:
    """The edit; planning it changes no weight, and leaves no gradients."""
    model = context.loaded.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edit = plan_edit(context, facts, Asked(method, options))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    return edit
