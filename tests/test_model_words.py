"""Between text and tokens: how a base is prompted, and what ends its answers."""

import pytest

from brickwork.errors import ConfigurationError
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.words import answer_end, encode, stop_tokens, token_ids
from tests.tiny import tiny_model, tiny_tokenizer

TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}!{% endfor %}"
AS_GEMMA = TURNS + "{% if add_generation_prompt %}[assistant]{% endif %}"
AS_PHI = TURNS + "{% if add_generation_prompt %}[assistant]{% else %}<eos>{% endif %}"


def loaded(template: str | None, ends: int | list[int] | None = 1) -> LoadedModel:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.chat_template = template
    model.generation_config.eos_token_id = ends
    return wrap_model(model, tokenizer)


def test_prompts_are_tokenized_as_one_by_one() -> None:
    base = loaded(AS_GEMMA)
    tokenizer, prompts = base.tokenizer, ["the man", "", "so long " * 90]
    assert tokenizer is not None
    expected = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        for prompt in prompts
    ]
    assert encode(base, prompts) == expected
    assert encode(base, prompts, raw=True) == token_ids(base, prompts)
    assert token_ids(base, prompts) == [tokenizer.encode(prompt) for prompt in prompts]
    assert encode(base, []) == []


def test_a_long_text_is_nobody_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    assert len(token_ids(loaded(None), ["so long " * 90])[0]) > 64
    assert not caplog.records


@pytest.mark.parametrize("template", [AS_GEMMA, AS_PHI])
def test_a_chat_model_ends_an_answer_as_its_template_does(template: str) -> None:
    mark = token_ids(loaded(None), ["!"])[0][0]
    assert answer_end(loaded(template, [1, mark])) == mark
    assert answer_end(loaded(template, [1])) == 1


def test_a_base_ends_an_answer_with_the_end_of_sequence() -> None:
    mark = token_ids(loaded(None), ["!"])[0][0]
    assert answer_end(loaded(None, [mark, 1])) == 1
    base = loaded(None, mark)
    assert base.tokenizer is not None
    base.tokenizer.eos_token = None
    assert answer_end(base) == mark
    base.model.generation_config.eos_token_id = None
    assert stop_tokens(base) == set()
    assert answer_end(base) is None


def test_refuses_a_model_without_a_tokenizer() -> None:
    bare = wrap_model(tiny_model("llama"))
    for ask in (lambda: encode(bare, ["a"]), lambda: token_ids(bare, []), lambda: answer_end(bare)):
        with pytest.raises(ConfigurationError, match="no tokenizer; give prompts as token ids"):
            ask()
