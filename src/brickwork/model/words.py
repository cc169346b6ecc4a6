"""Between text and tokens: how a base is prompted, what ends an answer, and what it says."""

from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from brickwork.errors import ConfigurationError
from brickwork.model.load import LoadedModel

_ANSWER = "This is the answer."


def encode(loaded: LoadedModel, prompts: Sequence[str], *, raw: bool = False) -> list[list[int]]:
    """Prompts as token ids: as instructions in the chat template if there is one, or raw.

    Raises:
        ConfigurationError: if the base was loaded without a tokenizer.
    """
    return token_ids(
        loaded,
        prompt_texts(loaded, prompts, raw=raw),
        special=raw or not _tokenizer(loaded).chat_template,
    )


def prompt_texts(loaded: LoadedModel, prompts: Sequence[str], *, raw: bool = False) -> list[str]:
    """Prompts as the model reads them: as instructions in its chat template, or raw.

    Raises:
        ConfigurationError: if the base was loaded without a tokenizer.
    """
    tokenizer = _tokenizer(loaded)
    if raw or not tokenizer.chat_template or not prompts:
        return list(prompts)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    return cast(list[str], texts)


def located(
    loaded: LoadedModel, text: str, *, special: bool = False
) -> tuple[list[int], list[tuple[int, int]]]:
    """A text as token ids, and the characters of each: the first, and the one after the last.

    Args:
        loaded: the model and its tokenizer.
        text: as it is, without a chat template put around it.
        special: whether the tokenizer puts its special tokens around it; those have no characters.

    Raises:
        ConfigurationError: if there is no tokenizer, or one that cannot tell.
    """
    tokenizer = _tokenizer(loaded)
    if not tokenizer.is_fast:
        raise ConfigurationError(
            f"{type(tokenizer).__name__} cannot say which characters its tokens stand for; load "
            "the model with a fast tokenizer (a file tokenizer.json)."
        )
    found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    return list(found["input_ids"]), [(start, stop) for start, stop in found["offset_mapping"]]


def token_ids(
    loaded: LoadedModel, texts: Sequence[str], *, special: bool = False
) -> list[list[int]]:
    """Texts as they are, as token ids of any length.

    Args:
        loaded: the model and its tokenizer.
        texts: any number.
        special: whether the tokenizer puts its special tokens around each text.

    Raises:
        ConfigurationError: if the base was loaded without a tokenizer.
    """
    tokenizer = _tokenizer(loaded)
    if not texts:
        return []
    # Not verbose: a text longer than the model takes is the caller's to cut.
    found = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    return [list(ids) for ids in found]


def _tokenizer(loaded: LoadedModel) -> PreTrainedTokenizerBase:
    if loaded.tokenizer is None:
        raise ConfigurationError("the model has no tokenizer; give prompts as token ids.")
    return loaded.tokenizer


def stop_tokens(loaded: LoadedModel) -> set[int]:
    """The tokens that end an answer; empty if the base names none."""
    end = loaded.model.generation_config.eos_token_id
    return set() if end is None else {end} if isinstance(end, int) else set(end)


def answer_end(loaded: LoadedModel) -> int | None:
    """The token that the model itself puts at the end of an answer; None if the base names none.

    A chat model can have several that stop it; the one that its template puts after an answer is
    taken. A base without a template ends with the tokenizer's end of sequence.

    Raises:
        ConfigurationError: if the base was loaded without a tokenizer.
    """
    tokenizer = _tokenizer(loaded)
    own = tokenizer.eos_token_id
    ends = stop_tokens(loaded) | ({own} if isinstance(own, int) else set())
    if tokenizer.chat_template and len(ends) > 1:
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
        text = str(tokenizer.apply_chat_template(chat, tokenize=False)).rpartition(_ANSWER)[2]
        after = [token for token in token_ids(loaded, [text])[0] if token in ends]
        if after:
            return after[0]
    return own if isinstance(own, int) else min(ends, default=None)


def decoded(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    """Tokens as text without special tokens; empty if the base was loaded without a tokenizer."""
    if loaded.tokenizer is None:
        return ""
    # Cleaning up could change text that has been handed out already.
    text = loaded.tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text)
