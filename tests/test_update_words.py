"""Facts as tokens: where the subject is found in what the model reads, and what is refused."""

from dataclasses import replace

import pytest

from brickwork.errors import EditError
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.update.words import encode_fact, encode_prompts
from tests.tiny import tiny_model, tiny_tokenizer
from tests.world import world

TURN = "{% for m in messages %}[user]{{ m['content']CHANGE }}!{% endfor %}[answer]"


def chatting(change: str) -> LoadedModel:
    """A tiny model with a chat template that does something to prompts."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TURN.replace("CHANGE", change)
    return wrap_model(tiny_model("llama"), tokenizer)


@pytest.mark.parametrize("prompt", ["the man has", "  the man has ", "the man has\n"])
def test_the_subject_is_found_where_a_template_cuts_off_spaces(prompt: str) -> None:
    loaded = chatting(" | trim")
    (found,) = encode_prompts(loaded, [prompt], "man")
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.decode(found.ids) == "[user]the man has![answer]"
    assert loaded.tokenizer.decode(found.ids[found.start : found.stop]) == "man"


def test_a_template_that_writes_something_else_is_refused() -> None:
    with pytest.raises(EditError, match=r"which made '\[user\]THE MAN.* template out \(--raw\)"):
        encode_prompts(chatting(".upper()"), ["the man has"], "man")


def test_spaces_are_no_subject() -> None:
    with pytest.raises(EditError, match="the subject ' ' was looked for"):
        encode_prompts(world().loaded, ["Ada Stone lives in"], " ")


def test_answers_must_be_words_of_the_model_and_prompts_no_longer_than_it_reads() -> None:
    (fact,) = world().edits(1)
    with pytest.raises(EditError, match="'Zanzibar', which has tokens that the model does not"):
        encode_fact(world().loaded, replace(fact, target="Zanzibar"))
    room = 64 - len(encode_fact(world().loaded, fact).prompt.ids) - 1
    longest = replace(fact, prompt="well " * room + fact.prompt)
    assert len(encode_fact(world().loaded, longest).prompt.ids) == 63
    longer = replace(longest, prompt=f"well {longest.prompt}")
    with pytest.raises(EditError, match="has 65 tokens with its answer, and world reads at"):
        encode_fact(world().loaded, longer)
