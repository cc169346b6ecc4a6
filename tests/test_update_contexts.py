"""Contexts: texts of the model's own, before prompts whose subject is still found."""

import pytest
import torch

from brickwork.model.load import LoadedModel, wrap_model
from brickwork.update.contexts import essence, placed, prompts_in_contexts, sample_contexts
from brickwork.update.facts import Fact
from brickwork.update.words import PLACES, encode_fact
from tests.tiny import tiny_model, tiny_tokenizer
from tests.world import FIRST, LAST, world

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
FACT = Fact("a", "Rome", "where is Rome in", "the")


def chatting() -> LoadedModel:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return wrap_model(tiny_model("llama"), tokenizer)


def test_the_world_model_writes_of_its_world_and_equal_seeds_give_equal_texts() -> None:
    loaded = world().loaded
    state = torch.get_rng_state()
    texts = sample_contexts(loaded, 8, starts=[], raw=True, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert texts == sample_contexts(loaded, 8, starts=[], raw=True, seed=3)
    assert texts != sample_contexts(loaded, 8, starts=[], raw=True, seed=4)
    assert len(texts) >= 6  # two may be alike
    assert all(len(text.split()) in {5, 10} for text in texts)
    assert set(FIRST + LAST) & set(" ".join(texts).split())
    assert "<" not in " ".join(texts)


def test_no_contexts_are_no_passes() -> None:
    assert sample_contexts(world().loaded, 0, starts=[], raw=True, seed=0) == []


def test_a_model_without_a_word_for_the_start_goes_on_from_the_facts() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    loaded = wrap_model(tiny_model("llama"), tokenizer)
    texts = sample_contexts(loaded, 4, starts=[[40, 50], [60]], raw=True, seed=0)
    first = {tokenizer.decode([40]), tokenizer.decode([60])}
    assert texts
    assert {text[0] for text in texts} <= first


@pytest.mark.parametrize("place", PLACES)
def test_a_context_stands_inside_the_chat_and_before_the_prompt(place: str) -> None:
    loaded = chatting()
    fact = encode_fact(loaded, FACT)
    plain, long = prompts_in_contexts(loaded, fact, ["Once more"], place, raw=False)  # type: ignore[arg-type]
    assert plain == placed(fact.prompt, place)  # type: ignore[arg-type]
    assert loaded.tokenizer is not None
    text = loaded.tokenizer.decode(list(long.ids))
    assert text == "[user]Once more. where is Rome in[a]"
    assert long.ids[long.position] == plain.ids[plain.position]
    assert long.position > plain.position


def test_the_essence_asks_what_the_subject_is() -> None:
    loaded = chatting()
    found = essence(loaded, encode_fact(loaded, FACT), "subject_last", raw=False)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.decode(list(found.ids)) == "[user]Rome is a[a]"
    assert loaded.tokenizer.decode([found.ids[found.position]]) == "e"
