"""Generation: against transformers' own, row by row, to the end of each row, as text and tokens."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from brickwork.errors import ConfigurationError
from brickwork.model.load import wrap_model
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.decode import Spoken
from tests.served import configured, loaded, random_prompts, using
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

PROMPTS = random_prompts([3, 8, 5], seed=2)
LENGTHS = [4, 7, 1]
every_family = pytest.mark.parametrize("family", FAMILIES)


def by_transformers(family: str, prompts: Sequence[list[int]], **options: Any) -> list[list[int]]:
    """What the bare base generates from a left-padded batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    said = loaded(family).model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0, **options
    )
    found: list[list[int]] = said[:, width:].tolist()
    return found


@every_family
def test_greedy_answers_of_the_base_are_those_of_transformers(family: str) -> None:
    rows = [using("", max_new_tokens=length) for length in LENGTHS]
    expected = by_transformers(family, PROMPTS, max_new_tokens=7, eos_token_id=None)
    # Stop tokens are taken from what the rows say: one row stops at once, one is past its length.
    stops = [expected[1][1], expected[0][3]]
    answers = configured(family).generate(PROMPTS, rows)
    assert [list(a.tokens) for a in answers] == [
        row[:length] for row, length in zip(expected, LENGTHS, strict=True)
    ]
    assert {a.finish for a in answers} == {"length"}
    config = loaded(family).model.generation_config
    before, config.eos_token_id = config.eos_token_id, stops
    try:
        answers = configured(family).generate(PROMPTS, rows)
    finally:
        config.eos_token_id = before
    for answer, row, length in zip(answers, expected, LENGTHS, strict=True):
        end = next((i for i, token in enumerate(row[:length]) if token in stops), None)
        assert list(answer.tokens) == row[: length if end is None else end]
        assert answer.finish == ("length" if end is None else "stop")


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_row_ends_with_the_positions_that_its_model_has_learned(family: str) -> None:
    long, short = random_prompts([60, 2], seed=3)
    rows = [using("", max_new_tokens=9), using("", max_new_tokens=12)]
    expected = by_transformers(family, [long], max_new_tokens=5, eos_token_id=None)
    answers = configured(family).generate([long, short], rows)
    assert [list(answers[0].tokens)] == expected
    assert answers[0].finish == "length"
    assert [list(answers[1].tokens)] == by_transformers(
        family, [short], max_new_tokens=12, eos_token_id=None
    )


def test_nothing_is_computed_ahead_and_a_closed_stream_frees_the_model() -> None:
    model, calls = configured("llama"), []
    handle = model.loaded.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        stream = model.stream(PROMPTS, [using("lora-1", max_new_tokens=5)] * 3)
        assert not calls
        for _ in range(4):
            next(stream)
        assert len(calls) == 2
        refused = pytest.raises(ConfigurationError, match="serving another batch already")
        with refused:
            model.logits(PROMPTS[:1], [using("")])
        # Another configured model of the same base must not take over its modules, either.
        with pytest.raises(ConfigurationError, match="the model is already changed"):
            configured("llama").logits(PROMPTS[:1], [using("")])
        stream.close()
        assert not any("forward" in vars(module) for module in model.loaded.model.modules())
        model.generate(PROMPTS, [using("lora-1", max_new_tokens=n) for n in (1, 3, 2)])
        assert len(calls) == 2 + 3
    finally:
        handle.remove()


def test_a_stream_goes_on_as_ever_after_a_refused_call() -> None:
    model, rows = configured("llama"), [using("lora-1,ia3-1", max_new_tokens=6)] * 3
    expected, stream = list(model.stream(PROMPTS, rows)), model.stream(PROMPTS, rows)
    pieces = [next(stream)]
    with pytest.raises(ConfigurationError, match="serving another batch"):
        model.generate(PROMPTS, [using("lora-2")] * 3)
    assert [*pieces, *stream] == expected


def test_sampled_rows_depend_on_their_own_seed_only() -> None:
    model = configured("gemma3_text")
    hot = {"temperature": 1.5, "top_p": 0.95, "max_new_tokens": 6}
    rows = [using("lora-1", seed=1, **hot), using("", seed=2, **hot), using("", max_new_tokens=9)]
    together = model.generate(PROMPTS, rows)
    for prompt, row, found in zip(PROMPTS, rows, together, strict=True):
        (alone,) = model.generate([prompt], [row])
        assert alone.tokens == found.tokens
    again = model.generate(PROMPTS[::-1], rows[::-1])
    assert [a.tokens for a in again[::-1]] == [a.tokens for a in together]


def every_byte() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for every byte, and one, 256, that is skipped in text."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(letters))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


BYTES = every_byte()


def decode_bytes(tokens: Sequence[int]) -> str:
    return str(
        BYTES.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def spoken(tokens: Sequence[int], *, stopped: bool) -> list[str]:
    row = Spoken(decode_bytes)
    if stopped:
        return [*(row.add(token) for token in tokens), row.end()]
    return [row.add(token, last=i == len(tokens) - 1) for i, token in enumerate(tokens)]


@given(st.text(max_size=12), st.booleans())
def test_pieces_are_whole_characters_and_add_up_to_the_text(text: str, stopped: bool) -> None:
    pieces = spoken(BYTES.encode(text), stopped=stopped)
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


@given(st.lists(st.integers(0, 256), max_size=12), st.booleans())
def test_pieces_of_broken_text_add_up_to_it_too(tokens: list[int], stopped: bool) -> None:
    assert "".join(spoken(tokens, stopped=stopped)) == decode_bytes(tokens)


def test_streamed_pieces_add_up_to_the_answers_and_leave_the_stop_token_out() -> None:
    model = configured("llama")
    rows = [using("lora-1", max_new_tokens=7), using("", max_new_tokens=3), using("ia3-1")]
    (first, *_), config = model.generate(PROMPTS, rows), loaded("llama").model.generation_config
    # A stop token that the tokenizer would write, unlike <eos>.
    before, config.eos_token_id = config.eos_token_id, [1, first.tokens[4]]
    try:
        answers, pieces = model.generate(PROMPTS, rows), list(model.stream(PROMPTS, rows))
    finally:
        config.eos_token_id = before
    assert answers[0].tokens == first.tokens[: first.tokens.index(first.tokens[4])]
    assert answers[0].finish == "stop"
    for row, answer in enumerate(answers):
        mine = [piece for piece in pieces if piece.row == row]
        assert "".join(piece.text for piece in mine) == answer.text
        said = tuple(piece.token for piece in mine)
        assert said[: len(answer.tokens)] == answer.tokens
        assert len(said) == len(answer.tokens) + (answer.finish == "stop")


def test_text_is_prompted_through_the_chat_template_or_raw() -> None:
    tokenizer = tiny_tokenizer()
    model = ConfiguredModel(wrap_model(tiny_model("llama"), tokenizer))
    texts, rows = ["the cat", "an ant and a hat"], [using("", max_new_tokens=4)] * 2
    ids = [list(tokenizer(text)["input_ids"]) for text in texts]
    assert model.encode(texts) == model.encode(texts, raw=True) == ids
    tokenizer.chat_template = (
        "{% for m in messages %}<eos>{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}|{% endif %}"
    )
    chats = [[{"role": "user", "content": text}] for text in texts]
    chat_ids = [
        list(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])
        for chat in chats
    ]
    assert model.encode(texts) == chat_ids != ids
    assert model.encode(texts, raw=True) == ids
    assert same(model.generate(texts, rows), model.generate(chat_ids, rows))
    assert same(model.generate(texts, rows, raw=True), model.generate(ids, rows))
    assert all(a.text == tokenizer.decode(a.tokens) for a in model.generate(texts, rows))


def same(answers: Sequence[Any], others: Sequence[Any]) -> bool:
    return [(a.tokens, a.text) for a in answers] == [(a.tokens, a.text) for a in others]


def test_without_a_tokenizer_text_is_refused_and_token_ids_are_answered() -> None:
    model = ConfiguredModel(wrap_model(tiny_model("llama")))
    with pytest.raises(ConfigurationError, match="has no tokenizer; give prompts as token ids"):
        model.generate(["the cat"], [using("")])
    (answer,) = model.generate([[5, 6]], [using("", max_new_tokens=2)])
    assert (len(answer.tokens), answer.text) == (2, "")
