"""Between text and tokens: how a base is prompted, what ends an answer, and what it says."""

from collections.abc import Sequence

from brickwork.errors import ConfigurationError
from brickwork.model.load import LoadedModel


def encode(loaded: LoadedModel, prompts: Sequence[str], *, raw: bool = False) -> list[list[int]]:
    """Prompts as token ids: as instructions in the chat template if there is one, or raw.

    Raises:
        ConfigurationError: if the base was loaded without a tokenizer.
    """
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise ConfigurationError("the model has no tokenizer; give prompts as token ids.")
    if raw or not tokenizer.chat_template:
        return [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def stop_tokens(loaded: LoadedModel) -> set[int]:
    """The tokens that end an answer; empty if the base names none."""
    end = loaded.model.generation_config.eos_token_id
    return set() if end is None else {end} if isinstance(end, int) else set(end)


def decoded(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    """Tokens as text without special tokens; empty if the base was loaded without a tokenizer."""
    if loaded.tokenizer is None:
        return ""
    # Cleaning up could change text that has been handed out already.
    text = loaded.tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text)
